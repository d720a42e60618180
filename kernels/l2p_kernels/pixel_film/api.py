"""`pixel_film`: checks, dispatch, and the operators behind it."""

import importlib
from functools import partial

import torch
from torch import Tensor

from ..dispatch import choose
from ..registration import floating, register
from . import chunked
from .reference import pixel_film_reference


def pixel_film(pixels: Tensor, tokens: Tensor, weight: Tensor, bias: Tensor, *, impl: str = "auto") -> Tensor:
    """`pixels * (1 + scale) + shift`, where `(scale, shift) = weight @ token + bias` for each pixel of the token's patch.

    The `[N, P, 2 C]` modulation (0.25 GiB at 2048 px in bf16 with 16 channels) is made and used in pieces.

    Args:
        pixels: `[N, P, C]`: N patches (tokens) of P pixels of C channels.
        tokens: `[N, D]`, in pixels' dtype (under autocast both are brought to the autocast dtype).
        weight, bias: `[P, 2, C, D]` and `[P, 2, C]`: each pixel position has its own projection to scale and shift.
        impl: `reference`, `chunked` (CPU), `triton`, or `auto`. It never changes the result.

    Returns:
        `[N, P, C]` in pixels' dtype; products accumulate in fp32.

    Raises:
        ValueError: a shape, dtype, device or option that does not fit.
        RuntimeError: `impl="triton"` with neither a GPU nor the interpreter.
    """
    dtype_out = pixels.dtype
    if torch.is_autocast_enabled(pixels.device.type) and pixels.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(pixels.device.type)
        pixels, tokens, weight = (x.to(dtype) for x in (pixels, tokens, weight))
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise ValueError(f"pixels must be [N, P, C] with no empty dimension; got {list(pixels.shape)}")
    (count, places, channels), width = pixels.shape, tokens.shape[-1]
    floating("pixels", pixels, pixels.shape, pixels, "pixels")
    floating("tokens", tokens, (count, width), pixels, "pixels")
    floating("weight", weight, (places, 2, channels, width), pixels, "pixels")
    floating("bias", bias, (places, 2, channels), pixels, "pixels")
    for name, x in (("tokens", tokens), ("weight", weight)):
        if x.dtype != pixels.dtype:
            raise ValueError(f"{name} must have pixels' dtype {pixels.dtype}; got {x.dtype}")
    impl = choose("pixel_film", impl, ("reference", "chunked", "triton"), pixels)
    run = {"reference": pixel_film_reference, "chunked": pixel_film_chunked, "triton": pixel_film_triton}[
        impl
    ]
    return run(pixels, tokens, weight, bias).to(dtype_out)


def _flops(pixels, tokens, weight, bias) -> tuple[int, int]:
    """The product that makes the modulation; backward makes its scale half again, and two gradients."""
    product = 2 * pixels[0] * tokens[1] * 2 * pixels[1] * pixels[2]
    return product, product // 2 + 2 * product


def _fake(pixels, tokens, weight, bias):
    return pixels.new_empty(pixels.shape)


def _triton(direction: str, *inputs):
    return getattr(importlib.import_module(".triton", __package__), direction)(*inputs)


_COMMON = {"fake": _fake, "flops": _flops, "tensors": 4, "gradients": 4}
_INPUTS = "Tensor pixels, Tensor tokens, Tensor weight, Tensor bias"
pixel_film_chunked = register(
    "pixel_film_chunked", _INPUTS, forward=chunked.forward, backward=chunked.backward, **_COMMON
)
pixel_film_triton = register(
    "pixel_film_triton",
    _INPUTS,
    forward=partial(_triton, "forward"),
    backward=partial(_triton, "backward"),
    **_COMMON,
)
