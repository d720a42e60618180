"""The decoder before training against teacher and bicubic interpolation; sizes, scales and VAEs of all kinds."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from l2p import flow
from l2p.decoders.build import from_teacher, pid_spec
from l2p.decoders.pid import LatentConditioning, PidStudent
from l2p.errors import UserError
from l2p.recipe import HeadConfig
from l2p.teachers.protocol import LatentGeometry

CORE = {"dim": 64, "n_layers": 3, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 8,
        "axes_dims": [8, 12, 12], "axes_lens": [64, 16, 16]}  # fmt: skip
DRAFT = {"kind": "head", "fine_patch": 8, "width": 32, "num_blocks": 0, "head_dim": 16, "tile": 4, "halo": 2}


def test_untrained_it_paints_the_decoders_picture_enlarged(fresh, teacher, latents):
    noise = torch.randn(1, 3, 256, 192)
    with torch.no_grad():
        drawn = fresh(noise, torch.ones(1), LatentConditioning.of(fresh.empty, latents, 0.0))
        small = teacher.decode(latents)
    torch.testing.assert_close(
        F.avg_pool2d(drawn, 4)[:, :, 4:-4, 4:-4], small[:, :, 4:-4, 4:-4], rtol=0, atol=6e-3
    )
    bicubic = F.interpolate(small, scale_factor=4, mode="bicubic")
    assert (drawn - bicubic).abs().mean() < 0.2 * (small - small.mean()).abs().mean()


def test_untrained_it_reads_off_noisy_latents_what_the_teacher_reads(fresh, teacher, latents):
    captions, sigma = teacher.encode_prompts(["a red house by a lake"]), torch.tensor([0.6])
    z = flow.add_noise(latents, torch.randn_like(latents), sigma)
    with torch.no_grad():
        seen = fresh.forward_features(
            torch.randn(1, 3, 256, 192), torch.ones(1), LatentConditioning.of(captions, z, sigma)
        )
        wanted = z - 0.6 * teacher.velocity(z, sigma, captions)
    torch.testing.assert_close(teacher.unpack(fresh.latents(seen)), wanted, rtol=1e-4, atol=1e-4)


def test_noise_pixels_and_latents_all_reach_the_picture(decoder, latents):
    def draw(noise, z, t=1.0):
        told = LatentConditioning.of(decoder.empty, z, 0.0)
        return decoder(noise, torch.tensor([t]), told)

    noise, other = torch.randn(2, 1, 3, 256, 192).unbind(0)
    with torch.no_grad():
        first = draw(noise, latents)
        assert (draw(other, latents) - first).abs().max() > 1e-4
        assert (draw(noise, latents.flip(2)) - first).abs().max() > 1e-2
        assert (draw(noise, latents, 0.5) - first).abs().max() > 1e-4


def test_a_window_is_painted_as_a_part_of_the_whole(decoder, latents):
    """But for the noise around it, which the core sees, and for the head's own edge: both are kept out here."""
    torch.nn.init.zeros_(decoder.core.embedder.weight)
    noise = torch.randn(1, 3, 256, 192)
    whole, part = (LatentConditioning.of(decoder.empty, latents, 0.3) for _ in range(2))
    part.window = torch.tensor([[1, 1]])
    with torch.no_grad():
        drawn = decoder(noise, torch.ones(1), whole)[:, :, 64:192, 64:]
        window = decoder(noise[:, :, 64:192, 64:], torch.ones(1), part)
    inner = (slice(None), slice(None), slice(48, -48), slice(48, -48))
    torch.testing.assert_close(window[inner], drawn[inner], rtol=0, atol=1e-4)


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
@pytest.mark.parametrize(
    "channels, compression, packing, upsample", [(4, 8, 2, 1), (6, 16, 1, 2), (5, 32, 1, 4)]
)
def test_scales_and_vaes_of_all_kinds(scale, channels, compression, packing, upsample):
    geometry = LatentGeometry(channels, compression, packing)
    head = HeadConfig(fine_patch=scale, width=16, num_blocks=1, head_dim=16, tile=4, halo=2)
    spec = pid_spec(geometry, scale, CORE, head, DRAFT, adapter_width=8, features=8, upsample=upsample)
    student = PidStudent(spec).eval()
    z = torch.randn(1, channels, 2 * packing, packing)
    noise = torch.randn(1, 3, 2 * geometry.token_pixels * scale, geometry.token_pixels * scale)
    with torch.no_grad():
        drawn = student.sample(noise, LatentConditioning.of(student.empty, z, 0.3), 2)
    assert drawn.shape == noise.shape and torch.isfinite(drawn).all()


def test_what_does_not_fit_is_told_in_one_line(fresh, teacher, latents):
    with pytest.raises(UserError, match=r"expected \[B, 16, h, w\]"):
        fresh.check(latents[:, :4])
    with pytest.raises(UserError, match="multiples of 2"):
        fresh.check(latents[:, :, :3])
    with pytest.raises(UserError, match="noise of 64 x 64"):
        fresh.check(latents, torch.zeros(1, 3, 64, 64))
    with pytest.raises(UserError, match="scale is 3"):
        from_teacher(teacher, 3, HeadConfig())


def test_a_published_vaes_decoder_fits_on_the_meta_device():
    """FLUX's latents at four times: the sizes of recipes/pid-flux-4x.yaml, without a byte of them."""
    from pathlib import Path

    from l2p.recipe import load_recipe
    from l2p.teachers.flux import FluxTeacher
    from l2p.training.pid import PidRecipe, check

    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / "pid-flux-4x.yaml", schema=PidRecipe)
    check(recipe)
    published = FluxTeacher.published[0]
    geometry = LatentGeometry(published.channels, published.compression, published.packing)
    draft = {"kind": "decoder", "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
             "latent_channels": 16, "norm_num_groups": 32, "down_block_types": ["DownEncoderBlock2D"] * 4,
             "up_block_types": ["UpDecoderBlock2D"] * 4, "use_quant_conv": False, "use_post_quant_conv": False}  # fmt: skip
    config = recipe.student
    with torch.device("meta"):
        student = PidStudent(
            pid_spec(
                geometry, config.scale, {**config.core, "cap_feat_dim": 4096}, config.head, draft,
                adapter_width=config.adapter_width, features=config.features, upsample=config.upsample,
            )
        )  # fmt: skip
        z, noise = torch.zeros(1, 16, 128, 128), torch.zeros(1, 3, 4096, 4096)
        seen = student.forward_features(noise, torch.ones(1), LatentConditioning.of(student.empty, z, 0.2))
    assert seen.draft.shape == (1, 3, 1024, 1024) and seen.inputs[0].shape[1:3] == (64, 64)
