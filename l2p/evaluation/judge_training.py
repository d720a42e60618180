"""Training the judge on real renders: `l2p train-judge recipes/judge-landscapes.yaml`."""

from __future__ import annotations

import csv
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from l2p import runtime
from l2p.config import (
    BatchSize,
    Count,
    DTypeName,
    Int,
    LearningRate,
    Pixels,
    Seed,
    Text,
    Threads,
    Weight,
    config,
)
from l2p.evaluation.judge import FEATURES, SIZE, Judge, save_judge
from l2p.files import atomic_path, check_writable
from l2p.images import from_uint8
from l2p.landscapes import ATTRIBUTES, World, WorldName, load_world
from l2p.locks import holding_output_dir
from l2p.seeds import SEEDS, check_seeds

TRAIN_SEEDS = SEEDS["judge"].start
TEST_SEEDS = SEEDS["judge test"].start
_THUMBNAIL = 8  # side of the thumbnail that the features must be able to draw


@config
class JudgeRecipe:
    """What `recipes/judge-landscapes.yaml` may say."""

    name: Text = "judge-landscapes"
    output_dir: Text = "runs/${name}"
    seed: Seed = 0
    device: Text = "auto"
    dtype: DTypeName = "auto"
    threads: Threads | None = None
    world: WorldName = "landscapes"
    size: Pixels = SIZE
    num_images: Count = 12_000
    num_test_images: Count = 2_000
    epochs: Annotated[Int, Field(ge=1, le=10_000)] = 5
    batch_size: BatchSize = 64
    learning_rate: LearningRate = 3e-3
    weight_decay: Weight = 0.02
    thumbnail_weight: Weight = 0.3
    damage_weight: Weight = 0.3


class _Teaching(nn.Module):
    """The judge and what only its training needs."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.judge = Judge(size=size)
        self.thumbnail = nn.Linear(FEATURES, 3 * _THUMBNAIL**2)
        self.damage = nn.Linear(FEATURES, 2)

    def forward(self, images: Tensor, labels: Tensor, damage: Tensor, recipe: JudgeRecipe) -> Tensor:
        embedding = self.judge.embed(images)
        loss = sum(
            F.cross_entropy(logits.float(), labels[:, k])
            for k, logits in enumerate(self.judge.logits(embedding))
        )
        small = F.adaptive_avg_pool2d(images, _THUMBNAIL).flatten(1)
        loss = loss + recipe.thumbnail_weight * F.mse_loss(self.thumbnail(embedding).float(), small) * 10
        return loss + recipe.damage_weight * F.mse_loss(self.damage(embedding).float(), damage)


def augment(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Light damage of the kinds a decoder does: softness, noise, a tint, a shift of up to 2 px.

    Returns:
        images [B, 3, H, W] and the strength [B, 2] in [0, 1] of blur and noise. No mirroring: dawn is on the left.
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator).to(images.device)

    count, _, height, width = images.shape
    padded = F.pad(images, (2, 2, 2, 2), mode="replicate")
    shift = (uniform(2, count) * 5).long()
    rows = (torch.arange(height, device=images.device) + shift[0, :, None])[:, None, :, None]
    columns = (torch.arange(width, device=images.device) + shift[1, :, None])[:, None, None, :]
    which = torch.arange(count, device=images.device)[:, None, None, None]
    images = padded[which, torch.arange(3, device=images.device)[None, :, None, None], rows, columns]

    damage = uniform(count, 2) * (uniform(count, 2) < 0.6)
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=images.device) / 16  # a sigma of one pixel
    kernel = torch.outer(taps, taps).expand(3, 1, 5, 5)
    soft = F.conv2d(F.pad(images, (2, 2, 2, 2), mode="replicate"), kernel, groups=3)
    images = torch.lerp(images, soft, damage[:, :1, None, None])
    grain = torch.randn(images.shape, generator=generator).to(images.device)
    images = images + 0.06 * damage[:, 1:, None, None] * grain
    gain = 1 + 0.08 * (2 * uniform(count, 1, 1, 1) - 1) + 0.03 * (2 * uniform(count, 3, 1, 1) - 1)
    images = images * gain + 0.06 * (2 * uniform(count, 1, 1, 1) - 1)
    return images.clamp(-1, 1), damage


@holding_output_dir
def train(recipe: JudgeRecipe) -> Path:
    """Train, measure on unseen renders, and write ``output_dir/judge.safetensors`` and ``training.csv``."""
    from rich.progress import track

    runtime.setup(recipe.threads, recipe.seed)
    device = runtime.pick_device(recipe.device)
    dtype = runtime.pick_dtype(recipe.dtype, device)
    folder = Path(recipe.output_dir)
    check_writable(folder)
    start = time.perf_counter()
    seeds = check_seeds("judge", TRAIN_SEEDS, recipe.num_images, "num_images")
    check_seeds("judge test", TEST_SEEDS, recipe.num_test_images, "num_test_images")
    world, size = load_world(recipe.world), recipe.size
    pictures = np.empty((len(seeds), size, size, 3), np.uint8)
    for k in track(range(0, len(seeds), 100), description="rendering"):
        pictures[k : k + 100] = world.render_batch(seeds[k : k + 100], size, size)
    labels = torch.from_numpy(np.stack([world.scene(seed).labels for seed in seeds]))

    teaching = _Teaching(recipe.size).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(
        teaching.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    steps = recipe.epochs * (len(seeds) // recipe.batch_size)
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min((n + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * n / max(1, steps)) + 1e-3)
    )
    generator = torch.Generator().manual_seed(recipe.seed)
    log: list[dict] = []
    order = torch.empty(0, dtype=torch.long)
    for step in track(range(steps), description="training"):
        if len(order) < recipe.batch_size:
            order = torch.randperm(len(seeds), generator=generator)
        batch, order = order[: recipe.batch_size], order[recipe.batch_size :]
        images, damage = augment(from_uint8(pictures[batch.numpy()]).to(device), generator)
        with runtime.autocast(device, dtype):
            loss = teaching(images, labels[batch].to(device), damage, recipe)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(teaching.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0 or step == steps - 1:
            log.append(
                {
                    "step": step,
                    "loss": round(loss.item(), 5),
                    "seconds": round(time.perf_counter() - start, 1),
                }
            )

    judge = teaching.judge.half().float().eval()  # as it will be read back from the file
    judge.report = measure(judge, world, recipe.num_test_images)
    judge.report |= {
        "seconds": round(time.perf_counter() - start),
        "recipe": asdict(recipe) | {"output_dir": folder.name},
    }
    path = folder / "judge.safetensors"
    save_judge(judge, path)
    with atomic_path(folder / "training.csv") as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, list(log[0]))
        writer.writeheader()
        writer.writerows(log)
    return path


@torch.no_grad()
def measure(judge: Judge, world: World, num_images: int) -> dict:
    """Accuracy on unseen real renders, all attributes scored; sets the judge's feature scale and reference from them."""
    hits = torch.zeros(len(ATTRIBUTES), dtype=torch.float64)
    embeddings: list[Tensor] = []
    device = judge.project.weight.device
    for first in range(TEST_SEEDS, TEST_SEEDS + num_images, 100):
        seeds = range(first, min(first + 100, TEST_SEEDS + num_images))
        images = from_uint8(world.render_batch(seeds, judge.size, judge.size)).to(device)
        labels = torch.from_numpy(np.stack([world.scene(seed).labels for seed in seeds]))
        embedding = judge.embed(images)
        embeddings.append(embedding.double().cpu())
        guess = torch.stack([logits.argmax(1) for logits in judge.logits(embedding)], 1).cpu()
        hits += (guess == labels).double().sum(0)
    features = torch.cat(embeddings)
    scale = features.var(0).mean().rsqrt()
    judge.feature_scale.fill_(scale.item())
    judge.reference_mean.copy_(features.mean(0) * scale)
    judge.reference_covariance.copy_(torch.cov(features.T) * scale**2)
    accuracy = (hits / num_images).tolist()
    return {
        "accuracy": sum(accuracy) / len(accuracy),
        "accuracy_by_attribute": dict(zip(ATTRIBUTES, accuracy, strict=True)),
        "test_images": num_images,
    }
