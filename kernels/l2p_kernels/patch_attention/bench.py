"""What `python -m l2p_kernels bench patch_attention` times."""

import argparse
import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor

from ..bench import Contest, our_impls
from .api import patch_attention
from .cases import Case, errors_against_reference


def unfold_sdpa(q: Tensor, k: Tensor, v: Tensor, tile: int, halo: int, columns: bool = True) -> Tensor:
    """The naive formulation: pad, gather every window of k and v at once, masked SDPA. H, W multiples of tile.

    Args:
        columns: gather with `F.unfold`, as is usual; else with `Tensor.unfold`, whose one copy is much quicker.
    """
    batch, height, width, heads, dim = q.shape
    side = tile + 2 * halo

    def windows(x: Tensor) -> Tensor:
        """`[B tiles, h, side * side, d]`."""
        if columns:
            x = F.pad(x.flatten(3).movedim(3, 1), (halo,) * 4)  # [B, h d, H + 2 halo, W + 2 halo]
            x = F.unfold(x, side, stride=tile).unflatten(1, (heads, dim, side * side))
            return x.permute(0, 4, 1, 3, 2).flatten(0, 1)
        x = F.pad(x, (0, 0, 0, 0) + (halo,) * 4).unfold(1, side, tile).unfold(2, side, tile)
        return x.permute(0, 1, 2, 3, 5, 6, 4).flatten(4, 5).flatten(0, 2)

    valid = F.unfold(F.pad(q.new_ones(1, 1, height, width), (halo,) * 4), side, stride=tile)[0].T > 0
    mask = valid.repeat(batch, 1)[:, None, None]
    queries = q.unflatten(1, (-1, tile)).unflatten(3, (-1, tile)).permute(0, 1, 3, 5, 2, 4, 6)
    shape = queries.shape  # [B, ny, nx, h, tile, tile, d]
    out = F.scaled_dot_product_attention(
        queries.flatten(4, 5).flatten(0, 2), windows(k), windows(v), attn_mask=mask
    )
    return out.view(shape).permute(0, 1, 4, 2, 5, 3, 6).reshape(q.shape)


def full_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention over the whole grid: another operator."""
    out = F.scaled_dot_product_attention(*(x.flatten(1, 2).transpose(1, 2) for x in (q, k, v)))
    return out.transpose(1, 2).view(q.shape)


def natten(q: Tensor, k: Tensor, v: Tensor, tile: int, halo: int) -> Tensor:
    """Neighbourhood attention with the same number of keys: another operator."""
    from natten.functional import na2d

    return na2d(q, k, v, kernel_size=tile + 2 * halo, stride=tile)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--grid", type=int, default=128, help="tokens a side, a multiple of the tile (128)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--tile", type=int, default=8)
    parser.add_argument("--halo", type=int, default=4)
    parser.add_argument("--no-full", action="store_true", help="leave full SDPA out (slow on large grids)")


def contest(options: argparse.Namespace, device: str, dtype: torch.dtype) -> Contest:
    """Raises ValueError where the grid is no multiple of the tile."""
    tile, halo = options.tile, options.halo
    if options.grid % tile:
        raise ValueError(f"--grid must be a multiple of the tile {tile}; got {options.grid}")
    ours = our_impls("windowed", device)
    small = Case(1, 3 * tile, 2 * tile, options.heads, options.head_dim, tile, halo)
    errors = {impl: max(errors_against_reference(small, impl, dtype, device).values()) for impl in ours}

    shape = (options.batch, options.grid, options.grid, options.heads, options.head_dim)
    inputs = [
        torch.randn(shape, device=device, dtype=dtype, requires_grad=options.backward) for _ in range(3)
    ]
    impls = ours + (["flex"] if device == "cuda" else [])
    paths = {
        impl: lambda impl=impl: patch_attention(*inputs, tile=tile, halo=halo, impl=impl) for impl in impls
    }
    paths["F.unfold + SDPA"] = lambda: unfold_sdpa(*inputs, tile, halo)
    paths["unfold + SDPA"] = lambda: unfold_sdpa(*inputs, tile, halo, columns=False)
    others = {}
    if not options.no_full:
        others["full SDPA"] = lambda: full_sdpa(*inputs)
    if device == "cuda" and importlib.util.find_spec("natten"):
        others["NATTEN"] = lambda: natten(*inputs, tile, halo)
    title = f"patch_attention {options.dtype} {list(shape)}, {tile=} {halo=}"
    return Contest(title, inputs, paths, others, errors)
