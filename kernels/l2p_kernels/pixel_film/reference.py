"""The specification of pixel_film: plain torch, differentiable; fp32, or fp64 when the pixels are fp64."""

import torch
from torch import Tensor


def pixel_film_reference(pixels: Tensor, tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`pixels [N, P, C]`, `tokens [N, D]`, `weight [P, 2, C, D]`, `bias [P, 2, C]` -> `[N, P, C]`."""
    dtype = torch.float64 if pixels.dtype == torch.float64 else torch.float32
    modulation = torch.einsum("nd,pscd->npsc", tokens.to(dtype), weight.to(dtype))
    scale, shift = (modulation + bias.to(dtype)).unbind(2)
    return (pixels.to(dtype) * (1 + scale) + shift).to(pixels.dtype)
