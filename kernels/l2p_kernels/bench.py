"""`python -m l2p_kernels bench`: times every path on the device at hand, after checking that it is right.

Rounds are interleaved (one run of every path, then the next round), so that other load falls on all alike; the table
gives medians with the 20th and 80th percentile. A path whose result is wrong is not timed, and the command fails.
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

from .patch_attention import patch_attention
from .patch_attention.cases import Case, errors_against_reference, relative_rms

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def unfold_sdpa(q: Tensor, k: Tensor, v: Tensor, tile: int, halo: int) -> Tensor:
    """The naive formulation: pad, unfold every window of k and v at once, masked SDPA. H, W multiples of tile."""
    batch, height, width, heads, dim = q.shape
    side = tile + 2 * halo

    def windows(x: Tensor) -> Tensor:
        x = F.pad(x.flatten(3).movedim(3, 1), (halo,) * 4)  # [B, h d, H + 2 halo, W + 2 halo]
        x = F.unfold(x, side, stride=tile).unflatten(1, (heads, dim, side * side))
        return x.permute(0, 4, 1, 3, 2).flatten(0, 1)  # [B tiles, h, side * side, d]

    valid = F.unfold(F.pad(q.new_ones(1, 1, height, width), (halo,) * 4), side, stride=tile)[0].T > 0
    mask = valid.repeat(batch, 1)[:, None, None]
    queries = q.unflatten(1, (-1, tile)).unflatten(3, (-1, tile)).permute(0, 1, 3, 5, 2, 4, 6)
    shape = queries.shape  # [B, ny, nx, h, tile, tile, d]
    out = F.scaled_dot_product_attention(
        queries.flatten(4, 5).flatten(0, 2), windows(k), windows(v), attn_mask=mask
    )
    return out.view(shape).permute(0, 1, 4, 2, 5, 3, 6).reshape(q.shape)


def full_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention over the whole grid: another operator, timed for scale."""
    out = F.scaled_dot_product_attention(*(x.flatten(1, 2).transpose(1, 2) for x in (q, k, v)))
    return out.transpose(1, 2).view(q.shape)


def natten(q: Tensor, k: Tensor, v: Tensor, tile: int, halo: int) -> Tensor:
    """Neighbourhood attention with the same number of keys: another operator, timed for scale."""
    from natten.functional import na2d

    return na2d(q, k, v, kernel_size=tile + 2 * halo, stride=tile)


def seconds(run: Callable[[], object], device: str) -> float:
    """One run, waited for; on a GPU the median of `triton.testing.do_bench`, which clears the L2 before each."""
    if device == "cuda":
        from triton.testing import do_bench

        return do_bench(run, return_mode="median") / 1e3
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main(arguments: list[str]) -> int:
    """Checks, times, prints; 1 where a path is wrong."""
    parser = argparse.ArgumentParser(prog="python -m l2p_kernels bench", description=__doc__)
    parser.add_argument(
        "--grid", type=int, default=128, help="tokens a side, a multiple of the tile (default 128)"
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--tile", type=int, default=8)
    parser.add_argument("--halo", type=int, default=4)
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--backward", action="store_true", help="time forward and backward together")
    parser.add_argument("--no-full", action="store_true", help="leave full SDPA out (slow on large grids)")
    options = parser.parse_args(arguments)
    device, dtype, tile, halo = (
        "cuda" if torch.cuda.is_available() else "cpu", DTYPES[options.dtype], options.tile, options.halo,
    )  # fmt: skip
    if options.grid % tile:
        parser.error(f"--grid must be a multiple of the tile {tile}; got {options.grid}")

    ours = ["windowed"] + (["triton"] if device == "cuda" else [])
    small = Case(1, 3 * tile, 2 * tile, options.heads, options.head_dim, tile, halo)
    for impl in ours:
        worst = max(errors_against_reference(small, impl, dtype, device).values())
        if worst > TOLERANCE[dtype]:
            print(f"{impl} is wrong (relative error {worst:.1e}); nothing is timed", file=sys.stderr)
            return 1

    shape = (options.batch, options.grid, options.grid, options.heads, options.head_dim)
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(shape, device=device, dtype=dtype, requires_grad=options.backward) for _ in range(3)
    )
    runs = {
        impl: lambda impl=impl: patch_attention(q, k, v, tile=tile, halo=halo, impl=impl) for impl in ours
    }
    runs["unfold + SDPA"] = lambda: unfold_sdpa(q, k, v, tile, halo)
    if device == "cuda":
        runs["flex"] = lambda: patch_attention(q, k, v, tile=tile, halo=halo, impl="flex")
    wanted = runs["windowed"]()
    for name, run in runs.items():
        if (error := relative_rms(run(), wanted)) > 2 * TOLERANCE[dtype]:
            print(f"{name} differs from windowed by {error:.1e}; nothing is timed", file=sys.stderr)
            return 1
    if not options.no_full:
        runs["full SDPA (*)"] = lambda: full_sdpa(q, k, v)
    if device == "cuda" and importlib.util.find_spec("natten"):
        runs["NATTEN (*)"] = lambda: natten(q, k, v, tile, halo)
    grad = torch.randn(shape, device=device, dtype=dtype)

    def timed(run: Callable[[], Tensor]) -> Callable[[], object]:
        return (lambda: torch.autograd.grad(run(), (q, k, v), grad)) if options.backward else run

    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            times[name].append(seconds(timed(run), device))
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    what = "forward + backward" if options.backward else "forward"
    print(
        f"patch_attention {what}, {where}, torch {torch.__version__}, {options.dtype} {list(shape)}, {tile=} {halo=}"
    )
    print(f"{'path':16} {'median ms':>10} {'p20':>9} {'p80':>9}")
    for name, found in times.items():
        low, high = (statistics.quantiles(found, n=5)[i] if len(found) > 1 else found[0] for i in (0, 3))
        print(f"{name:16} {statistics.median(found) * 1e3:10.2f} {low * 1e3:9.2f} {high * 1e3:9.2f}")
    print("(*) attends to other keys: here for scale")
    return 0
