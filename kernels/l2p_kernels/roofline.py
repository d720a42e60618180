"""`python -m l2p_kernels roofline`: operations, bytes and the floor time they imply. Counts, not timings.

For a fine grid of one picture (patch 8 px: 1K is 128 x 128 tokens, 4K is 512 x 512), bf16. What is counted:

- minimum: q, k, v read once and the output written once.
- triton: the addresses the forward kernel asks for, in its own launch order, through an L2 model. A program reads its
  queries and the key windows of its tile, and writes its output. Programs start in order of their number and as many are
  in flight as the device holds (`RESIDENT` a multiprocessor). The L2 is fully associative, evicts the least recently
  used, and is worth half its datasheet size (the rest is left to the output stream, to hashing and to other traffic).
  Norm and RoPE add under 1% and are left out.
- unfold: windows of k and v written out and read again, then read by SDPA.
- full: attention over the whole grid through a flash kernel: minimum bytes, all pairs.
"""

import argparse
from collections import OrderedDict
from dataclasses import dataclass

from .patch_attention.op import pairs
from .patch_attention.windows import runs

RESIDENT = 4  # programs a multiprocessor has in flight
L2_SHARE = 0.5


@dataclass(frozen=True)
class Device:
    """Datasheet rates: dense bf16 operations/s, bytes/s, L2 bytes, multiprocessors."""

    operations: float
    bandwidth: float
    l2: int
    multiprocessors: int


DEVICES = {
    "A100": Device(312e12, 2.039e12, 40 << 20, 108),
    "H100": Device(989e12, 3.35e12, 50 << 20, 132),
    "B200": Device(2250e12, 8.0e12, 126 << 20, 148),
    "RTX 5090": Device(209e12, 1.792e12, 96 << 20, 170),
}
GRIDS = {"1K": 128, "2K": 256, "4K": 512, "8K": 1024}


def minimum_bytes(grid: int, heads: int, head_dim: int, element: int = 2) -> int:
    """q, k, v read once, the output written once."""
    return 4 * grid * grid * heads * head_dim * element


def triton_bytes(
    grid: int, heads: int, head_dim: int, tile: int, halo: int, device: Device, element: int = 2
) -> int:
    """Bytes that the forward kernel moves between memory and L2, by its own access pattern.

    The unit of the L2 model is one head's keys (or values) of a `unit x unit` square of the grid, the largest square
    that windows are made of.
    """
    unit = next(u for u in range(tile, 0, -1) if tile % u == 0 and halo % u == 0)
    values = unit * unit * head_dim * element
    capacity = int(device.l2 * L2_SHARE) // values
    in_flight = RESIDENT * device.multiprocessors
    tiles = -(-grid // tile)
    cached: OrderedDict[tuple, None] = OrderedDict()
    missed = 0

    def windows(program: int):
        head, place = program % heads, program // heads
        i, j = divmod(place, tiles)
        top, bottom = max(0, i * tile - halo), min(grid, (i + 1) * tile + halo)
        left, right = max(0, j * tile - halo), min(grid, (j + 1) * tile + halo)
        return [
            (tensor, head, y, x)
            for y in range(top // unit, -(-bottom // unit))
            for x in range(left // unit, -(-right // unit))
            for tensor in "kv"
        ]

    programs = tiles * tiles * heads
    for wave in range(0, programs, in_flight):
        # Programs of a wave advance together: the worst order for the cache is block by block across all of them.
        lists = [windows(program) for program in range(wave, min(wave + in_flight, programs))]
        for step in range(max(map(len, lists))):
            for blocks in lists:
                if step < len(blocks):
                    block = blocks[step]
                    if block in cached:
                        cached.move_to_end(block)
                    else:
                        missed += values
                        cached[block] = None
                        if len(cached) > capacity:
                            cached.popitem(last=False)
    return missed + minimum_bytes(grid, heads, head_dim, element) // 2


def unfold_bytes(grid: int, heads: int, head_dim: int, tile: int, halo: int, element: int = 2) -> int:
    """q and output once; k and v read, their windows written and read."""
    rows = sum(run.count * run.reach for run in runs(grid, tile, halo))
    line = heads * head_dim * element
    return minimum_bytes(grid, heads, head_dim, element) + 2 * 2 * rows * rows * line


def main(arguments: list[str]) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m l2p_kernels roofline", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--tile", type=int, default=8)
    parser.add_argument("--halo", type=int, default=4)
    parser.add_argument("--grids", nargs="+", choices=list(GRIDS), default=list(GRIDS))
    options = parser.parse_args(arguments)
    heads, head_dim, tile, halo = options.heads, options.head_dim, options.tile, options.halo
    print(
        f"patch_attention forward, bf16, {heads} heads of {head_dim}, tile {tile}, halo {halo}: counts, not timings"
    )
    print(
        f"{'grid':12} {'path':15} {'GFLOP':>9} {'MiB':>9} {'x minimum':>9}  floor in microseconds (c compute, m memory)"
    )
    for name in options.grids:
        grid = GRIDS[name]
        least = minimum_bytes(grid, heads, head_dim)
        local = 4 * heads * head_dim * pairs(grid, grid, tile, halo)
        rows = [("minimum", local, dict.fromkeys(DEVICES, least))]
        moved = {d: triton_bytes(grid, heads, head_dim, tile, halo, device) for d, device in DEVICES.items()}
        rows.append(("triton", local, moved))
        rows.append(
            ("unfold + SDPA", local, dict.fromkeys(DEVICES, unfold_bytes(grid, heads, head_dim, tile, halo)))
        )
        rows.append(("full SDPA", 4 * heads * head_dim * grid**4, dict.fromkeys(DEVICES, least)))
        for path, operations, size in rows:
            floors = []
            for device_name, device in DEVICES.items():
                compute, memory = operations / device.operations, size[device_name] / device.bandwidth
                floors.append(
                    f"{device_name} {max(compute, memory) * 1e6:.1f}{'c' if compute > memory else 'm'}"
                )
            most = max(size.values())
            print(
                f"{name} {grid}^2".ljust(12),
                f"{path:15} {operations / 1e9:9.1f} {most / 2**20:9.1f} {most / least:9.2f}  {'  '.join(floors)}",
                flush=True,
            )
    return 0
