"""Odd inputs: a result, or one clear line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from l2p.decoders.sources import find_files, read_source
from l2p.errors import UserError
from l2p.images import read_picture
from l2p.patches import patchify


def test_pictures_of_every_mode(tmp_path):
    levels = np.linspace(0, 255, 64).reshape(8, 8)
    cases = {
        "grey.png": (Image.fromarray(levels.astype(np.uint8)), levels),
        "deep.png": (Image.fromarray((levels * 257).astype(np.uint16)), levels),
        "one.png": (Image.new("RGB", (1, 1), (9, 8, 7)), None),
        "clear.png": (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), np.full((4, 4), 255)),
        "print.jpg": (Image.new("CMYK", (8, 8), (0, 0, 0, 0)), np.full((8, 8), 255)),
        "palette.gif": (Image.new("P", (4, 4)), None),
    }
    for name, (image, wanted) in cases.items():
        image.save(tmp_path / name)
        found = read_picture(tmp_path / name)
        assert found.dtype == np.uint8 and found.shape == (*image.size[::-1], 3)
        if wanted is not None:
            assert np.abs(found[..., 0] - wanted).max() <= 1, name


def test_broken_pictures_are_told(tmp_path):
    whole = tmp_path / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("cut.png", "text.jpg", "empty.png"):
        with pytest.raises(UserError, match="is no picture or is cut short"):
            read_picture(tmp_path / name)


def test_a_picture_is_padded_to_two_tokens_at_least_and_its_size_kept(teacher, tmp_path):
    Image.new("RGB", (19, 1), (200, 100, 50)).save(tmp_path / "thin.png")
    source = read_source(tmp_path / "thin.png", teacher.geometry, teacher, None)
    assert source.latents.shape == (1, 16, 4, 4) and (source.height, source.width) == (1, 19)
    noisy = read_source(tmp_path / "thin.png", teacher.geometry, teacher, 0.5)
    assert noisy.sigma == 0.5 and not torch.equal(noisy.latents, source.latents)


def test_latents_packed_or_not_and_odd_sizes(teacher, tmp_path):
    z, geometry = torch.randn(16, 4, 6), teacher.geometry
    save_file({"latents": z}, tmp_path / "plain.safetensors", {"sigma": "0.25", "prompt": "a house"})
    save_file({"x": patchify(z[None], 2)[0].contiguous()}, tmp_path / "packed.safetensors")
    save_file({"x": z[:, :3].contiguous()}, tmp_path / "odd.safetensors")
    plain, packed, odd = (
        read_source(tmp_path / f"{name}.safetensors", geometry, None, None)
        for name in ("plain", "packed", "odd")
    )
    assert torch.equal(plain.latents, packed.latents)
    assert (plain.sigma, plain.prompt, packed.sigma) == (0.25, "a house", 0.0)
    assert odd.latents.shape == (1, 16, 4, 6) and odd.height == 24


@pytest.mark.parametrize(
    "tensors, said",
    [
        ({"x": torch.randn(4, 8, 8)}, "another VAE"),
        ({"x": torch.full((16, 4, 4), float("nan"))}, "NaN"),
        ({"x": torch.zeros(16, 4, 4, dtype=torch.int32)}, "expected floating"),
        ({"x": torch.zeros(3)}, "of shape"),
        ({"a": torch.zeros(16, 4, 4), "b": torch.zeros(16, 4, 4)}, "holds 2 tensors"),
    ],
)
def test_latents_that_are_none(teacher, tmp_path, tensors, said):
    save_file(tensors, tmp_path / "z.safetensors")
    with pytest.raises(UserError, match=said):
        read_source(tmp_path / "z.safetensors", teacher.geometry, None, None)


def test_files_that_are_none(teacher, tmp_path):
    (tmp_path / "z.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="no safetensors file"):
        read_source(tmp_path / "z.safetensors", teacher.geometry, None, None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds nothing to decode"):
        find_files([str(tmp_path / "empty")])
    with pytest.raises(UserError, match=r"no such file or directory: nowhere\.png"):
        find_files(["nowhere.png"])


def test_the_noise_of_a_picture_is_of_the_seed(teacher, tmp_path):
    from l2p import flow

    Image.new("RGB", (32, 32), (90, 9, 9)).save(tmp_path / "a.png")
    path, geometry = tmp_path / "a.png", teacher.geometry
    clean = read_source(path, geometry, teacher, None).latents
    for seed in (0, 5):
        noisy = read_source(path, geometry, teacher, 0.5, seed).latents
        torch.testing.assert_close(noisy, 0.5 * clean + 0.5 * flow.noise([seed], *clean.shape[1:]))
