"""The invention map: what a decoder draws of its own accord, seen by letting it draw again.

Prompt and core stay as they are; only the decoder's own randomness changes. Where the pictures agree, the picture was
decided by what the decoder was given; where they differ, the decoder made it up. A one-step student has no seed of its own
but noise outside the lift's span: ``A^T eps`` decides what its teacher would have drawn, the rest is free.

A map near zero is no proof of faithfulness: a student trained by regression alone ignores the free noise, and invents the
same thing every time. And a one-step student whose noise is confined to the span sees none that is free: there the map is
zero by construction, and the honest picture is where the student departs from its teacher's.

Legend: K draws, B pictures, H W pixels, p patch side, A [D, d] the lift's basis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from l2p import flow
from l2p.evaluation.psnr_ssim import check_pair
from l2p.patches import patchify, unpatchify

if TYPE_CHECKING:
    from l2p.students.pipeline import StudentPipeline
    from l2p.students.student import StudentSpec
    from l2p.teachers.protocol import Conditioning


def invention_map(draws: Tensor) -> Tensor:
    """Standard deviation of each pixel over K draws, root mean square over the channels, [B, H, W] float64.

    Args:
        draws: [K, B, C, H, W] in [-1, 1], K at least 2, which differ in the decoder's seed alone.

    Raises:
        ValueError: another number of axes, or fewer than 2 draws.
    """
    if draws.ndim != 5 or len(draws) < 2:
        raise ValueError(f"draws must be [K, B, C, H, W] with K at least 2, got {list(draws.shape)}")
    return draws.double().var(0, unbiased=True).mean(1).sqrt()


def has_free_noise(spec: StudentSpec) -> bool:
    """Whether any noise reaches the student that its teacher's picture does not depend on."""
    return not spec.project_noise or spec.num_steps > 1  # later steps see what the first one left of it


def departure_map(images: Tensor, reference: Tensor) -> Tensor:
    """Difference of each pixel from its reference, root mean square over the channels, [B, H, W] float64 in [0, 2].

    Args:
        images, reference: [B, C, H, W] in [-1, 1]; the reference is the teacher's picture of the same noise.

    Raises:
        ValueError: shapes that differ.
    """
    check_pair(images, reference)
    return (images.double() - reference.double()).square().mean(1).sqrt()


def free_noise(noise: Tensor, basis: Tensor, patch_size: int, seeds: Sequence[int]) -> Tensor:
    """The same noise inside the lift's span, other noise outside: ``A A^T eps + (I - A A^T) eps'``; white like eps.

    Args:
        noise: eps [B, 3, H, W].
        basis: A [3 p^2, d], orthonormal columns.
        seeds: of eps', one a picture.
    """
    other = flow.noise(seeds, *noise.shape[1:]).to(noise)
    gap = patchify(noise - other, patch_size).double()
    basis = basis.to(gap)
    inside = unpatchify((gap @ basis) @ basis.T, patch_size)
    return (other.double() + inside).to(noise.dtype)


def student_invention(
    pipeline: StudentPipeline, conditioning: Conditioning, noise: Tensor, draws: int = 4, seed: int = 0
) -> Tensor:
    """Invention map [B, H, W] of a student over its free noise.

    Args:
        noise: [B, 3, H, W], sides multiples of the patch; its part inside the span is kept.
        draws: K, at least 2.
        seed: of the first free noise.
    """
    student, count = pipeline.student, len(noise)
    pictures = []
    for k in range(draws):
        seeds = [seed + k * count + i for i in range(count)]
        varied = free_noise(noise.cpu(), student.basis.cpu(), student.spec.patch_size, seeds)
        pictures.append(pipeline.sample(conditioning, varied).clamp(-1, 1).cpu())
    return invention_map(torch.stack(pictures))
