"""A teacher that stops early: its noisy latents, and the time that the steps not run would have taken."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from l2p import flow
from l2p.decoders.sources import Source
from l2p.errors import UserError
from l2p.runtime import synchronize

if TYPE_CHECKING:
    from l2p.teachers.protocol import Teacher


@torch.no_grad()
def sample(
    teacher: Teacher,
    prompt: str,
    seed: int,
    height: int,
    width: int,
    num_inference_steps: int,
    guidance_scale: float = 0.0,
    stop_at: float = 0.0,
) -> tuple[Source, dict[str, Any]]:
    """Latents of a prompt at the first of the teacher's times that is not above ``stop_at``.

    Args:
        height, width: pixels of what the teacher's own decoder would paint.

    Returns:
        the latents, and ``teacher_steps``, ``steps_skipped``, ``teacher_seconds`` and ``seconds_saved``: the steps
        skipped at the mean time of those that ran.

    Raises:
        UserError: sides that are no multiples of a token.
    """
    try:
        shape = teacher.geometry.latent_shape(height, width)
    except ValueError as error:
        raise UserError(str(error)) from None
    times = teacher.times(num_inference_steps, height, width)
    run = int((times > stop_at).sum()) if stop_at > 0 else num_inference_steps
    captions = teacher.encode_prompts([prompt])
    eps = flow.noise([seed], *shape).to(teacher.device)
    synchronize(teacher.device)
    started = time.perf_counter()
    z = teacher.sample(eps, captions, num_inference_steps, guidance_scale, stop_at).float()
    synchronize(teacher.device)
    seconds = time.perf_counter() - started
    source = Source(z, float(times[run]), height, width, prompt)
    skipped = num_inference_steps - run
    return source, {
        "teacher_steps": num_inference_steps,
        "steps_skipped": skipped,
        "teacher_seconds": round(seconds, 3),
        "seconds_saved": round(skipped * seconds / max(1, run), 3),
    }
