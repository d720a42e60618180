"""The gated residual in bands of rows that stay in cache: the CPU path. The gradient of x is the gradient itself."""

import torch
from torch import Tensor

from ..registration import bands
from .reference import gated_residual_reference


def forward(x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    out = x.new_empty(x.shape)
    for b, n in bands(x):
        out[b, n] = gated_residual_reference(x[b, n], branch[b, n], gate[b])
    return out


def backward(grad: Tensor, _out, x: Tensor, branch: Tensor, gate: Tensor) -> list[Tensor]:
    """Gradients of x, branch, gate."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    grad_branch = branch.new_empty(branch.shape)
    total = torch.zeros(gate.shape, dtype=dtype, device=gate.device)
    for b, n in bands(x):
        g = grad[b, n].to(dtype)
        grad_branch[b, n] = (g * gate[b].to(dtype)[:, None]).to(branch.dtype)
        total[b] += (g * branch[b, n]).sum(1)
    # A copy: an operator must not return its input.
    return [grad.clone(), grad_branch, total.to(gate.dtype)]
