"""The teacher draws: coupled noise in, pictures and latents out, into the shards of a corpus.

Sample ``i`` starts from the pixel noise of seed ``seed + i``, seen by the teacher through the lift:
``eps_z = A^T eps`` is white, so the pair (``eps``, picture) is an exact end of one trajectory and not a guess.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from l2p import flow, images, runtime
from l2p.corpus.prompts import LANDSCAPES, fingerprint, prompts_for
from l2p.corpus.shards import Sample, ShardWriter
from l2p.errors import UserError
from l2p.patches import patchify

if TYPE_CHECKING:
    from l2p.lift import Lift
    from l2p.recipe import CorpusConfig
    from l2p.teachers import Teacher


def latent_noise(teacher: Teacher, lift: Lift, eps: Tensor) -> Tensor:
    """Latent noise [B, c, H/f, W/f] that the lift couples to pixel noise ``eps`` [B, 3, H, W]; white if ``eps`` is."""
    return teacher.unpack(lift.noise_to_latent(patchify(eps, teacher.geometry.token_pixels)))


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
) -> Path:
    """Draw the pairs of a corpus that are not on disk yet; returns the folder.

    Whole shards are kept, so a killed run continues where it was; every shard is drawn in batches that start at its
    first sample, so what was killed comes out as it would have without the kill.

    Args:
        config: ``num_pairs``, ``prompts``, ``num_inference_steps``, ``solver``, ``batch_size`` and ``shard_size`` are read.
        height, width: of the pictures, in pixels.
        teacher_steps: what the solver "adams" comes near: the teacher's pictures of so many steps.
        dtype: the autocast dtype of the teacher's transformer and decoder.
        progress: show a bar with pictures a second and the time left.

    Raises:
        UserError: the folder holds a corpus made with other settings, the prompts cannot be read, the disk is full,
            or the teacher drew numbers that are not finite.
    """
    if config.batch_size < 1:
        raise UserError(f"corpus.batch_size must be at least 1, got {config.batch_size}")
    settings = {
        "teacher": teacher.name,
        "revision": teacher.revision,
        "weights": weights_fingerprint(teacher.transformer),
        "num_inference_steps": config.num_inference_steps,
        "solver": config.solver,
        "guidance_scale": float(guidance_scale),
        "height": height,
        "width": width,
        "lift": lift_fingerprint(lift),
        "seed": seed,
        "prompts": LANDSCAPES if config.prompts == LANDSCAPES else Path(config.prompts).name,
        "prompts_sha256": fingerprint(config.prompts, seed),
        "dtype": str(dtype).removeprefix("torch."),
        "shard_size": config.shard_size,
    }
    solver = _solver(teacher, config, teacher_steps)
    writer = ShardWriter(folder, settings, config.num_pairs)
    missing = writer.missing()
    left = sum(len(indices) for indices in missing)
    with _bar(config.num_pairs, config.num_pairs - left, progress and left > 0) as advance:
        for indices in missing:
            samples: list[Sample] = []
            for first in range(indices.start, indices.stop, config.batch_size):
                batch = range(first, min(first + config.batch_size, indices.stop))
                prompts = prompts_for(config.prompts, batch, seed)
                samples += _draw(
                    teacher,
                    lift,
                    config,
                    batch,
                    prompts,
                    (height, width),
                    guidance_scale,
                    seed,
                    dtype,
                    solver,
                )
                advance(len(batch))
            writer.write(samples)
    return Path(folder)


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
    eps_z = latent_noise(teacher, lift, flow.noise(seeds, 3, *size)).to(teacher.device)
    conditioning = teacher.encode_prompts(
        prompts
    )  # outside autocast: the encoder's cache outlives this stage
    with runtime.autocast(teacher.device, dtype):
        z = teacher.sample(eps_z, conditioning, config.num_inference_steps, guidance_scale, solver=solver)
        z = z.to(torch.float16)  # as it is kept, so that the picture is the very one of the kept latent
        pictures = teacher.decode(z.float()).float()
    if not (z.isfinite().all() and pictures.isfinite().all()):
        raise UserError(
            f"the teacher drew numbers that are not finite for the seeds {seeds[0]} to {seeds[-1]} in {dtype}: "
            "try dtype=fp32, or dtype=bf16 instead of fp16"
        )
    drawn = zip(indices, seeds, prompts, images.to_uint8(pictures), z.cpu().numpy(), strict=True)
    return [
        Sample(index, s, prompt, np.ascontiguousarray(image), latent)
        for index, s, prompt, image, latent in drawn
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


def lift_fingerprint(lift: Lift) -> str:
    """Sha256 of a lift's numbers in float32; load the lift that was kept rather than fit it anew."""
    digest = hashlib.sha256()
    for value in (lift.basis, lift.scale, lift.offset):
        digest.update(torch.as_tensor(value).detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def weights_fingerprint(module: torch.nn.Module) -> str:
    """Sha256 of some values of every tensor of a network: quick at any size, and it changes when a folder's weights do."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        some = value.flatten()[:: max(1, value.numel() // 64)].to("cpu", torch.float32)
        digest.update(f"{name}{tuple(value.shape)}".encode() + some.contiguous().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _bar(total: int, done: int, shown: bool) -> Iterator:
    """Yields a function that adds to the count of pictures drawn."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

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
