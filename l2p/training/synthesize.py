"""The corpus of a recipe alone: prompts, lift, pictures; in one process or in many.

A distillation does the same in its first two stages. Here it runs by itself, so that a corpus can be looked at, shared by
`corpus.path`, and drawn by as many processes as there are, on one machine or on several that see the same folder. They
need no network among each other: the first makes what all need (prompts, lift), the others wait for its files, and each
draws shards of its own.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from l2p import runtime
from l2p.artifacts import read_sealed
from l2p.corpus import CorpusDataset
from l2p.corpus.dataset import verify
from l2p.corpus.manifest import drawn, read_manifest
from l2p.corpus.prompt_list import REPORT, needs_list
from l2p.corpus.synthesis import LIFT, WAIT, parts_of, the_prompts
from l2p.errors import UserError
from l2p.images import labelled_grid, save_png
from l2p.lift import Lift
from l2p.recipe import Recipe
from l2p.training.distill import check
from l2p.training.engine.progress import CONSOLE
from l2p.training.run_folder import RunFolder
from l2p.training.stages import Run, corpus_folder, draw_a_share, new_lift, shared_lift, weakness

GRID = "grid.png"
COLUMNS, ROWS = 6, 3  # of the grid


def share_of_the_environment() -> tuple[int, int]:
    """This process' number and how many there are, as torchrun tells; (0, 1) without it. Raises UserError."""
    told = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    rank, world_size = (int(text) if text.isdecimal() else -1 for text in told)
    if not 0 <= rank < world_size:
        raise UserError(f"RANK={told[0]} and WORLD_SIZE={told[1]} in the environment do not fit together")
    return rank, world_size


def run(
    recipe: Recipe, *, share: tuple[int, int] = (0, 1), prompts_only: bool = False, progress: bool = True
) -> dict[str, Any]:
    """Draw what is missing of a recipe's corpus; returns :func:`summary`.

    Args:
        share: number of this process and how many there are.
        prompts_only: gather and filter the prompts, and stop there.

    Raises:
        UserError: as :func:`~l2p.corpus.synthesis.synthesize`.
    """
    check(recipe)
    started = time.monotonic()
    runtime.setup(recipe.threads, recipe.seed)
    device = runtime.pick_device(recipe.device)
    if device.type == "cuda" and device.index is None:
        device = runtime.pick_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    dtype = runtime.pick_dtype(recipe.dtype, device)
    output = RunFolder(recipe.output_dir, asdict(recipe))
    if recipe.corpus.path is None:
        output.check_ours()
    context = Run(recipe, output, device, dtype, progress)
    folder = context.corpus_folder
    the_prompts(recipe.corpus, folder, recipe.seed, share)
    if not prompts_only:
        context.lift = _the_lift(context, share).to(device)
        draw_a_share(context, share)
        if summary(recipe, folder)["complete"]:
            save_grid(folder, recipe.corpus.num_pairs, share[0])
    return summary(recipe, folder) | {"seconds": round(time.monotonic() - started, 1)}


def _the_lift(context: Run, share: tuple[int, int]) -> Lift:
    """The lift in the corpus' folder, which the first process fits and the others wait for."""
    folder = context.corpus_folder
    if share[0] == 0 and shared_lift(context) is None:
        lift = new_lift(context)
        for line in weakness(lift.r2, context.recipe.lift.min_r2):
            CONSOLE.print(f"warning: {line}", style="yellow", highlight=False, soft_wrap=True)
        if is_begun(folder) and read_manifest(folder)["settings"]["lift"] != lift.sha256:
            raise UserError(
                f"the pairs in {folder} were coupled by another lift than the one fitted now, and theirs is not there: "
                "choose another corpus.path, or go on with the run that made them"
            )
        lift.save(folder / LIFT)
    while (lift := shared_lift(context)) is None:
        time.sleep(WAIT)
    return lift


def is_begun(folder: Path) -> bool:
    return any(folder.glob("manifest*.json"))


def summary(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """What there is of a recipe's corpus: numbers of pictures, shards and bytes, what was dropped, and the prompts."""
    shards = read_manifest(folder)["shards"] if is_begun(folder) else []
    prompts = read_sealed(folder / REPORT, "delete it") if (folder / REPORT).is_file() else None
    return {
        "folder": str(folder),
        "complete": sum(map(drawn, shards)) >= recipe.corpus.num_pairs,
        "pictures": sum(shard["count"] for shard in shards),
        "dropped_by_scorer": sum(len(shard.get("dropped", ())) for shard in shards),
        "wanted": recipe.corpus.num_pairs,
        "shards": len(shards),
        "bytes": sum(shard["bytes"] for shard in shards),
        "prompts": prompts and {name: prompts[name] for name in ("kept", "dropped")},
        "grid": str(folder / GRID) if (folder / GRID).is_file() else None,
    }


def verified(recipe: Recipe) -> dict[str, Any]:
    """Compare a recipe's corpus with its manifest, byte by byte. Raises UserError for the first thing that is wrong."""
    folder = corpus_folder(recipe)
    return {"folder": str(folder), **verify(folder)}


def plan(recipe: Recipe, world_size: int = 1) -> list[dict[str, str]]:
    """What :func:`run` would do, without doing it: rows of `step`, `state` (done, started, new, off) and `work`."""
    check(recipe)
    folder, config, teacher = corpus_folder(recipe), recipe.corpus, recipe.teacher
    there = summary(recipe, folder)
    sieve = ", filtered" if config.filters else ""
    model = f", written anew by {config.llm.model}" if config.llm else ""
    scorer = f", scored by {config.quality.scorer}" if config.quality else ""
    pictures = (
        f"{config.num_pairs} pictures of {teacher.width} x {teacher.height}, {config.num_inference_steps} steps of "
        f"{teacher.path}, in {-(-config.num_pairs // config.shard_size)} shards of {', '.join(parts_of(config))}, "
        f"{world_size} process{'es' if world_size > 1 else ''}{scorer}; at most {_bytes(recipe) / 1e6:,.0f} MB"
    )
    states = {
        "prompts": "off" if not needs_list(config) else "done" if there["prompts"] else "new",
        "lift": "done" if (folder / LIFT).is_file() else "new",
        "pictures": "done" if there["complete"] else "started" if there["shards"] else "new",
    }
    work = {
        "prompts": f"{config.num_prompts or 'all'} of {config.prompts}{model}{sieve}",
        "lift": f"fit on {recipe.lift.num_images} pictures",
        "pictures": pictures,
    }
    return [{"step": step, "state": state, "work": work[step]} for step, state in states.items()]


def _bytes(recipe: Recipe) -> int:
    """What the pictures take at most, which is before compression; latents apart."""
    return recipe.corpus.num_pairs * recipe.teacher.height * recipe.teacher.width * 3


def save_grid(folder: Path, num_pairs: int, rank: int = 0) -> None:
    """A sheet of pictures from all over the corpus, their prompts above them."""
    import numpy as np

    dataset = CorpusDataset(folder, num_pairs)
    rows = max(1, min(ROWS, len(dataset) // COLUMNS))
    count = min(COLUMNS * rows, len(dataset))
    items = [dataset[round(place)] for place in np.linspace(0, len(dataset) - 1, count)]
    sheets = []
    for first in range(0, count, COLUMNS):
        row = items[first : first + COLUMNS]
        pictures = np.stack([item["image"] for item in row])
        sheets.append(labelled_grid({"": pictures}, [item["prompt"] for item in row]))
    own = folder / f".grid-{rank}.png"  # two processes may finish at once
    save_png(np.concatenate(sheets), own)
    os.replace(own, folder / GRID)
