"""Batches for a pixel diffusion decoder: windows of large pictures and the latents of the small versions, whole.

Item i of a stage is a pure function of (seed, stage, i): its picture, crop, noise, noise level and what is dropped.

Legend: s scale, f pixels of a latent cell, p patch side; N pictures [N, H, W, 3], their latents [V, N, c, H / (f s), W / (f s)]
in V versions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from l2p import flow
from l2p.artifacts import hash_tensors, recorded, reusable
from l2p.config import Fraction, config
from l2p.decoders.pid import LatentConditioning, PidSpec
from l2p.errors import UserError, warn
from l2p.images import Pictures, from_uint8, read_picture
from l2p.landscapes import load_world
from l2p.objectives.base import Batch
from l2p.picture_folder import PictureFolder, folder_captions
from l2p.runtime import autocast
from l2p.teachers import Teacher
from l2p.training.data import DistillDataModule, derive_seed

ENCODED_AT_ONCE = 32


@config
class NoiseConfig:
    """What of captions and latents is kept from the decoder."""

    share: Fraction = 0.75
    max_sigma: Fraction = 0.8
    caption_dropout: Fraction = 0.1
    latent_dropout: Fraction = 0.1


def folder_pictures(folder: Path, height: int, width: int, path: Path) -> tuple[Pictures, list[str]]:
    """The pictures of a folder, each filled into height x width pixels, as a memory-mapped array [N, H, W, 3] at ``path``;
    and their captions, from a text of a picture's name beside it or the folder's manifest, empty where there is none.

    Raises:
        UserError: no pictures, or one smaller than that: an enlarged picture has no detail to learn from.
    """
    listed = PictureFolder.read(folder)
    if not listed.pictures:
        raise UserError(f"pictures.folder {listed.none_found()}")
    files = [picture.path for picture in listed.pictures]
    known, notes = folder_captions(listed.path, [path for path in listed.path.iterdir() if path.is_file()])
    if notes:
        warn(f"{listed.path}: {', '.join(notes)}")
    captions = [known.get(file, "") for file in files]
    shape = (len(files), height, width, 3)
    made_from = {"files_sha256": listed.sha256, "height": height, "width": width}
    if not reusable(path, made_from):
        from PIL import Image, ImageOps

        with recorded(path, made_from) as partial:
            kept = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
            for place, file in zip(kept, files, strict=True):
                image = Image.fromarray(read_picture(file))
                if image.width < width or image.height < height:
                    raise UserError(
                        f"{file} is {image.height} x {image.width}, smaller than {height} x {width}"
                    )
                place[:] = np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS))
            kept.flush()
    return np.load(path, mmap_mode="r", allow_pickle=False), captions


@torch.no_grad()
def encode_versions(
    teacher: Teacher,
    pictures: Pictures,
    scale: int,
    first_seed: int | None,
    dtype: torch.dtype,
    path: Path | None,
    world: str = "landscapes",
    pictures_sha256: str | None = None,
) -> Tensor:
    """Normalised latents fp16 [V, N, c, h, w]: of the pictures averaged down, and of their scenes' own small renders.

    The two differ a little (37.7 dB): the first are the pictures', to the pixel; the second are what the teacher knows.

    Args:
        first_seed: of the scenes; None where the pictures are no renders, and V is 1.
        path: where they are kept; None keeps nothing.
        world: that the scenes are of.
        pictures_sha256: tells these pictures from others.
    """
    made_from = {
        "pictures_sha256": pictures_sha256,
        "count": len(pictures),
        "height": pictures.shape[1],
        "width": pictures.shape[2],
        "scale": scale,
        "first_seed": first_seed,
        "vae_sha256": hash_tensors(teacher.vae.state_dict()),
        "dtype": str(dtype).removeprefix("torch."),
        "device": torch.device(teacher.device).type,
    }
    if path is not None and reusable(path, made_from):
        return torch.from_numpy(np.load(path, allow_pickle=False))
    from rich.progress import track

    height, width = (side // scale for side in pictures.shape[1:3])
    versions: list[list[Tensor]] = [[]] if first_seed is None else [[], []]
    for start in track(range(0, len(pictures), ENCODED_AT_ONCE), description="latents"):
        large = from_uint8(pictures[start : start + ENCODED_AT_ONCE])
        small = [F.avg_pool2d(large, scale)]
        if first_seed is not None:
            seeds = range(first_seed + start, first_seed + start + len(large))
            small.append(from_uint8(load_world(world).render_batch(seeds, height, width)))
        for version, x in zip(versions, small, strict=True):
            with autocast(teacher.device, dtype):
                version.append(teacher.encode(x.to(teacher.device)).half().cpu())
    latents = torch.stack([torch.cat(version) for version in versions])
    if path is not None:
        with recorded(path, made_from) as partial, open(partial, "wb") as file:
            np.save(file, latents.numpy())
    return latents


class PidDataset(Dataset):
    """Items of one stage: dicts of image uint8 [crop, crop, 3], its window, latent, sigma, seed and prompt.

    Args:
        told: ``(number of a picture, random number) -> caption``.
        crop: pixels a side, a multiple of the patch side; the whole picture where it is no smaller.
        length: of the stage, in items.
        small_renders: share of items whose latents are of the scene's own small render.
    """

    def __init__(
        self,
        pictures: Pictures,
        latents: Tensor,
        told: Callable[[int, int], str],
        spec: PidSpec,
        noise: NoiseConfig,
        crop: int,
        seed: int,
        stage: str,
        length: int,
        small_renders: float,
    ) -> None:
        self.pictures, self.latents, self.told = pictures, latents, told
        self.spec, self.noise, self.crop = spec, noise, crop
        self.seed, self.stage, self.length, self.small_renders = seed, stage, length, small_renders

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng(derive_seed(self.seed, f"{self.stage}/item", index))
        number = int(rng.integers(len(self.pictures)))
        token = self.spec.patch_size
        window = [
            int(rng.integers((side - min(self.crop, side)) // token + 1)) for side in self.pictures.shape[1:3]
        ]
        places = [slice(token * start, token * start + self.crop) for start in window]
        version = int(rng.random() < self.small_renders) if len(self.latents) > 1 else 0
        z_0 = self.latents[version, number].float()
        sigma = rng.random() * self.noise.max_sigma if rng.random() < self.noise.share else 0.0
        if rng.random() < self.noise.latent_dropout:
            sigma = 1.0
        dropped = rng.random() < self.noise.caption_dropout
        told = self.told(number, int(rng.integers(2**31)))
        return {
            "image": self.pictures[(number, *places)],
            "window": window,
            "latent": z_0,
            "sigma": sigma,
            "seed": int(rng.integers(2**62)),
            "prompt": "" if dropped else told,
        }


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Items to images, windows, latents z_0, pixel noise, noisy latents, their levels, and prompts."""
    images = from_uint8(np.stack([item["image"] for item in items]))
    latents = torch.stack([item["latent"] for item in items])
    seeds, sigma = [item["seed"] for item in items], torch.tensor([item["sigma"] for item in items]).float()
    return {
        "images": images,
        "window": torch.tensor([item["window"] for item in items]),
        "latents": latents,
        "noise": flow.noise(seeds, 3, *images.shape[2:]),
        "noisy": flow.add_noise(latents, flow.noise([seed + 1 for seed in seeds], *latents.shape[1:]), sigma),
        "sigma": sigma,
        "prompts": [item["prompt"] for item in items],
    }


def to_batch(items: dict[str, Any], teacher: Teacher, device: torch.device | str) -> Batch:
    """A collated batch on a device, with its prompts encoded."""
    moved = {name: value.to(device) for name, value in items.items() if isinstance(value, Tensor)}
    captions = teacher.encode_prompts(items["prompts"]).to(device)
    conditioning = LatentConditioning.of(captions, moved["noisy"], moved["sigma"])
    conditioning.window = items["window"]
    return Batch(moved["images"], moved["latents"], moved["noise"], conditioning)


class PidDataModule(DistillDataModule):
    """Batches of one stage, made in this process: next to a step their cost is nothing. The items bring their own noise."""

    def __init__(self, dataset: PidDataset, *args: Any) -> None:
        super().__init__(dataset, *args, noise=None)

    def setup(self, stage: str) -> None:
        pass

    def train_dataloader(self) -> DataLoader:
        start = self.trainer.global_step if self.trainer is not None else 0
        order = range(start * self.batch_size, self.total_steps * self.batch_size)
        batches = [list(order[i : i + self.batch_size]) for i in range(0, len(order), self.batch_size)]
        return DataLoader(self.dataset, batch_sampler=Batches(batches, self.total_steps), collate_fn=collate)

    def to_batch(self, batch: dict[str, Any]) -> Batch:
        return to_batch(batch, self.teacher, batch["images"].device)


class Batches:
    """The batches that are left of a stage; its length is the whole stage's, as Lightning counts them."""

    def __init__(self, batches: list[list[int]], total_steps: int) -> None:
        self.batches, self.total_steps = batches, total_steps

    def __len__(self) -> int:
        return self.total_steps

    def __iter__(self):
        return iter(self.batches)
