"""What a diffusers pipeline itself draws from given noise, for every family: the truth of the conformance test."""

from __future__ import annotations

import torch
from torch import Tensor


def draw(
    pipeline, prompts: list[str], eps: Tensor, steps: int, guidance: float, size: tuple[int, int], output: str
):
    """Latents [B, c, H/f, W/f] (output "latent") or pictures [B, 3, H, W] in [0, 1] ("pt") of noise ``eps``."""
    name = type(pipeline).__name__
    if name == "DiTPipeline":
        return _draw_dit(pipeline, prompts, eps, steps, guidance, output)
    arguments = {"num_inference_steps": steps, "height": size[0], "width": size[1], "output_type": output}
    arguments |= {"guidance_scale": guidance, "latents": _pack(pipeline, eps)}
    if name == "QwenImagePipeline":
        arguments |= {
            "true_cfg_scale": arguments.pop("guidance_scale"),
            "negative_prompt": [" "] * len(prompts),
        }
    if name in ("PixArtSigmaPipeline", "SanaPipeline"):
        arguments["use_resolution_binning"] = False
    if name == "ChromaPipeline":
        _mask_with_booleans(pipeline)
    drawn = pipeline(prompt=list(prompts), **arguments).images
    return _unpack(pipeline, drawn, size) if output == "latent" else drawn


def _pack(pipeline, eps: Tensor) -> Tensor:
    name = type(pipeline).__name__
    if name.startswith("Flux2"):
        return pipeline._patchify_latents(eps)
    if hasattr(pipeline, "_pack_latents"):
        return pipeline._pack_latents(eps, *eps.shape)
    return eps.clone()


def _unpack(pipeline, latents: Tensor, size: tuple[int, int]) -> Tensor:
    name = type(pipeline).__name__
    if name == "Flux2KleinPipeline":
        return _normalised(pipeline, latents)
    if name.startswith("Flux2"):
        grid = latents.transpose(1, 2).unflatten(2, (size[0] // 16, size[1] // 16))
        return pipeline._unpatchify_latents(grid)
    if hasattr(pipeline, "_unpack_latents"):
        latents = pipeline._unpack_latents(latents, *size, pipeline.vae_scale_factor)
        return latents[:, :, 0] if latents.ndim == 5 else latents
    return latents


def _normalised(pipeline, raw: Tensor) -> Tensor:
    """Klein's pipeline hands out the VAE's own latents; its encoder's path normalises them."""
    folded, norm = pipeline._patchify_latents(raw), pipeline.vae.bn
    std = (norm.running_var + pipeline.vae.config.batch_norm_eps).sqrt().view(1, -1, 1, 1)
    return pipeline._unpatchify_latents((folded - norm.running_mean.view(1, -1, 1, 1)) / std)


def _mask_with_booleans(pipeline) -> None:
    """diffusers 0.42.1 hands Chroma's mask to the attention as numbers, which adds 1 to the scores of words and hides no
    pad; the model was trained with a mask (huggingface/diffusers issue 12116), so the comparison is with one."""
    prepare = type(pipeline)._prepare_attention_mask

    def as_booleans(**arguments) -> Tensor:
        mask = prepare(pipeline, **arguments)
        return None if mask is None else mask.bool()

    pipeline._prepare_attention_mask = as_booleans


def _draw_dit(pipeline, prompts, eps: Tensor, steps: int, guidance: float, output: str) -> Tensor:
    """DiT's pipeline takes neither noise nor ``output_type="latent"``: both are caught at its borders."""
    from unittest import mock

    caught = {}
    decode = pipeline.vae.decode

    def listen(z, *rest, **named):
        caught["latent"] = z * pipeline.vae.config.scaling_factor
        return decode(z, *rest, **named)

    module = "diffusers.pipelines.dit.pipeline_dit.randn_tensor"
    with mock.patch(module, lambda **_: eps.clone()), mock.patch.object(pipeline.vae, "decode", listen):
        labels = [int(prompt) for prompt in prompts]
        drawn = pipeline(labels, guidance_scale=guidance, num_inference_steps=steps, output_type="pt").images
    return caught["latent"] if output == "latent" else torch.as_tensor(drawn)
