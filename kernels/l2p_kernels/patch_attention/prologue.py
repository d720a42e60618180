"""What happens to q and k before the dot product: RMSNorm over head_dim, then axial RoPE. Forward and backward.

Legend: B batch, H W grid, h heads, d head_dim, n = d / 4 (rotation pairs an axis).

RoPE layout: `rows [H, n]` and `columns [W, n]` hold angles in radians. Channels `[0, d/2)` turn with the row,
`[d/2, d)` with the column; inside each half, channel `i` is paired with channel `i + n`:
`(a, b) -> (a cos - b sin, a sin + b cos)`.
"""

import torch
from torch import Tensor

NORM_EPS = 1e-6
BAND_VALUES = 1 << 20  # values of a gradient worked at a time: 4 MiB in fp32


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """fp64 stays fp64 (so that the specification can be checked in it); everything else computes in fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rope_table(rows: Tensor, columns: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Angles `[H, n]`, `[W, n]` -> cosines and sines `[H, W, 1, 2, n]` (axis, pair)."""
    h, w, n = rows.shape[0], columns.shape[0], rows.shape[1]
    angles = torch.stack((rows[:, None].expand(h, w, n), columns[None].expand(h, w, n)), dim=2).to(dtype)
    return angles.cos().unsqueeze(2), angles.sin().unsqueeze(2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns `x [B, H, W, h, d]` by the table; out of place, differentiable."""
    a, b = x.unflatten(-1, (2, 2, -1)).unbind(-2)  # [B, H, W, h, 2, n]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-2).flatten(-3)


def forward(x: Tensor, weight: Tensor | None, table: tuple[Tensor, Tensor] | None) -> Tensor:
    """Norm and turn `x [B, H, W, h, d]`; computes in fp32 (or fp64), returns x's dtype."""
    if weight is None and table is None:
        return x
    y = x.to(compute_dtype(x.dtype))
    if weight is not None:
        y = y * (y.square().mean(-1, keepdim=True) + NORM_EPS).rsqrt() * weight.to(y.dtype)
    if table is not None:
        y = rotate(y, *table)
    return y.to(x.dtype)


def backward(
    grad: Tensor, x: Tensor, weight: Tensor | None, table: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor | None]:
    """Gradients of `forward` for x (in grad's dtype, fp32 or fp64) and the weight `[d]`."""
    if table is not None:
        cos, sin = table
        grad = rotate(grad, cos, -sin)
    if weight is None:
        return grad, None
    y = x.to(grad.dtype)
    rstd = (y.square().mean(-1, keepdim=True) + NORM_EPS).rsqrt()
    y = y * rstd
    grad_weight = (grad * y).flatten(0, -2).sum(0)
    grad = grad * weight.to(grad.dtype)
    return (grad - y * (grad * y).mean(-1, keepdim=True)).mul_(rstd), grad_weight


def backward_into(
    out: Tensor,
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    weight_total: Tensor | None,
    rows: Tensor | None,
    columns: Tensor | None,
) -> None:
    """Carries `grad` (fp32 or fp64, of the normed and turned x) back through the prologue into `out`, in x's dtype.

    Adds the weight's gradient to `weight_total [d]`. Goes through a band of grid rows at a time: the temporaries stay
    small however large the grid is.
    """
    if weight is None and rows is None:
        out.copy_(grad)
        return
    step = max(1, BAND_VALUES // grad[:, 0].numel())
    for first in range(0, x.shape[1], step):
        last = min(first + step, x.shape[1])
        table = None if rows is None else rope_table(rows[first:last], columns, grad.dtype)
        part, part_weight = backward(grad[:, first:last], x[:, first:last], weight, table)
        out[:, first:last] = part
        if part_weight is not None:
            weight_total += part_weight
