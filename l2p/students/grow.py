"""A student at a larger patch and resolution, on the same grid of tokens.

The lift of a patch g times larger is the lift followed by an orthonormal upsampling ``U = N / g``, N giving each pixel to
a block of g x g (``U^T U = I``; ``U^T`` adds a block up and divides by g). So, with a stroke for the grown student::

    A' = U A,    s' = g s,    b' = N b,    W' = W U^T   (the core's first layer)

- White noise stays white: ``U^T eps'`` is the small student's noise, and ``A'^T eps' = A^T (U^T eps')``.
- ``U^T (x'_t - (1 - t) b') = g (...)`` only in the picture; at t = 1, where one step begins, there is no picture, k = k' = 1,
  and the grown core is given the very numbers that the small one is given. Its features are the same, to rounding.
- So the small head paints the small picture from them, and :class:`~l2p.students.heads.grown.GrownHead` upsamples it: at
  step zero the grown picture, averaged over blocks, is the small one.

Legend: g factor, p the small patch, D = 3 p^2.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from l2p.errors import UserError
from l2p.lift import Lift
from l2p.patches import patchify, unpatchify
from l2p.students.student import PixelStudent, StudentSpec


def spread_pixels(patches: Tensor, p: int, factor: int) -> Tensor:
    """``N x``: patches [..., 3 p^2] with every pixel as a block of factor x factor, [..., 3 (factor p)^2]."""
    rows = patches.reshape(-1, 1, 1, patches.shape[-1])
    pixels = unpatchify(rows, p).repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    return patchify(pixels, factor * p).view(*patches.shape[:-1], -1)


def grow_lift(lift: Lift, factor: int) -> Lift:
    """The lift of pictures ``factor`` times larger with the same tokens; R2 figures are those of the small one."""
    p = lift.patch_size
    weight, bias = lift.readout
    return replace(
        lift,
        basis=spread_pixels(lift.basis.T, p, factor).T / factor,
        scale=factor * lift.scale,
        offset=spread_pixels(lift.offset, p, factor),
        readout=(
            spread_pixels(weight.movedim(0, -1), p, factor).movedim(-1, 0),
            spread_pixels(bias, p, factor),
        ),
    )


def grown_spec(spec: StudentSpec, factor: int, head: dict[str, object]) -> StudentSpec:
    """Spec of the grown student.

    Args:
        factor: 2, 4 or 8 for pictures of that many times the side.
        head: knobs of the detail that is added: fine_patch, width, num_blocks, head_dim, tile, halo.

    Raises:
        UserError: another factor.
    """
    if factor not in (2, 4, 8):
        raise UserError(f"grow.factor is {factor}, expected 2, 4 or 8")
    return replace(
        spec,
        patch_size=factor * spec.patch_size,
        lift_scale=factor * spec.lift_scale,
        head={"kind": "grown", "factor": factor, "inner": spec.head, **head},
        height=spec.height and factor * spec.height,
        width=spec.width and factor * spec.width,
    )


@torch.no_grad()
def grow(student: PixelStudent, factor: int, head: dict[str, object]) -> PixelStudent:
    """The student grown; it shares no memory with the small one. See :func:`grown_spec` for the arguments.

    The detail starts with nothing to say, so the first picture is the small student's, upsampled.
    """
    spec, p = grown_spec(student.spec, factor, head), student.spec.patch_size
    with torch.device("meta"):
        grown = PixelStudent(spec)
    state = {name: value.clone() for name, value in student.core.state_dict().items()}
    old, new = (f"transformer.{core.embedder_name}" for core in (student.core, grown.core))
    state[f"{new}.weight"] = spread_pixels(state.pop(f"{old}.weight"), p, factor) / factor
    if f"{old}.bias" in state:
        state[f"{new}.bias"] = state.pop(f"{old}.bias")
    grown.core.load_state_dict(state, strict=True, assign=True)

    weight = student.core.embedder.weight
    grown.head = grown.new_head().to(weight.device, weight.dtype)
    grown.head.inner.load_state_dict(student.head.state_dict(), strict=True)
    grown.basis = spread_pixels(student.basis.T, p, factor).T / factor
    grown.offset = spread_pixels(student.offset, p, factor)
    return grown.to(weight.device).train(student.training)
