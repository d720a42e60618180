"""`python -m l2p_kernels bench`: times every path of patch attention on the device at hand, after checking that it is right.

Rounds are interleaved (one run of every path, then the next round), so that other load falls on all alike; the table
gives medians with the 20th and 80th percentile. Where a path's result is wrong nothing is timed, and the command fails.
"""

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .api import patch_attention
from .cases import Case, errors_against_reference, relative_rms

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


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


def seconds(run: Callable[[], object], device: str) -> float:
    """One run, waited for; on a GPU the median of `triton.testing.do_bench`, which clears the L2 before each."""
    if device == "cuda":
        from triton.testing import do_bench

        return do_bench(run, return_mode="median") / 1e3
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def fault(options: argparse.Namespace, paths: dict[str, Callable[[], Tensor]], device: str) -> str | None:
    """What is wrong with a path, or None: ours against fp64 on a small grid, then each path against the first."""
    dtype, tile = DTYPES[options.dtype], options.tile
    small = Case(1, 3 * tile, 2 * tile, options.heads, options.head_dim, tile, options.halo)
    for impl in [name for name in paths if name in ("windowed", "triton")]:
        error = max(errors_against_reference(small, impl, dtype, device).values())
        if error > TOLERANCE[dtype]:
            return f"{impl} is wrong (relative error {error:.1e}); nothing is timed"
    first, *rest = paths
    wanted = paths[first]()
    for name in rest:
        if (error := relative_rms(paths[name](), wanted)) > 2 * TOLERANCE[dtype]:
            return f"{name} differs from {first} by {error:.1e}; nothing is timed"
    return None


def main(arguments: list[str]) -> int:
    """Checks, times, prints; 1 where a path is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m l2p_kernels bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--backward", action="store_true", help="time forward and backward together")
    add_arguments(parser)
    options = parser.parse_args(arguments)
    tile, halo, device = options.tile, options.halo, "cuda" if torch.cuda.is_available() else "cpu"
    if options.grid % tile:
        parser.error(f"--grid must be a multiple of the tile {tile}; got {options.grid}")
    torch.manual_seed(0)
    shape = (options.batch, options.grid, options.grid, options.heads, options.head_dim)
    inputs = [
        torch.randn(shape, device=device, dtype=DTYPES[options.dtype], requires_grad=options.backward)
        for _ in range(3)
    ]
    impls = ["windowed", *(["triton", "flex"] if device == "cuda" else [])]
    paths: dict[str, Callable[[], Tensor]] = {
        impl: lambda impl=impl: patch_attention(*inputs, tile=tile, halo=halo, impl=impl) for impl in impls
    }
    paths["F.unfold + SDPA"] = lambda: unfold_sdpa(*inputs, tile, halo)
    paths["unfold + SDPA"] = lambda: unfold_sdpa(*inputs, tile, halo, columns=False)
    if wrong := fault(options, paths, device):
        print(wrong, file=sys.stderr)
        return 1
    if not options.no_full:
        paths["full SDPA (*)"] = lambda: full_sdpa(*inputs)
    if device == "cuda" and importlib.util.find_spec("natten"):
        paths["NATTEN (*)"] = lambda: natten(*inputs, tile, halo)
    grad = torch.randn_like(inputs[0])

    def timed(run: Callable[[], Tensor]) -> Callable[[], object]:
        return (lambda: torch.autograd.grad(run(), inputs, grad)) if options.backward else run

    times: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(options.rounds):
        for name, run in paths.items():
            times[name].append(seconds(timed(run), device))
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    what = "forward + backward" if options.backward else "forward"
    print(
        f"patch_attention {options.dtype} {list(shape)}, {tile=} {halo=}, {what}, {where}, torch {torch.__version__}"
    )
    print(f"{'path':16} {'median ms':>10} {'p20':>9} {'p80':>9}")
    for name, found in times.items():
        low, high = (statistics.quantiles(found, n=5)[i] if len(found) > 1 else found[0] for i in (0, 3))
        print(f"{name:16} {statistics.median(found) * 1e3:10.2f} {low * 1e3:9.2f} {high * 1e3:9.2f}")
    if any(name.endswith("(*)") for name in paths):
        print("(*) another operator: here for scale")
    return 0
