"""adaln in bands of rows that stay in cache: the CPU path. The backward pass recomputes the norm.

Legend: B batch, N tokens, D width; `total` is x with the gated branch added.
"""

import torch
from torch import Tensor

from ..registration import bands
from .reference import adaln_reference


def forward(x, scale, shift, branch, gate, layer_norm, eps) -> tuple[Tensor, Tensor]:
    out = x.new_empty(x.shape)
    total = out.new_empty(0) if branch is None else x.new_empty(x.shape)
    for b, n in bands(x):
        part = adaln_reference(
            x[b, n],
            scale[b],
            shift[b],
            *((None, None) if branch is None else (branch[b, n], gate[b])),
            layer_norm,
            eps,
        )
        out[b, n] = part[0]
        if branch is not None:
            total[b, n] = part[1]
    return out, total


def backward(
    grad, grad_total, _out, _total, x, scale, shift, branch, gate, layer_norm, eps
) -> list[Tensor | None]:
    """Gradients of x, scale, shift, branch, gate."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    grad_x = x.new_empty(x.shape)
    grad_branch = None if branch is None else branch.new_empty(branch.shape)
    sums = [torch.zeros(p.shape, dtype=dtype, device=x.device) for p in (scale, shift, scale)]
    for b, n in bands(x):
        y, g = x[b, n].to(dtype), grad[b, n].to(dtype)
        if branch is not None:
            added, weight = branch[b, n].to(dtype), gate[b].to(dtype)[:, None]
            y = y + weight * added
        if layer_norm:
            y = y - y.mean(-1, keepdim=True)
        rstd = (y.square().mean(-1, keepdim=True) + eps).rsqrt()
        y = y * rstd
        sums[0][b] += (g * y).sum(1)
        sums[1][b] += g.sum(1)
        g = g * (1 + scale[b].to(dtype)[:, None])
        g = g - y * (g * y).mean(-1, keepdim=True)
        if layer_norm:
            g = g - g.mean(-1, keepdim=True)
        g = g.mul_(rstd)
        if branch is not None:
            g += grad_total[b, n]
            sums[2][b] += (g * added).sum(1)
            grad_branch[b, n] = (g * weight).to(branch.dtype)
        grad_x[b, n] = g.to(x.dtype)
    parameters = [s.to(p.dtype) for s, p in zip(sums[:2], (scale, shift), strict=True)]
    return [grad_x, *parameters, grad_branch, None if gate is None else sums[2].to(gate.dtype)]
