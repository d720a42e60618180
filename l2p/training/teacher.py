"""Train a small Z-Image teacher on ``landscapes``: pictures -> VAE -> latents -> text encoder and transformer.

Each part leaves its result in the output folder, so that a stopped run goes on where it was.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2p import flow, images, runtime
from l2p.artifacts import hash_tensors
from l2p.checksums import write_checksums
from l2p.config import Count, DTypeName, Fraction, Pixels, Seed, Text, Threads, TimeShift, Weight, config
from l2p.errors import UserError
from l2p.evaluation.psnr_ssim import psnr
from l2p.files import write_json, write_text
from l2p.landscapes import WorldName, caption, load_world
from l2p.objectives.pairs import charbonnier, step_distance
from l2p.seeds import check_seeds
from l2p.teachers import build
from l2p.teachers.protocol import Conditioning
from l2p.teachers.z_image import ZImageTeacher
from l2p.training.arrays import fill_array
from l2p.training.engine.task import OptimConfig, Task, run_task
from l2p.training.run_folder import TrainingFolder

CHUNK = 128  # pictures that are drawn, or encoded, before the cache says so
EDGE = 1e-3  # where the VAE's distance turns from squared to absolute
CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# {name}

A small Z-Image pipeline ({size} px) trained on the procedural world `{world}` of the package `latent2pixel`.
`ZImagePipeline.from_pretrained` loads it. `recipe.yaml` made it, `training.json` and the two logs tell how long it took.
It knows that world and nothing else.
"""


@config
class PicturesConfig:
    """Renders to train on: ``count`` scenes of ``world`` from ``first_seed`` on."""

    world: WorldName = "landscapes"
    count: Count = 24576
    first_seed: Seed = 1_000_000
    height: Pixels = 128
    width: Pixels = 128

    def __post_init__(self) -> None:
        check_seeds("training", self.first_seed, self.count, "pictures.first_seed")


@config
class VAETraining:
    sizes: build.VAESizes = field(default_factory=build.VAESizes)
    optim: OptimConfig = field(default_factory=OptimConfig)
    count: Count | None = None
    crop: Pixels = 64
    full_size_from: Fraction = 0.85
    kl_weight: Weight = 2e-4
    edge_weight: Weight = 0.5
    mse_weight: Weight = 6.0


@config
class TransformerTraining:
    sizes: build.TransformerSizes = field(default_factory=build.TransformerSizes)
    text: build.TextSizes = field(default_factory=build.TextSizes)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(optimizer="muon"))
    caption_dropout: Fraction = 0.1
    time_shift: TimeShift = 2.0
    compile: bool = False


@config
class TeacherRecipe:
    name: Text = "teacher"
    output_dir: Text = "runs/${name}"
    seed: Seed = 0
    device: Text = "auto"
    dtype: DTypeName = "auto"
    threads: Threads | None = None
    pictures: PicturesConfig = field(default_factory=PicturesConfig)
    vae: VAETraining = field(default_factory=VAETraining)
    transformer: TransformerTraining = field(default_factory=TransformerTraining)
    scheduler_shift: TimeShift = 2.0


def run(recipe: TeacherRecipe, resume: bool = True) -> Path:
    """Train all parts; returns the folder of the finished ``ZImagePipeline``."""
    if recipe.transformer.compile and not any(map(shutil.which, ("g++", "clang++"))):
        raise UserError(
            "transformer.compile needs a C++ compiler: install g++, or set transformer.compile=false"
        )
    if recipe.dtype == "fp16":
        raise UserError("dtype is fp16, which trains a teacher only with a loss scale: set bf16 or fp32")
    output = TeacherFolder(recipe.output_dir, asdict(recipe))
    with output.locked():
        output.claim()
        if not resume:
            output.clear()
        return _run(recipe, output)


class TeacherFolder(TrainingFolder):
    """The folder of one teacher's training."""

    kind = "train-teacher"
    stages = ("vae", "transformer")
    no_effect = (  # more steps go on where fewer ended
        "vae.optim.steps", "vae.optim.checkpoint_every",
        "transformer.optim.steps", "transformer.optim.checkpoint_every", "transformer.compile",
    )  # fmt: skip


def _run(recipe: TeacherRecipe, output: TeacherFolder) -> Path:
    folder = output.path
    runtime.setup(recipe.threads, recipe.seed)
    device = runtime.pick_device(recipe.device)
    dtype = runtime.pick_dtype(recipe.dtype, device)
    precision = partial(runtime.autocast, device, dtype)
    pictures = render_pictures(recipe.pictures, folder / "pictures", recipe.threads, recipe.vae.count)
    torch.manual_seed(recipe.seed)
    vae, vae_seconds = train_vae(recipe, pictures, output, device, precision)
    pictures = render_pictures(recipe.pictures, folder / "pictures", recipe.threads)
    latents = encode_pictures(vae, pictures, recipe.pictures, folder / "latents.npy", device, dtype)
    torch.manual_seed(recipe.seed)
    pipeline, seconds = train_transformer(recipe, vae, latents, output, device, dtype)
    return package(pipeline, recipe, folder, {"vae": round(vae_seconds), "transformer": round(seconds)})


def draw_pictures(recipe: TeacherRecipe) -> Path:
    """Draw the pictures of a recipe and nothing else; returns their folder. A stopped run goes on where it was."""
    output = TeacherFolder(recipe.output_dir, asdict(recipe))
    output.claim()  # and no lock: several processes may draw at once
    render_pictures(recipe.pictures, output.path / "pictures", recipe.threads)
    return output.path / "pictures"


def render_pictures(
    config: PicturesConfig, folder: Path, workers: int | None, first: int | None = None
) -> np.ndarray:
    """Pictures [N, H, W, 3] uint8, rendered on all cores and kept on disk, as a memory-mapped array.

    Args:
        first: only so many are needed now; the others are drawn by a later call.

    Raises:
        UserError: the folder holds pictures of another world, other seeds or another size.
    """
    world = load_world(config.world)
    folder.mkdir(parents=True, exist_ok=True)
    shape = (config.count, config.height, config.width, 3)
    about = {
        "world": config.world,
        "fingerprint": world.fingerprint(config.height, config.width),
        "first_seed": config.first_seed,
    }
    draw = partial(_draw, config.world, config.first_seed, config.height, config.width)
    path = folder / f"{config.height}x{config.width}.npy"
    return fill_array(
        path, shape, np.uint8, about, draw, CHUNK, "pictures", first, workers or runtime.usable_cores()
    )


def _draw(world: str, first_seed: int, height: int, width: int, start: int, stop: int) -> np.ndarray:
    return load_world(world).render_batch(range(first_seed + start, first_seed + stop), height, width)


def train_vae(recipe, pictures, output: TeacherFolder, device, precision) -> tuple[nn.Module, float]:
    """Autoencoder on crops, then on whole pictures; latents are scaled to zero mean and unit variance."""
    config = recipe.vae
    height, width = pictures.shape[1:3]
    vae = build.build_vae(config.sizes, sample_size=height).to(device)
    world = load_world(recipe.pictures.world)
    held_out = images.from_uint8(world.render_batch(range(16), height, width)).to(device)
    if config.count is not None:
        pictures = pictures[: config.count]

    def loss(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([recipe.seed, 1, step])
        batch, crop = config.optim.batch_size, config.crop
        if step >= config.full_size_from * config.optim.steps:
            batch, crop = max(1, batch * crop**2 // (height * width)), None
        index = rng.integers(len(pictures), size=batch)
        if crop is None:
            x = pictures[index]
        else:
            rows, columns = (
                rng.integers(height - crop + 1, size=batch),
                rng.integers(width - crop + 1, size=batch),
            )
            x = np.stack(
                [
                    pictures[i, r : r + crop, c : c + crop]
                    for i, r, c in zip(index, rows, columns, strict=True)
                ]
            )
        flips = rng.random(batch) < 0.5
        x = np.where(flips[:, None, None, None], x[:, :, ::-1], x)
        x = images.from_uint8(np.ascontiguousarray(x)).to(device)
        with precision():
            posterior = vae.encode(x).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(step)).to(
                device
            )
            y = vae.decode(posterior.mean + posterior.std * noise).sample
        y = y.float()
        return {
            "pixel": charbonnier(y, x, EDGE),
            "edge": config.edge_weight * step_distance(y, x, EDGE),
            "mse": config.mse_weight * F.mse_loss(y, x),
            "kl": config.kl_weight * posterior.kl().mean() / posterior.mean[0].numel(),
        }

    @torch.no_grad()
    def preview(network: nn.Module, path: Path) -> None:
        y = torch.cat([network.decode(network.encode(x).latent_dist.mean).sample for x in held_out.split(4)])
        quality = float(psnr(y.clamp(-1, 1), held_out).mean())
        with (output.path / "vae-held-out.csv").open("a") as file:
            file.write(f"{path.stem.rpartition('-')[2]},{quality:.2f}\n")
        rows = {
            "picture": images.to_uint8(held_out[:8]),
            f"VAE, {quality:.2f} dB": images.to_uint8(y[:8]),
        }
        images.save_png(images.labelled_grid(rows), path)

    task = Task(vae, config.optim, loss, preview=preview)
    seconds = run_task(task, output, "vae", device, section="vae.optim")
    with torch.no_grad():
        sample = images.from_uint8(pictures[:1024]).to(device)
        latents = torch.cat([vae.encode(part).latent_dist.mean for part in sample.split(16)])
    vae.register_to_config(scaling_factor=1 / float(latents.std()), shift_factor=float(latents.mean()))
    return vae, seconds


@torch.no_grad()
def encode_pictures(vae, pictures, config: PicturesConfig, path: Path, device, dtype) -> Tensor:
    """Normalised latents [N, c, h, w] in fp16 of all pictures that `config` names, kept on disk; those of other pictures or
    of another VAE are made anew."""

    def encode(start: int, stop: int) -> np.ndarray:
        parts = []
        for x in images.from_uint8(np.asarray(pictures[start:stop])).split(32):
            with runtime.autocast(device, dtype):
                raw = vae.encode(x.to(device)).latent_dist.mean
            parts.append(((raw.float() - vae.config.shift_factor) * vae.config.scaling_factor).half().cpu())
        return torch.cat(parts).numpy()

    made_from = {f"pictures.{key}": value for key, value in asdict(config).items()}
    made_from |= {
        "renderer_sha256": load_world(config.world).fingerprint(config.height, config.width),
        "vae_sha256": hash_tensors(vae.state_dict()),
        "scaling": [vae.config.shift_factor, vae.config.scaling_factor],
        "dtype": str(dtype).removeprefix("torch."),
        "device": device.type,
    }
    shape = (len(pictures), *encode(0, 1).shape[1:])
    latents = fill_array(path, shape, np.float16, made_from, encode, CHUNK, "latents", anew=True)
    return torch.from_numpy(np.array(latents))


class PromptedVelocity(nn.Module):
    """What trains: tokens of a prompt and noisy latents in, velocity out."""

    def __init__(self, teacher: ZImageTeacher) -> None:
        super().__init__()
        self.transformer, self.text_encoder = teacher.transformer, teacher.text_encoder.model
        self._teacher = [teacher]  # in a list, so that nothing of it is registered twice

    def forward(self, z_t: Tensor, t: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        (teacher,) = self._teacher
        features = teacher.text_encoder.features(ids, mask) * mask[..., None]
        return teacher.velocity(z_t, t, Conditioning(features, mask.sum(1)))


def train_transformer(recipe, vae, latents, output: TeacherFolder, device, dtype):
    """Flow matching in latents; text encoder and transformer learn together."""
    config, pictures = recipe.transformer, recipe.pictures
    seeds = range(pictures.first_seed, pictures.first_seed + pictures.count)
    world = load_world(pictures.world)
    scenes = [world.scene(seed) for seed in seeds]
    tokenizer = build.build_tokenizer([caption(s) for s in scenes[:4096]], config.text.vocab_size)
    text_encoder = build.build_text_encoder(config.text, len(tokenizer))
    transformer = build.build_transformer(config.sizes, latents.shape[1], config.text.hidden_size)
    pipeline = build.build_pipeline(vae, transformer, text_encoder, tokenizer, recipe.scheduler_shift).to(
        device
    )
    teacher = ZImageTeacher(pipeline, name=recipe.name)
    teacher.text_encoder.cache_size = 0
    network = PromptedVelocity(teacher).requires_grad_(True)
    if device.type == "cpu":  # for sequences this short, half the time of the fused backward pass
        transformer.set_attention_backend("_native_math")
    if config.compile:
        for layer in (*transformer.noise_refiner, *transformer.context_refiner, *transformer.layers):
            layer.compile()

    def loss(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([recipe.seed, 2, step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        batch = config.optim.batch_size
        index = rng.integers(len(latents), size=batch)
        prompts = [
            "" if rng.random() < config.caption_dropout else caption(scenes[i], int(rng.integers(2**31)))
            for i in index
        ]
        z_0 = latents[index].float().to(device)
        eps = torch.randn(z_0.shape, generator=generator).to(device)
        t = flow.shift_time(torch.sigmoid(torch.randn(batch, generator=generator)), config.time_shift).to(
            device
        )
        ids, mask = teacher.text_encoder.tokenize(prompts)
        u = runtime.call_in(dtype, network, flow.add_noise(z_0, eps, t), t, ids.to(device), mask.to(device))
        return {"flow": F.mse_loss(u.float(), flow.velocity(z_0, eps))}

    prompts = [caption(world.scene(seed)) for seed in range(16)]
    truth = world.render_batch(range(16), pictures.height, pictures.width)
    shape = teacher.geometry.latent_shape(pictures.height, pictures.width)

    @torch.no_grad()
    def preview(_: nn.Module, path: Path) -> None:
        with runtime.autocast(device, dtype):
            z = teacher.sample(
                flow.noise(range(16), *shape).to(device), teacher.encode_prompts(prompts), 20, 1.0
            )
            drawn = images.to_uint8(teacher.decode(z.float()).float())
        rows = {}
        for half in (slice(0, 8), slice(8, 16)):
            rows[f"render {half.start}"], rows[f"teacher {half.start}"] = truth[half], drawn[half]
        images.save_png(images.labelled_grid(rows), path)

    output.inputs["transformer.vae.sha256"] = hash_tensors(vae.state_dict())
    task = Task(network, config.optim, loss, preview=preview)
    seconds = run_task(task, output, "transformer", device, section="transformer.optim")
    return pipeline, seconds


def package(pipeline, recipe: TeacherRecipe, folder: Path, seconds: dict[str, int]) -> Path:
    """Write ``folder/pipeline``: fp16 weights, a card, the recipe and the logs that tell how they came about."""
    from omegaconf import OmegaConf

    out = folder / "pipeline"
    pipeline.to(dtype=torch.float16).save_pretrained(out, safe_serialization=True)
    write_checksums(out)
    pipeline.to(dtype=torch.float32)
    write_text(out / "recipe.yaml", OmegaConf.to_yaml(OmegaConf.structured(recipe)))
    write_json(out / "training.json", {"seconds": seconds, "torch": torch.__version__})
    for name in ("vae", "transformer"):
        shutil.copyfile(folder / "logs" / f"{name}.csv", out / f"{name}-log.csv")
    write_text(
        out / "README.md",
        CARD.format(name=recipe.name, size=recipe.pictures.height, world=recipe.pictures.world),
    )
    return out
