"""Core transplant, the same for every transformer family: the untrained student is the lifted teacher, at two sizes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from l2p.errors import UserError
from l2p.images import to_uint8
from l2p.lift import Lift
from l2p.patches import patchify, unpatchify
from l2p.recipe import LoRAConfig, TrainBlocks
from l2p.students.build import from_teacher, set_trainable
from l2p.students.cores import CORES
from l2p.students.io import load_student, save_student
from l2p.students.lora import is_adapter, merged
from l2p.teachers import FAMILIES, tiny

NAMES = [name for name in tiny.PIPELINES if FAMILIES[name.split(" ")[0]].denoiser_class in CORES]
GUIDANCE = 3.5  # reaches the network where guidance is an input


@pytest.fixture(scope="module", params=NAMES)
def family(request):
    """A tiny teacher with a lift for its tokens."""
    torch.manual_seed(0)
    teacher = FAMILIES[request.param.split(" ")[0]](tiny.PIPELINES[request.param](), "tiny")
    d, p = teacher.geometry.token_dim, teacher.geometry.token_pixels
    generator = torch.Generator().manual_seed(13)
    basis = torch.linalg.qr(torch.randn(3 * p**2, d, generator=generator, dtype=torch.float64))[0]
    offset = 0.2 * torch.randn(3 * p**2, generator=generator, dtype=torch.float64)
    return teacher, Lift(basis, scale=0.4, offset=offset, r2=0.8, r2_lstsq=0.9, r2_pca=0.95)


def config(family, student_config, kind, **changes):
    return student_config(kind, patch_size=family[0].geometry.token_pixels, **changes)


def words(teacher):
    return ["7", "207"] if teacher.pipeline_class == "DiTPipeline" else tiny.WORDS


def lifted(teacher, lift, x_t, t, conditioning):
    """The picture that the teacher's latent velocity means in pixels, in closed form."""
    p = teacher.geometry.token_pixels
    tokens = patchify(x_t, p)
    z_t = teacher.unpack(lift.to_latent(tokens, t))
    guidance = GUIDANCE if teacher.guidance_kind == "input" else 0.0
    u_z = teacher.velocity(z_t, lift.latent_time(t), conditioning, guidance)
    return u_z, unpatchify(lift.x_0(tokens, teacher.pack(u_z), t), p)


def inputs(teacher, rows, columns):
    p = teacher.geometry.token_pixels
    generator = torch.Generator().manual_seed(5)
    x_t = 0.8 * torch.randn(2, 3, rows * p, columns * p, generator=generator)
    return x_t, torch.tensor([0.3, 0.9]), teacher.encode_prompts(words(teacher))


@pytest.mark.parametrize("kind", ["linear", "patch"])
def test_step_zero_is_the_lifted_teacher_at_two_sizes(family, student_config, kind):
    teacher, lift = family
    student = from_teacher(
        teacher, lift, config(family, student_config, kind), guidance_scale=GUIDANCE
    ).eval()
    squares_alone = teacher.pipeline_class == "DiTPipeline"  # the teacher's limit, not the core's
    for rows, columns in ((2, 2) if squares_alone else (2, 4), (3, 3)):
        x_t, t, conditioning = inputs(teacher, rows, columns)
        with torch.no_grad():
            u_z, x_0 = lifted(teacher, lift, x_t, t, conditioning)
            assert u_z.std() > 0.1
            torch.testing.assert_close(student(x_t, t, conditioning), x_0, atol=1e-4, rtol=1e-4)
            u = (x_t - x_0) / t[:, None, None, None]
            torch.testing.assert_close(student.velocity(x_t, t, conditioning), u, atol=4e-4, rtol=1e-4)


def test_shallow_blocks_train_and_the_middle_is_frozen(family, student_config):
    teacher, lift = family
    student = from_teacher(teacher, lift, config(family, student_config, "linear"))
    layers = student.core.layers
    set_trainable(student, TrainBlocks(first=1, last=0))
    trains = [any(p.requires_grad for p in layer.parameters()) for layer in layers]
    assert trains == [True] + [False] * (len(layers) - 1)
    assert student.core.embedder.weight.requires_grad
    x_t, t, conditioning = inputs(teacher, 2, 2)
    student.set_gradient_checkpointing(True)
    student(x_t, t, conditioning).square().mean().backward()
    assert student.core.embedder.weight.grad.abs().sum() > 0
    assert all(p.grad is None for layer in layers[1:] for p in layer.parameters())


def test_a_saved_student_draws_the_same(family, student_config, tmp_path):
    teacher, lift = family
    student = from_teacher(
        teacher, lift, config(family, student_config, "patch"), guidance_scale=GUIDANCE
    ).eval()
    save_student(student, tmp_path / "student")
    again = load_student(tmp_path / "student")
    x_t, t, conditioning = inputs(teacher, 2, 2)
    with torch.no_grad():
        drawn = again(x_t, t, conditioning)
        torch.testing.assert_close(drawn, student(x_t, t, conditioning), atol=1e-6, rtol=0)


def test_adapters_go_into_any_core_and_come_out_again(family, student_config):
    pytest.importorskip("peft")
    teacher, lift = family
    lora = LoRAConfig(rank=2, targets=["to_q"])
    student = from_teacher(teacher, lift, config(family, student_config, "linear", lora=lora)).eval()
    for name, parameter in student.core.named_parameters():
        if is_adapter(name):
            torch.nn.init.normal_(parameter, std=0.1)
    plain, (x_t, t, conditioning) = copy.deepcopy(student), inputs(teacher, 2, 2)
    with torch.no_grad():
        expected = student(x_t, t, conditioning)
        torch.testing.assert_close(merged(plain)(x_t, t, conditioning), expected, atol=1e-4, rtol=1e-4)


def test_a_step_s_end_is_told_to_cores_that_take_it(family, student_config):
    teacher, lift = family
    told = config(family, student_config, "linear", interval=True)
    if teacher.pipeline_class == "ZImagePipeline":
        assert from_teacher(teacher, lift, told).core.span_embedder is not None
    else:
        with pytest.raises(UserError, match="student.interval needs a core that can be told"):
            from_teacher(teacher, lift, told)


def u_net():
    """A teacher without a core, and a lift for the tokens that a student makes of its latents."""
    torch.manual_seed(0)
    teacher = FAMILIES["StableDiffusionXLPipeline"](tiny.PIPELINES["StableDiffusionXLPipeline"](), "tiny")
    basis = torch.linalg.qr(torch.randn(768, 16, dtype=torch.float64))[0]
    return teacher, Lift(basis, 1.0, torch.zeros(768, dtype=torch.float64), 0.8, 0.9, 0.9)


def test_a_u_net_teacher_has_no_core(student_config):
    with pytest.raises(
        UserError, match="no student has a core of the kind UNet2DConditionModel.*student.core=base"
    ):
        from_teacher(*u_net(), student_config("linear"))


@pytest.mark.parametrize("kind", ["patch", "linear"])
def test_a_student_of_a_u_net_has_a_core_of_its_own(student_config, kind, tmp_path):
    """All of it trains, it reads the teacher's captions, and it starts from the noise's own latents, not from NaN."""
    from l2p.students.pipeline import load

    teacher, lift = u_net()
    student = from_teacher(teacher, lift, student_config(kind, core="tiny")).eval()
    assert all(p.requires_grad and p.isfinite().all() for p in student.parameters())
    assert student.spec.core["cap_feat_dim"] == 32 and not hasattr(student.core.transformer, "conv_in")
    x_t, conditioning = torch.randn(2, 3, 32, 32), teacher.encode_prompts(tiny.WORDS)
    with torch.no_grad():
        start = student(x_t, torch.ones(2), conditioning)
        seen = student.forward_features(x_t, torch.ones(2), conditioning)
    if kind == "patch":  # its guess of the latents is the noise that it was given
        z = patchify(x_t, 16) @ lift.basis.float()
        torch.testing.assert_close(student.latents(seen), z, atol=1e-4, rtol=1e-4)
    save_student(student, tmp_path / "student", text_encoder=teacher.text_encoder)
    loaded = load(tmp_path / "student", device="cpu", dtype="fp32")
    with torch.no_grad():
        again = loaded.student(x_t, torch.ones(2), loaded.text_encoder(tiny.WORDS))
    torch.testing.assert_close(again, start)


def test_a_saved_student_reads_prompts_as_its_teacher_does(family, student_config, tmp_path):
    from l2p.noise import pixel_noise
    from l2p.students.pipeline import load

    teacher, lift = family
    student = from_teacher(teacher, lift, config(family, student_config, "linear"), guidance_scale=GUIDANCE)
    save_student(student, tmp_path / "student", text_encoder=teacher.text_encoder)
    pipeline = load(tmp_path / "student", device="cpu", dtype="fp32")
    expected, read = teacher.encode_prompts(words(teacher)), pipeline.text_encoder(words(teacher))
    torch.testing.assert_close(read.embeds, expected.embeds, atol=1e-5, rtol=1e-5)
    assert torch.equal(read.lengths, expected.lengths)
    p = teacher.geometry.token_pixels
    (picture,) = pipeline.generate(words(teacher)[0], seeds=1, height=2 * p, width=2 * p)
    one = pipeline.text_encoder(words(teacher)[:1])
    noise = pixel_noise(pipeline.student.spec.noise_generator, [1], 2 * p, 2 * p, pipeline.student.basis)
    drawn = to_uint8(pipeline.sample(one, noise))[0]
    assert picture.size == (2 * p, 2 * p) and abs(np.asarray(picture).astype(int) - drawn).max() <= 1
