"""What fits: the counted bytes of a recipe's stages on so many GPUs, and the smallest change that makes them fit.

The rules by which bytes are shared out, on top of what `training/memory.py` counts:

- DDP: every process has all weights, gradients, optimiser states and the average; its buckets are the gradients' own.
- FSDP2: a share of each; beside it, whole, what is in no block, two blocks' weights (one at work, the next on its way) and
  two blocks' gradients (one being made, one being sent).
- Muon's products hold one gathered matrix at a time; it is smaller than a block and comes when these are gone.
- A sharded teacher: a share of its blocks and two whole ones; an offloaded one has no share on the GPU.
- Activations: those of `batch_size / (gpus * accumulate)` pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from l2p.errors import UserError
from l2p.recipe import Recipe, StageConfig
from l2p.training.distill import TRAINING, check_stages
from l2p.training.memory import StageBytes, stage_bytes

HEADROOM = 0.9  # of a GPU's memory; the rest is for CUDA's context, NCCL's buffers and fragmentation
WHOLE_BATCH = ("drift", "adversarial", "distribution")  # objectives that do not accumulate


@dataclass(frozen=True)
class Way:
    """How a stage is run: what the planner may turn, the pictures' number in a step being left alone."""

    gradient_checkpointing: bool
    strategy: str
    teacher: str
    accumulate: int

    def overrides(self, other: Way, stage: str) -> list[str]:
        """What to say to the recipe of `other` to get this."""
        said = {
            "student.gradient_checkpointing": "gradient_checkpointing",
            "parallel.strategy": "strategy",
            "parallel.teacher": "teacher",
            f"{stage}.accumulate": "accumulate",
        }
        return [
            f"{key}={str(getattr(self, name)).lower()}"
            for key, name in said.items()
            if getattr(self, name) != getattr(other, name)
        ]


def plan(recipe: Recipe, gpus: int, vram: int) -> list[dict[str, Any]]:
    """Count every enabled training stage.

    Args:
        gpus: processes, one a GPU.
        vram: bytes of each.

    Returns:
        a row a stage: ``stage``, ``pictures`` (at a time on a GPU), ``bytes`` by kind, ``total``, ``budget``, ``fits``,
        ``change`` (overrides that make it fit, [] where it fits, None where none of those known does), ``total_after``,
        ``bytes_after``, ``notes``.

    Raises:
        UserError: a mistake in the recipe, or a batch that so many GPUs cannot share.
    """
    check_stages(recipe)
    stages = [stage for stage in TRAINING if getattr(recipe, stage).enabled]
    if not stages:
        raise UserError("no training stage is enabled: there is nothing to plan")
    return [_plan_stage(recipe, stage, gpus, vram) for stage in stages]


def _plan_stage(recipe: Recipe, stage: str, gpus: int, vram: int) -> dict[str, Any]:
    config: StageConfig = getattr(recipe, stage)
    if config.batch_size % (gpus * config.accumulate):
        raise UserError(
            f"{stage}.batch_size is {config.batch_size}, which {gpus} GPUs with accumulate={config.accumulate} cannot "
            f"share evenly: take a multiple of {gpus * config.accumulate}"
        )

    @lru_cache(maxsize=2)
    def counted(checkpointing: bool) -> StageBytes:
        return stage_bytes(recipe, stage, checkpointing)

    def needs(way: Way) -> dict[str, int]:
        pictures = config.batch_size // (gpus * way.accumulate)
        return shared_out(counted(way.gradient_checkpointing), way, gpus, pictures)

    asked = Way(
        recipe.student.gradient_checkpointing,
        recipe.parallel.strategy if gpus > 1 else "ddp",
        recipe.parallel.teacher if gpus > 1 else "whole",
        config.accumulate,
    )
    found, budget = needs(asked), int(HEADROOM * vram)
    fits = sum(found.values()) <= budget
    better = (
        asked if fits else next((w for w in ways(asked, config, gpus) if _total(needs(w)) <= budget), None)
    )
    after = needs(better) if better else {}
    return {
        "stage": stage,
        "pictures": config.batch_size // (gpus * config.accumulate),
        "bytes": found,
        "total": _total(found),
        "budget": budget,
        "fits": fits,
        "change": None if better is None else better.overrides(asked, stage),
        "bytes_after": after,
        "total_after": _total(after) if better else None,
        "notes": [
            f"not counted: the objective {name}" for name in counted(asked.gradient_checkpointing).uncounted
        ],
    }


def _total(needed: dict[str, int]) -> int:
    return sum(needed.values())


def ways(asked: Way, config: StageConfig, gpus: int) -> Iterator[Way]:
    """Other ways to run a stage with the same results, those that cost the least time first."""
    alone = any(name in config.objectives for name in WHOLE_BATCH)
    share = config.batch_size // gpus
    steps = [
        n
        for n in range(asked.accumulate, share + 1)
        if share % n == 0 and not (alone and n > asked.accumulate)
    ]
    kept = {"whole": 0, "sharded": 1, "offloaded": 2}
    teachers = [t for t in kept if kept[t] >= kept[asked.teacher] and (gpus > 1 or t == "whole")]
    strategies = ["ddp", "fsdp"] if asked.strategy == "ddp" and gpus > 1 else [asked.strategy]
    for checkpointing in sorted({asked.gradient_checkpointing, True}):
        for teacher in teachers:
            for strategy in strategies:
                for accumulate in steps:
                    yield Way(checkpointing, strategy, teacher, accumulate)


def shared_out(counted: StageBytes, way: Way, gpus: int, pictures: int) -> dict[str, int]:
    """Bytes on one GPU, by kind."""
    share = gpus if way.strategy == "fsdp" and gpus > 1 else 1
    gathered = 0
    if share > 1:
        gathered = 2 * counted.rest + 4 * counted.largest_block
    teacher = counted.denoiser + counted.vae + counted.text
    if way.teacher != "whole":
        kept = counted.blocks // gpus if way.teacher == "sharded" else 0
        teacher += kept - counted.blocks + 2 * counted.denoiser_block
    return {
        "weights": counted.weights // share,
        "gradients": counted.gradients // share,
        "optimizer": counted.optimizer // share,
        "average": counted.average // share,
        "gathered": gathered,
        "teacher": teacher,
        "critics": counted.critics,
        "activations": counted.activations(pictures),
    }
