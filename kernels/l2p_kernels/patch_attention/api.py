"""`patch_attention`: checks what it was given, picks a path, says once which."""

import os

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..dispatch import choose
from ..registration import floating
from . import windowed
from .op import misfit, patch_attention_strips, patch_attention_triton, patch_attention_windowed
from .reference import patch_attention_reference

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ON_GPU = os.environ.get(
    "L2P_PATCH_ATTENTION", "triton"
)  # what `auto` takes there: a constant, as it is traced
if ON_GPU not in ("triton", "triton_strips"):
    raise ValueError(f"L2P_PATCH_ATTENTION must be triton or triton_strips; got {ON_GPU!r}")
IMPLS = ("reference", "windowed", "triton", "triton_strips", "flex")


def patch_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    tile: int = 8,
    halo: int = 4,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    rope: tuple[Tensor, Tensor] | None = None,
    scale: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """Local attention on a 2-D grid.

    A query in tile (i, j) attends to the grid keys whose row lies in `[i*tile - halo, (i+1)*tile + halo)` and whose
    column likewise, clipped at the grid's edge. Softmax and accumulation are fp32.
    Differentiable in q, k, v, q_norm and k_norm. Strided inputs are supported.

    Args:
        q, k, v: `[B, H, W, heads, head_dim]`, one dtype (fp32, fp16, bf16; fp64 for checks), head_dim 16 to 256.
            Under autocast they may differ and are brought to the autocast dtype.
        tile: side of a tile, in tokens, at least 1. H and W need not be multiples of it.
        halo: how far a tile sees beyond its border, in tokens, at least 0.
        q_norm, k_norm: RMSNorm weights `[head_dim]` for the grid's q and k, eps 1e-6.
        rope: angles in radians, `(rows [H, head_dim / 4], columns [W, head_dim / 4])`, without gradient. Channels
            `[0, head_dim / 2)` turn with the row, the rest with the column; inside each half, channel `i` is paired
            with channel `i + head_dim / 4`: `(a, b) -> (a cos - b sin, a sin + b cos)`.
        scale: factor of the scores, `head_dim ** -0.5` if None.
        impl: `reference` (dense, the specification), `windowed` (tiles through SDPA: the CPU path), `triton` (GPU, or
            its interpreter), `triton_strips` (its second version, for tile 8, halo 4, head_dim 32 or 64, in fp16 or
            bf16), `flex` (FlexAttention; no gradient on a CPU) or `auto`: windowed on a CPU; on a GPU triton, or
            triton_strips where `L2P_PATCH_ATTENTION=triton_strips` was set before the import and it fits. It never
            changes the result.

    Inputs with a forward-mode tangent (`torch.autograd.forward_ad`) take the windowed path as plain torch, which needs
    SDPA's math backend; the tangent of the output is exact.

    Returns:
        `[B, H, W, heads, head_dim]` in q's dtype, contiguous.

    Raises:
        ValueError: a shape, dtype, device or option that does not fit; the message names what was got and wanted.
        RuntimeError: `impl="triton"` or `"triton_strips"` with neither a GPU nor the interpreter.
    """
    dtype_out, wanted = q.dtype, impl
    if not q.is_meta and torch.is_autocast_enabled(q.device.type) and q.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    rows, columns = (None, None) if rope is None else rope
    _check(q, k, v, tile, halo, q_norm, k_norm, rows, columns)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    impl = choose("patch_attention", impl, IMPLS, q)
    if wanted == "auto" and impl == "triton" and ON_GPU != impl and misfit(q, tile, halo) is None:
        impl = ON_GPU
    inputs = (q, k, v, q_norm, k_norm, rows, columns, tile, halo, scale)
    if impl != "reference" and any(_has_tangent(x) for x in (q, k, v)):
        out = windowed.forward(windowed.Grid(*inputs))  # an operator of ours has no forward-mode rule
    elif impl == "windowed":
        out, _ = patch_attention_windowed(*inputs)
    elif impl == "triton":
        out, _ = patch_attention_triton(*inputs)
    elif impl == "triton_strips":
        if reason := misfit(q, tile, halo):
            raise ValueError(f"impl='triton_strips' takes {reason}: take impl='triton'")
        out, *_ = patch_attention_strips(*inputs)
    elif impl == "flex":
        from .flex import patch_attention_flex

        out = patch_attention_flex(*inputs)
    else:
        out = patch_attention_reference(*inputs)
    return out.to(dtype_out)


def _has_tangent(x: Tensor) -> bool:
    return not torch.compiler.is_compiling() and forward_ad.unpack_dual(x).tangent is not None


def _check(q, k, v, tile, halo, q_norm, k_norm, rows, columns) -> None:
    if q.ndim != 5 or 0 in q.shape:
        raise ValueError(f"q must be [B, H, W, heads, head_dim] with no empty dimension; got {list(q.shape)}")
    if q.dtype not in DTYPES:
        raise ValueError(f"q must be fp32, fp16, bf16 or fp64; got {q.dtype}")
    _, height, width, _, head_dim = q.shape
    if not 16 <= head_dim <= 256:
        raise ValueError(f"head_dim must lie in 16..256; got {head_dim} (q is {list(q.shape)})")
    if tile < 1 or halo < 0:
        raise ValueError(f"tile must be at least 1 and halo at least 0; got {tile=} {halo=}")
    for name, x in (("k", k), ("v", v)):
        floating(name, x, q.shape, q, "q")
        if x.dtype != q.dtype:
            raise ValueError(f"{name} must have q's dtype {q.dtype}; got {x.dtype}")
    for name, x in (("q_norm", q_norm), ("k_norm", k_norm)):
        if x is not None:
            floating(name, x, (head_dim,), q, "q")
    if rows is not None:
        if head_dim % 4:
            raise ValueError(f"rope needs a head_dim that is a multiple of 4; got {head_dim}")
        for name, x, count in (("rope rows", rows, height), ("rope columns", columns, width)):
            floating(name, x, (count, head_dim // 4), q, "q")
            if x.requires_grad:
                raise ValueError(f"{name} must not require a gradient (angles get none); detach them")
