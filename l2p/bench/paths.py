"""The paths from a prompt to 8 bits that `l2p bench` compares, each with random weights of a preset's sizes.

A path is a function of a `Job` that builds what it needs and returns how to draw; `PATHS` names them. Weights are random,
as time and memory do not depend on their values; pictures are noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from l2p import flow, images, runtime
from l2p.bench.clock import Clock
from l2p.bench.count import CAPTION
from l2p.errors import UserError
from l2p.noise import PhiloxNoise
from l2p.students import pipeline as drawing
from l2p.students import presets, tiled_inference
from l2p.students.heads import PatchHead
from l2p.students.pipeline import StudentPipeline
from l2p.teachers import build
from l2p.teachers.protocol import LatentGeometry
from l2p.teachers.text import TextEncoder

if TYPE_CHECKING:
    from l2p.decoders.decode import PidDecoder
    from l2p.teachers.z_image import ZImageTeacher

PROMPTS = [f"a red house by a lake at dusk, number {number}" for number in range(8)]
SD_VAE = build.VAESizes([128, 256, 512, 512], layers_per_block=2, latent_channels=16, norm_num_groups=32)

TINY_PID = {
    "hidden_size": 64,
    "num_heads": 2,
    "depth": 2,
    "pixel_attention_width": 64,
    "pixel_heads": 2,
    "text_width": 32,
    "latent_width": 32,
}


@dataclass(frozen=True)
class Job:
    """What one worker measures.

    Attributes:
        teacher_steps: of the paths that draw in latents; 0 decodes noise: the decoder alone.
        student_steps: of `l2p-multistep`.
    """

    path: str
    preset: str
    height: int
    width: int
    batch: int = 1
    device: str = "cpu"
    dtype: str = "bf16"
    compile: bool = False
    cuda_graphs: bool = False
    teacher_steps: int = 8
    student_steps: int = 30
    memory_budget: int | None = None


@dataclass
class Path:
    """Ready to draw: ``draw(number)`` gives uint8 pictures [B, H, W, 3]."""

    draw: Callable[[int], Any]
    parameters: int
    steps: int


def student(job: Job, clock: Clock, head: str = "patch", num_steps: int = 1) -> Path:
    """Our student, or one with another head or more steps."""
    device, dtype = torch.device(job.device), runtime.DTYPES[job.dtype]
    network = presets.random_student(job.preset, job.height, job.width, head, num_steps, device, dtype)
    if job.compile:
        runtime.check_compiler(device)
        network.compile_blocks()
    encoder = _text_encoder(job)
    pipeline = StudentPipeline(network, encoder, dtype)
    clock.wrap(pipeline, "text_encoder", "text")
    clock.wrap(PhiloxNoise, "latents", "noise")
    clock.wrap(PhiloxNoise, "rows", "noise")
    if job.cuda_graphs and num_steps == 1:
        pipeline.use_cuda_graphs()
        clock.wrap(pipeline, "graphs", "core and head")  # a clock that waits within a capture would end it
    else:
        clock.wrap(network.core, "embed", "core")
        clock.wrap(network.core, "run", "core")
        clock.wrap(network.head, "rows" if isinstance(network.head, PatchHead) else "forward", "head")
    for module in (tiled_inference, drawing):
        clock.wrap(module, "to_uint8", "to 8-bit")

    def draw(number: int) -> np.ndarray:
        encoder.forget()
        seeds = range(number * job.batch, (number + 1) * job.batch)
        prompts = [PROMPTS[seed % len(PROMPTS)] for seed in seeds]
        return pipeline.generate_arrays(
            prompts, list(seeds), job.height, job.width, num_steps, job.memory_budget
        )

    return Path(draw, _parameters(network, encoder.model), num_steps)


def teacher(job: Job, clock: Clock, decoder: str = "vae", shrink: int = 1) -> Path:
    """A latent teacher on the preset's own core (patches of 2 x 2 latents, 16 px) and a decoder.

    Args:
        decoder: "vae", "tiled", "taesd" or "pid".
        shrink: the teacher draws pictures of this part of the side, and Lanczos, or the pixel diffusion decoder, brings
            them to size.
    """
    from l2p.teachers.z_image import ZImageTeacher

    preset = presets.find_preset(job.preset)
    device, dtype = torch.device(job.device), runtime.DTYPES[job.dtype]
    sizes = build.VAESizes() if job.preset == "tiny" else SD_VAE
    encoder = _text_encoder(job)
    with torch.device("meta"):
        transformer = _transformer(preset, sizes.latent_channels)
        vae = _taesd(sizes) if decoder == "taesd" else _vae(sizes)
    modules = [module.to(dtype).to_empty(device=device).eval() for module in (transformer, vae)]
    for module in modules:
        presets.randomise(module)
    if decoder == "tiled":
        vae.enable_tiling()
    if job.compile:
        for layer in transformer.layers:
            layer.compile()
    pixel_decoder = pid_decoder(job, preset, sizes, shrink) if decoder == "pid" else None
    unit = 16 if pixel_decoder else 1  # whole tokens: what is beyond is cut off
    side = [-(-length // shrink // unit) * unit for length in (job.height, job.width)]
    latent = (sizes.latent_channels, side[0] // 8, side[1] // 8)
    pipeline = build.build_pipeline(_vae_or_shape(vae, sizes), transformer, encoder.model, encoder.tokenizer)
    drawer: ZImageTeacher = ZImageTeacher(pipeline, name=job.preset)
    clock.wrap(drawer, "encode_prompts", "text")
    clock.wrap(drawer, "velocity", "core")
    clock.wrap(images, "to_uint8", "to 8-bit")
    clock.wrap(flow.Noise, "rows", "noise")

    @torch.inference_mode()
    def draw(number: int) -> np.ndarray:
        drawer.text_encoder.forget()
        seeds = range(number * job.batch, (number + 1) * job.batch)
        z = flow.noise(seeds, *latent).to(device)
        if job.teacher_steps:
            conditioning = drawer.encode_prompts([PROMPTS[seed % len(PROMPTS)] for seed in seeds])
            with runtime.autocast(device, dtype):
                z = drawer.sample(z, conditioning, job.teacher_steps)
        if pixel_decoder is not None:
            captions = pixel_decoder.student.empty
            painted = [
                clock.call("decode", pixel_decoder.decode_array, z[i : i + 1], 0.0, captions, seed)
                for i, seed in enumerate(seeds)
            ]
            return np.stack(painted)[:, : job.height, : job.width]
        pictures = clock.call("decode", lambda: vae.decode(z.to(dtype), return_dict=False)[0])
        arrays = images.to_uint8(pictures)
        return arrays if shrink == 1 else clock.call("lanczos", _lanczos, arrays, job.width, job.height)

    last = vae if pixel_decoder is None else pixel_decoder.student
    return Path(draw, _parameters(transformer, last, encoder.model), job.teacher_steps)


def pid_decoder(job: Job, preset: presets.Preset, sizes: build.VAESizes, scale: int) -> PidDecoder:
    """A pixel diffusion decoder with the preset's core and head and the VAE's own decoder for the draft, one step."""
    from l2p.decoders.build import decoder_draft, pid_spec
    from l2p.decoders.decode import PidDecoder
    from l2p.decoders.pid import PidStudent
    from l2p.recipe import HeadConfig

    with torch.device("meta"):
        draft = decoder_draft(_vae(sizes))
        head = HeadConfig("patch", 8, preset.head_width, preset.num_blocks, preset.head_dim)
        geometry = LatentGeometry(sizes.latent_channels, 8, 2)
        spec = pid_spec(geometry, scale, preset.core, head, draft, features=preset.head_width)
        network = PidStudent(spec).to(runtime.DTYPES[job.dtype])
    network.to_empty(device=job.device)
    presets.randomise(network)
    return PidDecoder(
        network, 1, runtime.DTYPES[job.dtype], memory_budget=job.memory_budget or tiled_inference.BUDGET
    )


def pid(job: Job, clock: Clock) -> Path:
    """PiD's published network (1.4 B parameters, 16 px a token; a toy for `tiny`), one step from latents at a quarter of the
    side. Neither the latents nor the caption's features are made here: the network alone."""
    from l2p.published.pid import PublishedPiD
    from l2p.published.pid_network import PiDNet, PiDSizes

    if job.height % 32 or job.width % 32:
        raise UserError(f"pid paints multiples of 32 px, not {job.height} x {job.width}")
    device, dtype = torch.device(job.device), runtime.DTYPES[job.dtype]
    sizes = PiDSizes(**TINY_PID) if job.preset == "tiny" else PiDSizes()
    with torch.device("meta"):
        network = PiDNet(sizes).to(dtype)
    network = network.to_empty(device=device).eval()
    presets.randomise(network)
    decoder = PublishedPiD(network, "random weights")
    clock.wrap(network, "forward", "decode")
    clock.wrap(images, "to_uint8", "to 8-bit")
    clock.wrap(flow.Noise, "__init__", "noise")
    clock.wrap(flow.Noise, "rows", "noise")
    caption = torch.ones(1, CAPTION, sizes.text_width)

    def draw(number: int) -> np.ndarray:
        latents = flow.noise(range(job.batch), sizes.latent_channels, job.height // 32, job.width // 32)
        pictures = decoder.decode(latents, 0.0, caption, seed=number * job.batch, num_inference_steps=1)
        return images.to_uint8(pictures)

    return Path(draw, _parameters(network), 1)


PATHS: dict[str, Callable[[Job, Clock], Path]] = {
    "l2p": student,
    "l2p-unet": lambda job, clock: student(job, clock, head="unet"),
    "l2p-multistep": lambda job, clock: student(job, clock, num_steps=job.student_steps),
    "vae": teacher,
    "vae-tiled": lambda job, clock: teacher(job, clock, "tiled"),
    "taesd": lambda job, clock: teacher(job, clock, "taesd"),
    "vae+lanczos": lambda job, clock: teacher(job, clock, shrink=4),
    "pid": pid,
    "l2p-pid": lambda job, clock: teacher(job, clock, "pid", shrink=4),
}


def _parameters(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def _text_encoder(job: Job) -> TextEncoder:
    tokenizer = build.build_tokenizer(PROMPTS, 512)
    sizes = build.TextSizes(**presets.find_preset(job.preset).text)
    model = build.build_text_encoder(sizes, len(tokenizer)).to(runtime.DTYPES[job.dtype])
    return TextEncoder(tokenizer, model.to(job.device))


def _transformer(preset: presets.Preset, channels: int) -> nn.Module:
    from diffusers import ZImageTransformer2DModel

    return ZImageTransformer2DModel(**preset.core, in_channels=channels, all_patch_size=(2,))


def _vae(sizes: build.VAESizes) -> nn.Module:
    """The decoder's own shape, with the attention of its middle block that SD, SDXL and Flux have."""
    from diffusers import AutoencoderKL

    levels = len(sizes.block_out_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(sizes.block_out_channels),
        layers_per_block=sizes.layers_per_block,
        latent_channels=sizes.latent_channels,
        norm_num_groups=sizes.norm_num_groups,
        sample_size=1024,  # tiles of 128 x 128 latents
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _taesd(sizes: build.VAESizes) -> nn.Module:
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(latent_channels=sizes.latent_channels)


def _vae_or_shape(vae: nn.Module, sizes: build.VAESizes) -> nn.Module:
    """What the teacher asks about latents; AutoencoderTiny has no such config, though the same latents."""
    if hasattr(vae.config, "block_out_channels"):
        return vae
    with torch.device("meta"):
        return _vae(sizes)


def _lanczos(arrays: np.ndarray, width: int, height: int) -> np.ndarray:
    from PIL import Image

    resize = Image.Resampling.LANCZOS
    return np.stack([np.asarray(Image.fromarray(a).resize((width, height), resize)) for a in arrays])
