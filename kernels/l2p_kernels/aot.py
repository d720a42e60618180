"""`python -m l2p_kernels compile`: every shipped kernel configuration compiled ahead of time, without a GPU.

Prints registers, spilled bytes, shared memory, matrix instructions and the occupancy they imply, and fails on a spill, on
too much shared memory, or where an architecture's own matrix instructions are missing.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Arch:
    """What a kernel may use: per-block and per-multiprocessor limits of an architecture."""

    backend: str
    target: int | str
    warp: int
    shared_limit: int  # bytes a block may use
    shared: int  # bytes of a multiprocessor
    warps: int  # resident on a multiprocessor
    blocks: int  # resident on a multiprocessor
    matrix: str  # the instruction that must appear where the kernel multiplies matrices


ARCHS = {
    "sm_80": Arch("cuda", 80, 32, 166_912, 167_936, 64, 32, "mma.sync"),
    "sm_86": Arch("cuda", 86, 32, 101_376, 102_400, 48, 16, "mma.sync"),
    "sm_90": Arch("cuda", 90, 32, 232_448, 233_472, 64, 32, "wgmma"),
    "sm_100": Arch("cuda", 100, 32, 232_448, 233_472, 64, 32, "tcgen05"),
    "sm_120": Arch("cuda", 120, 32, 101_376, 102_400, 48, 24, "mma.sync"),
    "gfx942": Arch("hip", "gfx942", 64, 65_536, 65_536, 32, 32, "mfma"),
}
DEFAULT_ARCHS = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942")
INSTRUCTIONS = {
    "mma.sync": r"\bmma\.sync",
    "wgmma": r"\bwgmma\.mma_async",
    "tcgen05": r"\btcgen05\.mma\b",
    "mfma": r"\bv_mfma",
}
REGISTERS = 65_536  # of a multiprocessor, 32 bits each; the same on every NVIDIA architecture above


@dataclass(frozen=True)
class Configuration:
    """One kernel with one set of constants. `arguments` maps the others to types such as `*bf16`, `i32`, `fp32`."""

    name: str
    kernel: Any
    arguments: dict[str, str]
    constants: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 1
    matrix: bool = True  # does it multiply matrices?
    aligned: tuple[str, ...] = ()  # integers that are multiples of 16, which the launcher finds out by itself


@dataclass
class Compiled:
    """What the compiler said of one configuration on one architecture."""

    kernel: str
    arch: str
    registers: int
    spilled: int
    shared: int
    occupancy: float
    instructions: dict[str, int]
    faults: list[str] = field(default_factory=list)


def shipped(arch: str) -> Iterator[Configuration]:
    """The configurations of every operator on an architecture."""
    from .patch_attention.shipped import configurations as patch_attention
    from .philox.shipped import configurations as philox

    yield from patch_attention(arch)
    yield from philox()


def build(configuration: Configuration, arch: str):
    """Triton's compiled kernel: `.asm` and `.metadata`."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = configuration.kernel.arg_names
    signature = {n: configuration.arguments.get(n, "constexpr") for n in names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, n in enumerate(names)
        if signature[n].startswith("*") or n in configuration.aligned
    }
    source = ASTSource(configuration.kernel, signature, configuration.constants, aligned)
    options = {"num_warps": configuration.num_warps, "num_stages": configuration.num_stages}
    return triton.compile(
        source, target=GPUTarget(ARCHS[arch].backend, ARCHS[arch].target, ARCHS[arch].warp), options=options
    )


def measure(configuration: Configuration, arch: str) -> Compiled:
    """Compiles one configuration and reads what it uses."""
    limits, kernel = ARCHS[arch], build(configuration, arch)
    if limits.backend == "cuda":
        registers, spilled = _cuda_usage(kernel.asm["cubin"])
        text = kernel.asm["ptx"]
        blocks = REGISTERS // (-(-registers // 8) * 8 * limits.warp * configuration.num_warps)
    else:
        text = kernel.asm["amdgcn"]

        def number(key: str) -> int:
            return int(re.search(rf"\.{key}:\s+(\d+)", text)[1])

        registers, spilled = number("vgpr_count"), number("private_segment_fixed_size")
        blocks = 4 * min(8, 512 // max(1, -(-registers // 8) * 8)) // configuration.num_warps
    shared = kernel.metadata.shared
    found = {name: n for name, pattern in INSTRUCTIONS.items() if (n := len(re.findall(pattern, text)))}
    reserved = 1024 if limits.backend == "cuda" else 0  # shared memory that the driver takes for itself
    if shared + reserved:
        blocks = min(blocks, limits.shared // (shared + reserved))
    blocks = min(blocks, limits.blocks, limits.warps // configuration.num_warps)
    result = Compiled(
        configuration.name,
        arch,
        registers,
        spilled,
        shared,
        blocks * configuration.num_warps / limits.warps,
        found,
    )
    if spilled:
        result.faults.append(f"spills {spilled} bytes")
    if shared > limits.shared_limit:
        result.faults.append(f"{shared} bytes of shared memory, the limit is {limits.shared_limit}")
    if configuration.matrix and limits.matrix not in found:
        result.faults.append(f"no {limits.matrix} instruction")
    return result


def _cuda_usage(cubin: bytes) -> tuple[int, int]:
    """Registers a thread, and bytes of stack a thread (spills live there; these kernels put nothing else there)."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(re.search(r"REG:(\d+)", text)[1]), int(re.search(r"STACK:(\d+)", text)[1])


def main(arguments: list[str]) -> int:
    """Prints the table; 1 where a configuration has a fault."""
    parser = argparse.ArgumentParser(prog="python -m l2p_kernels compile", description=__doc__)
    parser.add_argument("--arch", nargs="+", choices=list(ARCHS), default=list(DEFAULT_ARCHS), metavar="ARCH")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[""],
        metavar="TEXT",
        help="configurations whose name holds one of these texts",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table here")
    options = parser.parse_args(arguments)
    results = []
    print(
        f"{'kernel':44} {'arch':7} {'registers':>9} {'spilled':>7} {'shared':>7} {'occupancy':>9}  matrix instructions"
    )
    for arch in options.arch:
        for configuration in shipped(arch):
            if not any(text in configuration.name for text in options.only):
                continue
            result = measure(configuration, arch)
            results.append(result)
            instructions = " ".join(f"{n} {name}" for name, n in result.instructions.items()) or "-"
            fault = f"  FAULT: {'; '.join(result.faults)}" if result.faults else ""
            print(
                f"{result.kernel:44} {arch:7} {result.registers:9} {result.spilled:7} {result.shared:7}"
                f" {result.occupancy:9.0%}  {instructions}{fault}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1))
    faults = sum(bool(result.faults) for result in results)
    print(f"{len(results)} kernels compiled, {faults} with a fault")
    if not results:
        print(f"no shipped configuration is named like {options.only}", file=sys.stderr)
    return int(bool(faults) or not results)
