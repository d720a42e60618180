"""The teacher draws: coupled noise in, pictures and latents out, into the shards of a corpus.

Sample ``i`` starts from the pixel noise of seed ``seed + i``, seen by the teacher through the lift (:mod:`l2p.noise`):
``eps_z = A^T eps`` is white, so the pair (``eps``, picture) is an exact end of one trajectory and not a guess.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from l2p import flow, images, runtime
from l2p.corpus.prompt_list import LIST, make_list, needs_list, read_report
from l2p.corpus.prompts import fingerprint, prompts_for, short_name
from l2p.corpus.quality import Scorer
from l2p.corpus.samples import FACTS, LATENT, Sample
from l2p.corpus.shards import ShardWriter
from l2p.errors import UserError
from l2p.locks import locked
from l2p.noise import latent_noise
from l2p.parallel import parallel_map, shares

if TYPE_CHECKING:
    from l2p.lift import Lift
    from l2p.recipe import CorpusConfig
    from l2p.teachers import Teacher

LIFT = "lift.safetensors"
WAIT = 0.5  # seconds between two looks for what another process makes


def synthesize(
    teacher: Teacher,
    lift: Lift,
    config: CorpusConfig,
    folder: str | Path,
    *,
    height: int,
    width: int,
    guidance_scale: float = 0.0,
    teacher_steps: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    progress: bool = True,
    share: tuple[int, int] = (0, 1),
) -> Path:
    """Draw the pairs of a corpus that are not on disk yet; returns the folder.

    Whole shards are kept, so a killed run continues where it was; every shard is drawn in batches that start at its
    first sample, so what was killed comes out as it would have without the kill. The prompts' list, where the recipe
    asks for one (:mod:`~l2p.corpus.prompt_list`), and the lift lie in the folder too.

    Args:
        config: all of it but ``path`` is read.
        height, width: of the pictures, in pixels.
        teacher_steps: what the solver "adams" comes near: the teacher's pictures of so many steps.
        dtype: the autocast dtype of the teacher's transformer and decoder.
        progress: show a bar with pictures a second and the time left.
        share: number of this process and how many there are; each draws every so many-th shard. The first one makes
            the list of prompts, the others wait for it.

    Raises:
        UserError: the folder holds a corpus made with other settings or is in use, the prompts cannot be read, the disk
            is full, or the teacher drew numbers that are not finite.
    """
    solver = _solver(teacher, config, teacher_steps)
    folder = Path(folder)
    with locked(folder, "corpus.path", f".lock-{share[0]}"):
        prompts = the_prompts(config, folder, seed, share)
        scorer = Scorer(config.quality) if config.quality else None
        settings = {
            "teacher": teacher.name,
            "revision": teacher.revision,
            "teacher_sha256": teacher.sha256,
            "num_inference_steps": config.num_inference_steps,
            "solver": config.solver,
            "guidance_scale": float(guidance_scale),
            "height": height,
            "width": width,
            "lift": lift.sha256,
            "seed": seed,
            "prompts": short_name(config.prompts),
            "prompts_sha256": fingerprint(prompts, seed),
            "dtype": str(dtype).removeprefix("torch."),
            "shard_size": config.shard_size,
            "noise_generator": config.noise_generator,
        }
        if config.quality:
            settings["quality"] = asdict(config.quality)
        writer = ShardWriter(folder, settings, config.num_pairs, parts_of(config), share)
        keep_lift(lift, folder, share)
        missing = writer.missing()
        left = sum(len(indices) for indices in missing)
        total = left if share[1] > 1 else config.num_pairs
        with _bar(total, total - left, progress and left > 0) as advance:
            for indices in missing:
                samples: list[Sample] = []
                dropped: list[tuple[int, float]] = []
                for first in range(indices.start, indices.stop, config.batch_size):
                    batch = range(first, min(first + config.batch_size, indices.stop))
                    texts = prompts_for(prompts, batch, seed)
                    drawn = _draw(
                        teacher,
                        lift,
                        config,
                        batch,
                        texts,
                        (height, width),
                        guidance_scale,
                        seed,
                        dtype,
                        solver,
                    )
                    kept, refused = scorer.sort(drawn) if scorer else (drawn, [])
                    samples += kept
                    dropped += refused
                    advance(len(batch))
                writer.write(indices, samples, dropped)
        writer.finish()
    return folder


def the_prompts(config: CorpusConfig, folder: Path, seed: int, share: tuple[int, int] = (0, 1)) -> str:
    """The source of the samples' prompts: the recipe's own, or the list that it asks for."""
    if not needs_list(config):
        return config.prompts
    if share[0] == 0:
        make_list(config, folder, seed)
    while read_report(config, folder, seed) is None:  # the first process makes it
        time.sleep(WAIT)
    return str(folder / LIST)


def training_prompts(config: CorpusConfig, folder: Path, seed: int) -> set[str]:
    """The prompts of a corpus' samples."""
    source = folder / LIST if (folder / LIST).is_file() else config.prompts
    return set(prompts_for(source, range(config.num_pairs), seed))


def keep_lift(lift: Lift, folder: Path, share: tuple[int, int] = (0, 1)) -> None:
    """Put a lift that tells how it was fitted beside the pairs that it coupled: who shares the corpus takes it from there."""
    if share[0] == 0 and lift.fitted is not None and not (folder / LIFT).exists():
        lift.save(folder / LIFT)


def parts_of(config: CorpusConfig) -> list[str]:
    """Suffixes of a sample's members."""
    parts = [f".{config.image_format}"]
    parts += [LATENT] if config.latents else []
    return [*parts, FACTS]


@torch.no_grad()
def _draw(
    teacher: Teacher,
    lift: Lift,
    config: CorpusConfig,
    indices: range,
    prompts: list[str],
    size: tuple[int, int],
    guidance_scale: float,
    seed: int,
    dtype: torch.dtype,
    solver: Callable[..., Tensor] | None,
) -> list[Sample]:
    seeds = [seed + index for index in indices]
    basis = lift.basis.to(teacher.device)
    eps_z = teacher.unpack(latent_noise(config.noise_generator, seeds, *size, basis))
    conditioning = teacher.encode_prompts(
        prompts
    )  # outside autocast: the encoder's cache outlives this stage

    def draw(some: slice) -> tuple[Tensor, Tensor]:
        z = teacher.sample(
            eps_z[some], conditioning[some], config.num_inference_steps, guidance_scale, solver=solver
        )
        z = z.to(torch.float16)  # as it is kept, so that the picture is the very one of the kept latent
        return z, teacher.decode(z.float()).float()

    parts = shares(len(seeds), teacher.device)
    with runtime.autocast(teacher.device, dtype), runtime.weights_in_autocast_dtype(teacher.transformer):
        drawn = parallel_map(draw, parts, teacher.device)
    z, pictures = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    if not (z.isfinite().all() and pictures.isfinite().all()):
        raise UserError(
            f"the teacher drew numbers that are not finite for the seeds {seeds[0]} to {seeds[-1]} in {dtype}: "
            "try dtype=fp32, or dtype=bf16 instead of fp16"
        )
    images_, latents = images.to_uint8(pictures), z.cpu().numpy()
    return [
        Sample(
            index,
            seeds[row],
            prompts[row],
            np.ascontiguousarray(images_[row]),
            latents[row] if config.latents else None,
        )
        for row, index in enumerate(indices)
    ]


def _solver(
    teacher: Teacher, config: CorpusConfig, teacher_steps: int | None
) -> Callable[..., Tensor] | None:
    """None is the teacher's own. The share of Euler's error is left in only where the teacher's steps are Euler's."""
    if config.solver == "teacher":
        return None
    check_solver(config, teacher_steps)
    return partial(flow.adams_bashforth, euler_steps=teacher_steps if teacher.solver is flow.euler else None)


def check_solver(config: CorpusConfig, teacher_steps: int | None) -> None:
    """Raises UserError where "adams", which saves steps, is to take more of them than the teacher."""
    if config.solver == "adams" and teacher_steps is not None and teacher_steps < config.num_inference_steps:
        raise UserError(
            f"corpus.num_inference_steps={config.num_inference_steps} is more than the teacher's own {teacher_steps} "
            "steps: corpus.solver=adams saves steps; take fewer, or solver=teacher"
        )


@contextmanager
def _bar(total: int, done: int, shown: bool) -> Iterator:
    """Yields a function that adds to the count of pictures drawn."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    from l2p.console import Console

    class Rate(ProgressColumn):
        def render(self, task) -> Text:
            return Text(
                f"{task.speed:.1f} pictures/s" if task.speed else "- pictures/s", style="progress.data.speed"
            )

    columns = (
        TextColumn("corpus"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not shown, speed_estimate_period=60) as bar:
        task = bar.add_task("corpus", total=total, completed=done)
        yield lambda count: bar.advance(task, count)
