"""pixel_film a run of tokens at a time: the CPU path. At most `rows_in_flight` of the modulation exists at once.

Legend: N tokens, P pixels of a patch, C pixel channels, D token width.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..registration import rows_in_flight


def _runs(pixels: Tensor) -> Iterator[slice]:
    count, places, channels = pixels.shape
    step = rows_in_flight(2 * places * channels)
    for first in range(0, count, step):
        yield slice(first, first + step)


def _modulation(tokens: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """`1 + scale` and shift, `[n, P, C]` each, in fp32 (fp64); the product in the tokens' dtype."""
    product = (tokens @ weight.flatten(0, 2).T).view(-1, *bias.shape)
    product = product.to(torch.float64 if tokens.dtype == torch.float64 else torch.float32) + bias
    return product[:, :, 0] + 1, product[:, :, 1]


def forward(pixels, tokens, weight, bias) -> Tensor:
    out = pixels.new_empty(pixels.shape)
    for run in _runs(pixels):
        scale, shift = _modulation(tokens[run], weight, bias)
        out[run] = torch.addcmul(shift, pixels[run].to(shift.dtype), scale).to(out.dtype)
    return out


def backward(grad, _out, pixels, tokens, weight, bias) -> list[Tensor]:
    """Gradients of pixels, tokens, weight, bias."""
    dtype = torch.float64 if pixels.dtype == torch.float64 else torch.float32
    matrix = weight.flatten(0, 2)  # [P 2 C, D]
    grad_pixels, grad_tokens = pixels.new_empty(pixels.shape), tokens.new_empty(tokens.shape)
    grad_matrix = torch.zeros(matrix.shape, dtype=dtype, device=weight.device)
    grad_bias = torch.zeros(bias.shape, dtype=dtype, device=bias.device)
    for run in _runs(pixels):
        scale, _ = _modulation(tokens[run], weight, bias)
        g = grad[run].to(dtype)
        grad_pixels[run] = (g * scale).to(pixels.dtype)
        g = torch.stack((g * pixels[run].to(dtype), g), dim=2)  # [n, P, 2, C]
        grad_bias += g.sum(0)
        g = g.flatten(1).to(tokens.dtype)
        grad_tokens[run] = g @ matrix
        grad_matrix += g.T @ tokens[run]
    return [
        grad_pixels,
        grad_tokens,
        grad_matrix.view(weight.shape).to(weight.dtype),
        grad_bias.to(bias.dtype),
    ]
