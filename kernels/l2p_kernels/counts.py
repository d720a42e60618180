"""`python -m l2p_kernels count`: what patch attention executes, and the time that a simple model makes of it.

Counted in SASS, for tile 8, halo 4, bf16, norms and RoPE on: instructions a warp for 64 queries x 64 keys, matrix instructions
among them, registers, shared memory, occupancy. The model, for one call on a square grid:

- memory: bytes that must pass between memory and chip, each tensor once a kernel, at the measured copy rate of the card;
- L2: bytes that the programs ask for, at `L2_RATE`;
- issue: warp instructions, at `ISSUED` a cycle and scheduler.

A kernel takes the longest of the three, a call the sum of its kernels. `ISSUED` is what makes of the first version's own count the
middle of the 0.45 to 0.6 ms that were estimated for it by hand; nothing here has been timed.
"""

import argparse
from dataclasses import dataclass

from .aot import ARCHS, Configuration, build, measure
from .patch_attention import shipped, strips
from .sass import Program, disassemble


@dataclass(frozen=True)
class Card:
    """Multiprocessors, cycles/s, bytes/s."""

    multiprocessors: int
    clock: float
    memory: float
    l2: float


CARDS = {
    "sm_90": Card(132, 1.755e9, 3.0e12, 5.5e12),  # H100: copy rate measured, the L2's as published by others
    "sm_100": Card(148, 1.85e9, 7.0e12, 10e12),  # B200: datasheet, less an eighth
}
ISSUED = 0.34  # of four schedulers, each an instruction a cycle


@dataclass(frozen=True)
class Kernel:
    """One launch: its configuration, and what the model needs to know of it. Tensors are `[B, H, W, h, D]`, in bf16."""

    configuration: Configuration
    steps: float  # 64 x 64 steps in a turn of the inner loop
    turns: int  # of it in a turn of the loop around it, which belongs to one tile
    memory: float  # tensors that are read or written once
    asked: float  # tensors that the programs ask for


def kernels(version: str, direction: str, head_dim: int, arch: str) -> list[Kernel]:
    def first(name: str, *args: float) -> Kernel:
        kernel = shipped.KERNELS[name]
        chosen = shipped.configuration(name, kernel, head_dim, major=9 if arch == "sm_90" else None)
        keys, queries = chosen.constants["BK"], chosen.constants["BQ"]
        return Kernel(chosen, keys * queries / 4096, 4096 * 4 // (keys * queries), *args)

    def launch(name: str, *args: float) -> Kernel:
        return Kernel(shipped.strips_configuration(name, head_dim, arch), *args)

    turn = launch("turn", 0, 1, 4, 4)
    if version == "triton":
        # k and v of the window are asked for, of k each channel's partner too
        return (
            [first("forward", 4, 15)]
            if direction == "forward"
            else [first("grad_q", 8, 19), first("grad_kv", 8, 22)]
        )
    if direction == "forward":
        walks = strips.options("forward", ARCHS[arch].target)["WALK"]
        return [
            turn,
            launch("forward", 4, 1, 4, 6.25) if walks else launch("forward", 8, 1, 4, 10),
        ]  # unrolled, with and without masks
    # q' k' v grad out q, grad_q; q' k' v grad k, grad_k grad_v
    steps = (4, 1) if ARCHS[arch].target == 100 else (1, 4)  # unrolled there
    return [launch("grad_q", *steps, 7, 13), launch("grad_kv", *steps, 7, 13)]


@dataclass(frozen=True)
class Estimate:
    """Counts of a kernel, and milliseconds."""

    instructions: float  # a warp, for 64 x 64
    matrix: float
    memory: float
    l2: float
    issue: float

    @property
    def milliseconds(self) -> float:
        return max(self.memory, self.l2, self.issue)


def estimate(kernel: Kernel, arch: str, grid: int, heads: int) -> Estimate:
    """Where a kernel has no loop, all its instructions are those of 64 positions."""
    configuration, card = kernel.configuration, CARDS[arch]
    program = Program(disassemble(build(configuration, arch).asm["cubin"]))
    tiles = (grid / 8) ** 2 * heads
    if kernel.steps:
        inner, outer = program.nest()
        around = (outer.instructions - inner.instructions) / kernel.turns if outer and kernel.turns > 1 else 0
        instructions, matrix = (inner.instructions + around) / kernel.steps, inner.matrix / kernel.steps
        total = tiles * 4 * instructions
    else:
        instructions, matrix = float(sum(map(len, program.blocks))), 0.0
        total = tiles * instructions
    tensor = tiles * 64 * configuration.constants["D"] * 2
    rate = card.multiprocessors * 4 * card.clock * ISSUED
    return Estimate(
        instructions,
        matrix,
        kernel.memory * tensor / card.memory * 1e3,
        kernel.asked * tensor / card.l2 * 1e3,
        total * configuration.num_warps / rate * 1e3,
    )


def floor(direction: str, arch: str, grid: int, heads: int, head_dim: int) -> float:
    """Milliseconds to move q, k, v and the output once; backward q, k, v, the output's gradient, and three more."""
    tensors = 4 if direction == "forward" else 8
    return tensors * grid * grid * heads * head_dim * 2 / CARDS[arch].memory * 1e3


def main(arguments: list[str]) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m l2p_kernels count", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--arch", nargs="+", choices=list(CARDS), default=list(CARDS))
    parser.add_argument("--grid", type=int, default=512)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--head-dim", type=int, choices=(32, 64), default=64)
    options = parser.parse_args(arguments)
    print(
        f"patch attention, bf16, {options.grid} x {options.grid}, {options.heads} heads of {options.head_dim}: counts, not timings"
    )
    print(
        f"{'arch':7} {'version':14} {'kernel':9} {'instr/64x64':>11} {'matrix':>6} {'regs':>5} {'spilled':>7} {'shared':>7}"
        f" {'occupancy':>9}  {'memory':>7} {'L2':>7} {'issue':>7}  ms"
    )
    for arch in options.arch:
        for direction in ("forward", "backward"):
            least = floor(direction, arch, options.grid, options.heads, options.head_dim)
            for version in ("triton", "triton_strips"):
                total = 0.0
                for kernel in kernels(version, direction, options.head_dim, arch):
                    used = measure(kernel.configuration, arch)
                    found = estimate(kernel, arch, options.grid, options.heads)
                    total += found.milliseconds
                    name = kernel.configuration.kernel.__name__.removesuffix("_kernel")
                    print(
                        f"{arch:7} {version:14} {name:9} {found.instructions:11.0f} {found.matrix:6.1f} {used.registers:5}"
                        f" {used.spilled:7} {used.shared:7} {used.occupancy:9.1%}  {found.memory:7.3f} {found.l2:7.3f}"
                        f" {found.issue:7.3f}  {found.milliseconds:.3f}",
                        flush=True,
                    )
                print(
                    f"{arch:7} {version:14} {direction}: {total:.3f} ms, floor {least:.3f} ms, {least / total:.0%} of it"
                )
    return 0
