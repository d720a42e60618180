"""Teach a patch head to decode, before there is a student: latents in, pictures out, no core.

The head starts from the lift's linear draft of the latents and learns what that lacks, from renders and from blends of two
pictures' latents. A blend is what a core that hesitates between two pictures guesses; what the teacher's decoder makes
of it is the target, so that the head stays as sharp there as the decoder is.
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

from l2p import images, runtime
from l2p.config import (
    Count,
    DTypeName,
    Fraction,
    Pixels,
    PositiveFraction,
    Seed,
    Text,
    Threads,
    Weight,
    config,
)
from l2p.evaluation.psnr_ssim import psnr
from l2p.features import PerceptualDistance
from l2p.files import atomic_path, write_json
from l2p.landscapes import load_world
from l2p.lift import fit_readout, neighbourhoods
from l2p.objectives.pairs import charbonnier, squared_distance, step_distance
from l2p.patches import patchify
from l2p.recipe import HeadConfig
from l2p.students.build import head_config
from l2p.students.heads import PatchHead
from l2p.students.heads.pretrained import FOLDER, cut_core, save_head
from l2p.teachers import Teacher, load_teacher, teacher_sha256
from l2p.training.engine.task import OptimConfig, Task, run_task, scaled
from l2p.training.run_folder import TrainingFolder
from l2p.training.teacher import PicturesConfig, encode_pictures, render_pictures

EDGE = 1e-3  # where a distance turns from squared to absolute


@config
class LossConfig:
    """Weights of the terms, as `pairs` has them."""

    pixel: Weight = 1.0
    gradient: Weight = 0.5
    squared: Weight = 8.0
    perceptual: Weight = 0.5
    perceptual_fraction: PositiveFraction = 1 / 3


@config
class HeadRecipe:
    name: Text = "head"
    output_dir: Text = "runs/${name}"
    seed: Seed = 0
    device: Text = "auto"
    dtype: DTypeName = "auto"
    threads: Threads | None = None
    teacher: Text = "landscapes"
    pictures: PicturesConfig = field(default_factory=PicturesConfig)
    readout_images: Count = 256
    head: HeadConfig = field(default_factory=HeadConfig)
    crop: Pixels = 64
    blends: Fraction = 0.25
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(optimizer="muon"))


def run(recipe: HeadRecipe, resume: bool = True) -> Path:
    """Train; returns the folder of the finished head.

    Raises:
        UserError: a folder of something else, or with ``resume`` a training of other settings.
    """
    folder = HeadFolder(recipe.output_dir, asdict(recipe), {"teacher.sha256": teacher_sha256(recipe.teacher)})
    with folder.locked():
        folder.claim()
        if not resume:
            folder.clear()
        return _run(recipe, folder)


class HeadFolder(TrainingFolder):
    """The folder of one head's training."""

    kind = "train-head"
    stages = ("head",)
    no_effect = ("optim.steps", "optim.checkpoint_every")  # more steps go on where fewer ended


def _run(recipe: HeadRecipe, output: HeadFolder) -> Path:
    folder = output.path
    runtime.setup(recipe.threads, recipe.seed)
    device = runtime.pick_device(recipe.device)
    dtype = runtime.pick_dtype(recipe.dtype, device)
    precision = partial(runtime.autocast, device, dtype)
    teacher = load_teacher(recipe.teacher, output.pinned_teacher(recipe.teacher), device)
    teacher.vae.requires_grad_(False)
    config = head_config(recipe.head, teacher.geometry)
    pictures = render_pictures(recipe.pictures, folder / "pictures", recipe.threads)
    latents = encode_pictures(teacher.vae, pictures, recipe.pictures, folder / "latents.npy", device, dtype)
    torch.manual_seed(recipe.seed)
    head = new_head(recipe, config, teacher, pictures, latents).to(device)
    distance = PerceptualDistance("encoder", teacher)
    loss = partial(_loss, recipe, head, teacher, pictures, latents, precision, distance)
    task = Task(head, recipe.optim, loss, preview=_preview(recipe, teacher, precision))
    seconds = run_task(task, output, "head", device, scaled(dtype))
    with atomic_path(folder / FOLDER) as out:
        save_head(head, out, config, torch.float16)
        shutil.copyfile(output.log("head"), out / "head-log.csv")
        write_json(out / "training.json", {"seconds": round(seconds), "recipe": asdict(recipe)})
    return folder / FOLDER


def new_head(
    recipe: HeadRecipe, config: dict, teacher: Teacher, pictures: np.ndarray, latents: Tensor
) -> PatchHead:
    """A head whose draft is fitted to the first pictures, and of which only what needs no core trains."""
    knobs = {key: value for key, value in config.items() if key not in ("kind", "patch_size", "latent_dim")}
    head = PatchHead(1, 1, config["patch_size"], config["latent_dim"], **knobs)
    count = recipe.readout_images
    tokens = patchify(images.from_uint8(pictures[:count]), config["patch_size"]).flatten(0, 2)
    around = neighbourhoods(teacher.pack(latents[:count].float())).flatten(0, 2)
    (weight, bias), _ = fit_readout(tokens, around)
    with torch.no_grad():
        head.readout.weight.copy_(weight)
        head.readout.bias.copy_(bias)
    cut_core(head)
    for name, parameter in head.named_parameters():
        parameter.requires_grad_(
            not name.startswith(("open.", "final.", "readout.")) and ".modulation." not in name
        )
    return head


def _loss(
    recipe: HeadRecipe,
    head: PatchHead,
    teacher: Teacher,
    pictures: np.ndarray,
    latents: Tensor,
    precision: partial,
    distance: PerceptualDistance,
    step: int,
) -> dict[str, Tensor]:
    rng = np.random.default_rng([recipe.seed, 3, step])
    x, z = _crops(recipe, teacher, pictures, latents, rng)
    blends = round(recipe.blends * len(z))
    mask = torch.from_numpy(rng.uniform(0, 1, size=(blends, 1, 3, 3)).astype(np.float32)).to(z.device)
    mask = F.interpolate(mask, size=z.shape[2:], mode="bilinear", align_corners=True)
    blended = z[:blends] * (1 - mask) + z[blends : 2 * blends] * mask
    weights = recipe.loss
    with precision():
        with torch.no_grad():
            decoded = teacher.decode(blended).clamp(-1, 1).float()
        x = torch.cat([decoded, x[blends:]])
        y = head.decode(teacher.pack(torch.cat([blended, z[blends:]])))
        every = max(1, round(1 / weights.perceptual_fraction))
        perceptual = distance(y[::every], x[::every]).float().mean()
    y = y.float()
    return {
        "pixel": weights.pixel * charbonnier(y, x, EDGE),
        "gradient": weights.gradient * step_distance(y, x, EDGE),
        "squared": weights.squared * squared_distance(y, x),
        "perceptual": weights.perceptual * perceptual,
    }


def _crops(
    recipe: HeadRecipe, teacher: Teacher, pictures: np.ndarray, latents: Tensor, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Crops on whole tokens: pictures [B, 3, crop, crop] and their latents."""
    batch, crop, geometry = recipe.optim.batch_size, recipe.crop, teacher.geometry
    token, cell = geometry.token_pixels, geometry.compression
    index = rng.integers(len(pictures), size=batch)
    rows, columns = (
        token * rng.integers((side - crop) // token + 1, size=batch) for side in pictures.shape[1:3]
    )
    places = list(zip(index, rows, columns, strict=True))
    x = np.stack([pictures[i, r : r + crop, c : c + crop] for i, r, c in places])
    z = [latents[i, :, r // cell : (r + crop) // cell, c // cell : (c + crop) // cell] for i, r, c in places]
    device = next(teacher.vae.parameters()).device
    return images.from_uint8(x).to(device), torch.stack(z).float().to(device)


def _preview(recipe: HeadRecipe, teacher: Teacher, precision: partial):
    """Draws unseen renders, and blends of them, as the head and as the decoder paint them."""
    config = recipe.pictures
    renders = load_world(config.world).render_batch(range(16), config.height, config.width)
    x = images.from_uint8(renders).to(next(teacher.vae.parameters()).device)

    @torch.no_grad()
    def preview(head: nn.Module, path: Path) -> None:
        z = teacher.encode(x)
        blend = (z + z.flip(0)) / 2
        with precision():
            drawn, drawn_blend = (head.decode(teacher.pack(v)).float().clamp(-1, 1) for v in (z, blend))
        decoded = teacher.decode(blend).clamp(-1, 1)
        rows = {
            "picture": x,
            f"head, {float(psnr(drawn, x).mean()):.2f} dB": drawn,
            "decoder of blends": decoded,
            f"head, {float(psnr(drawn_blend, decoded).mean()):.2f} dB": drawn_blend,
        }
        images.save_png(images.labelled_grid({k: images.to_uint8(v[:8]) for k, v in rows.items()}), path)

    return preview
