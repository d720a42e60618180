"""Training the judge on real renders: `l2p train-judge recipes/judge-landscapes.yaml`."""

from __future__ import annotations

import math
import shutil
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
from l2p.images import Pictures, from_uint8
from l2p.landscapes import ATTRIBUTES, World, WorldName, load_world
from l2p.seeds import SEEDS, check_seeds
from l2p.training.engine.task import OptimConfig, Task, run_task, scaled
from l2p.training.run_folder import TrainingFolder

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


class JudgeFolder(TrainingFolder):
    """The folder of one judge's training."""

    kind = "train-judge"
    stages = ("judge",)
    no_effect = ("num_test_images",)  # which is measured anew


def train(recipe: JudgeRecipe, resume: bool = False) -> Path:
    """Train, measure on unseen renders, and write ``output_dir/judge.safetensors`` and ``training.csv``.

    Raises:
        UserError: a folder of something else, or with ``resume`` a training of other settings.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the step under way was finished and kept.
    """
    folder = JudgeFolder(recipe.output_dir, asdict(recipe))
    with folder.locked():
        folder.claim()
        if not resume:
            folder.clear()
        return _train(recipe, folder)


def _train(recipe: JudgeRecipe, folder: JudgeFolder) -> Path:
    from rich.progress import track

    runtime.setup(recipe.threads, recipe.seed)
    device = runtime.pick_device(recipe.device)
    dtype = runtime.pick_dtype(recipe.dtype, device)
    seeds = check_seeds("judge", TRAIN_SEEDS, recipe.num_images, "num_images")
    check_seeds("judge test", TEST_SEEDS, recipe.num_test_images, "num_test_images")
    world, size = load_world(recipe.world), recipe.size
    pictures = np.empty((len(seeds), size, size, 3), np.uint8)
    for k in track(range(0, len(seeds), 100), description="rendering"):
        pictures[k : k + 100] = world.render_batch(seeds[k : k + 100], size, size)
    labels = torch.from_numpy(np.stack([world.scene(seed).labels for seed in seeds]))
    teaching = _Teaching(size).to(device, memory_format=torch.channels_last)
    seconds = run_task(
        _task(recipe, teaching, pictures, labels, dtype), folder, "judge", device, scaled(dtype), ""
    )

    judge = teaching.judge.half().float().eval()  # as it will be read back from the file
    judge.report = measure(judge, world, recipe.num_test_images)
    judge.report |= {
        "seconds": round(seconds),
        "recipe": asdict(recipe) | {"output_dir": folder.path.name},
    }
    path = folder.path / "judge.safetensors"
    save_judge(judge, path)
    shutil.copyfile(folder.log("judge"), folder.path / "training.csv")
    return path


def _task(
    recipe: JudgeRecipe, teaching: _Teaching, pictures: Pictures, labels: Tensor, dtype: torch.dtype
) -> Task:
    """Epochs of fresh permutations and of fresh damage, all of one generator, whose state is kept with a checkpoint."""
    steps = recipe.epochs * (len(pictures) // recipe.batch_size)
    generator = torch.Generator().manual_seed(recipe.seed)
    order = torch.empty(0, dtype=torch.long)
    device = teaching.damage.weight.device

    def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        nonlocal order
        if len(order) < recipe.batch_size:
            order = torch.randperm(len(pictures), generator=generator)
        some, order = order[: recipe.batch_size], order[recipe.batch_size :]
        images, damage = augment(from_uint8(pictures[some.numpy()]).to(device), generator)
        return images, labels[some].to(device), damage

    def loss(batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        images, wanted, damage = batch
        with runtime.autocast(device, dtype):
            return {"judge": teaching(images, wanted, damage, recipe)}

    def restore(state: dict[str, Tensor]) -> None:
        nonlocal order
        order = state["order"]
        generator.set_state(state["generator"])

    def optimizer() -> tuple[torch.optim.Optimizer, _Schedule]:
        own = torch.optim.AdamW(teaching.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
        return own, _Schedule(own, recipe.learning_rate, steps)

    config = OptimConfig(
        steps=steps,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        ema_decay=0.0,  # the weights themselves
        checkpoint_every=max(1, steps // recipe.epochs),
    )
    return Task(
        teaching,
        config,
        loss,
        batch,
        optimizer=optimizer,
        state=lambda: {"order": order, "generator": generator.get_state()},
        restore=restore,
    )


class _Schedule:
    """A short rise, then half a cosine that ends above zero."""

    def __init__(self, optimizer: torch.optim.Optimizer, learning_rate: float, steps: int) -> None:
        self.optimizer, self.learning_rate, self.steps = optimizer, learning_rate, steps

    def step_update(self, step: int) -> None:
        rise = (step + 1) / max(1, self.steps // 20)
        fall = 0.5 + 0.5 * math.cos(math.pi * step / max(1, self.steps)) + 1e-3
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * min(rise, fall)


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
