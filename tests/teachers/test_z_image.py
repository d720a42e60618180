"""Conformance: our sampler against diffusers' own ZImagePipeline, from the same noise."""

from __future__ import annotations

import pytest
import torch

from l2p import flow
from l2p.errors import UserError
from l2p.teachers import load_teacher
from l2p.teachers.z_image import ZImageTeacher

PROMPTS = [
    "a lake at dusk",
    "a small house near a river in winter, pine trees and mountains, cloudy sky " * 3,
]


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline):
    from diffusers import ZImagePipeline

    pipeline = ZImagePipeline.from_pretrained(tiny_pipeline)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def teacher(tiny_pipeline):
    return load_teacher(tiny_pipeline)


def relative_rms(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).pow(2).mean().sqrt() / b.pow(2).mean().sqrt())


def both_ways(teacher, pipeline, guidance_scale: float, height: int, width: int, steps: int = 5):
    eps = flow.noise([1, 2], *teacher.geometry.latent_shape(height, width))
    ours = teacher.sample(eps, teacher.encode_prompts(PROMPTS), steps, guidance_scale)
    theirs = pipeline(
        list(PROMPTS),
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        latents=eps.clone(),
        output_type="latent",
    ).images
    return ours, theirs


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_same_latents_as_the_pipeline(teacher, pipeline, guidance_scale, size):
    ours, theirs = both_ways(teacher, pipeline, guidance_scale, *size)
    assert relative_rms(ours, theirs) < 1e-4


def test_same_picture_as_the_pipeline(teacher, pipeline):
    eps = flow.noise([3], *teacher.geometry.latent_shape(64, 64))
    z = teacher.sample(eps, teacher.encode_prompts(PROMPTS[:1]), 4, 1.0)
    theirs = pipeline(
        PROMPTS[:1],
        height=64,
        width=64,
        num_inference_steps=4,
        guidance_scale=1.0,
        latents=eps,
        output_type="pt",
    ).images
    ours = teacher.decode(z).clamp(-1, 1) / 2 + 0.5
    assert relative_rms(ours, theirs) < 1e-4


@pytest.mark.parametrize("mutation", ["sign", "time", "shift"])
def test_a_wrong_convention_is_caught(teacher, pipeline, mutation, monkeypatch):
    own_velocity, own_times = ZImageTeacher._velocity, ZImageTeacher.times
    wrong = {
        "sign": ("_velocity", lambda self, z, t, c, w: -own_velocity(self, z, t, c, w)),
        "time": ("_velocity", lambda self, z, t, c, w: own_velocity(self, z, 1 - t, c, w)),
        "shift": ("times", lambda self, n, h, w: flow.shift_time(own_times(self, n, h, w), 1.5)),
    }
    monkeypatch.setattr(ZImageTeacher, *wrong[mutation])
    ours, theirs = both_ways(teacher, pipeline, 1.0, 64, 64)
    assert relative_rms(ours, theirs) > 1e-3


def test_dynamic_shift_of_the_scheduler(tiny_pipeline):
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline

    pipeline = ZImagePipeline.from_pretrained(tiny_pipeline)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipeline.set_progress_bar_config(disable=True)
    ours, theirs = both_ways(ZImageTeacher(pipeline, "dynamic"), pipeline, 0.0, 64, 64)
    assert relative_rms(ours, theirs) < 1e-4


def test_encode_uses_the_pipelines_constants(teacher, pipeline):
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    raw = pipeline.vae.encode(images).latent_dist.mean
    expected = (raw - pipeline.vae.config.shift_factor) * pipeline.vae.config.scaling_factor
    torch.testing.assert_close(teacher.encode(images), expected)


def test_stop_at_runs_only_the_steps_it_needs(teacher):
    eps = flow.noise([1], *teacher.geometry.latent_shape(64, 64))
    conditioning, steps = teacher.encode_prompts(PROMPTS[:1]), []
    times = teacher.times(8, 64, 64)
    z_t = teacher.sample(eps, conditioning, 8, stop_at=float(times[5]), progress=steps.append)
    assert len(steps) == 5
    rest = flow.euler(lambda z, t: teacher.velocity(z, t, conditioning), z_t, times[5:])
    torch.testing.assert_close(rest, teacher.sample(eps, conditioning, 8))


def test_the_prompt_cache_changes_nothing(teacher, monkeypatch):
    encoder = teacher.text_encoder
    encoder.forget()
    fresh = encoder(PROMPTS)
    with monkeypatch.context() as patch:
        patch.setattr(encoder, "_read", None)  # whose call would be an error: no prompt is read twice
        torch.testing.assert_close(encoder(PROMPTS[::-1])[[1, 0]].embeds, fresh.embeds)
    assert len(encoder(["another one"]).embeds) == 1


def test_sizes_off_the_token_grid_are_refused(teacher):
    with pytest.raises(ValueError, match="multiples of 16, got 24 x 64"):
        teacher.geometry.latent_shape(24, 64)


def test_what_is_no_teacher_is_refused_in_one_line(tmp_path, tiny_pipeline):
    import shutil

    with pytest.raises(UserError, match="no teacher at"):
        load_teacher("no-such-teacher")
    with pytest.raises(UserError, match="model_index.json"):
        load_teacher(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(tiny_pipeline, broken)
    weights = next((broken / "transformer").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="broken or cut short") as caught:
        load_teacher(broken)
    assert "\n" not in str(caught.value)
