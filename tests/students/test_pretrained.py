"""Pretrained heads: a function of the latents alone, saved without the core's part, and refused where they do not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from l2p.errors import UserError
from l2p.students.build import from_teacher, head_config
from l2p.students.heads import PatchHead
from l2p.students.heads.pretrained import cut_core, own_state, save_head


@pytest.fixture
def config(student_config):
    return student_config("patch")


@pytest.fixture
def saved(teacher, config, tmp_path):
    """A folder with a head in which nothing is zero any more, and the head."""
    torch.manual_seed(3)
    knobs = head_config(config.head, teacher.geometry)
    sizes = {k: v for k, v in knobs.items() if k not in ("kind", "patch_size", "latent_dim")}
    head = PatchHead(1, 1, knobs["patch_size"], knobs["latent_dim"], **sizes)
    cut_core(head)
    for name, parameter in head.named_parameters():
        if name.startswith(("conv_", "out.", "readout.")):
            torch.nn.init.normal_(parameter, std=0.1)
    save_head(head, tmp_path / "head", knobs, torch.float32)
    return tmp_path / "head", head


def test_a_student_starts_with_the_picture_that_the_head_makes_of_its_core_s_latents(
    teacher, lift, captions, config, saved
):
    folder, head = saved
    chosen = replace(config, head=replace(config.head, pretrained=str(folder)))
    student = from_teacher(teacher, lift, chosen).eval()
    fresh = from_teacher(teacher, lift, config).eval()
    noise = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        seen = student.forward_features(noise, torch.ones(2), captions([1, 2]))
        drawn, wanted = student.forward_head(seen), head.decode(student.latents(seen).float())
        other = fresh.forward_head(seen)
    torch.testing.assert_close(drawn, wanted, rtol=1e-4, atol=1e-4)
    assert (other - wanted).abs().mean() > 1e-2


def test_nothing_of_core_or_lift_is_saved(saved):
    folder, head = saved
    stored = load_file(folder / "model.safetensors")
    assert stored.keys() == own_state(head).keys()
    assert not any(part in name for name in stored for part in ("open", "final", "basis", "modulation"))
    with torch.no_grad():  # and nothing of the noise passes
        z = torch.randn(1, 2, 2, head.readout.in_channels)
        noise = torch.randn(1, 3, *(2 * [2 * head.patch_size]))
        nothing = torch.zeros(1, 2, 2, 1), torch.zeros(1, 1), z
        assert torch.equal(head.forward_pixels(*nothing, noise, torch.zeros(1)), head.decode(z))


def test_heads_that_do_not_fit_are_named(teacher, lift, config, saved, tmp_path):
    folder, _ = saved

    def start(path, **knobs):
        return from_teacher(
            teacher, lift, replace(config, head=replace(config.head, pretrained=path, **knobs))
        )

    with pytest.raises(UserError, match="no pretrained head in .*make one with `l2p train-head`"):
        start(str(tmp_path))
    blocks = config.head.num_blocks
    with pytest.raises(
        UserError, match=f"has num_blocks {blocks}, this student {blocks + 1}: set student.head"
    ):
        start(str(folder), num_blocks=blocks + 1)
    state = load_file(folder / "model.safetensors")
    save_file({**state, "more": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="unexpected: more"):
        start(str(folder))
