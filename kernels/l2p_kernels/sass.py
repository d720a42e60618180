"""What a compiled NVIDIA kernel executes: basic blocks of its SASS, and its loops."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

MATRIX = re.compile(r"HGMMA|HMMA|UTC\w*MMA")
INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:(@!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)([^;]*)")
LABEL = re.compile(r"\s*(\.L_x_\d+):")


def disassemble(cubin: bytes) -> str:
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [knobs.nvidia.nvdisasm.path, "-c", str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@dataclass(frozen=True)
class Loop:
    """Blocks of a natural loop; instructions that one warp executes in a turn of it, and matrix ones among them.

    Blocks on a branch not taken count as well: an upper bound.
    """

    blocks: frozenset[int]
    instructions: int
    matrix: int


class Program:
    """Control flow of one kernel, read from its disassembly."""

    def __init__(self, text: str) -> None:
        self.blocks: list[list[str]] = [[]]  # instructions
        labels: dict[str, int] = {}
        ends: list[tuple[str | None, bool]] = []  # the label jumped to, and whether the next block follows
        for line in text.splitlines():
            if label := LABEL.match(line):
                if self.blocks[-1]:
                    ends.append((None, True))
                    self.blocks.append([])
                labels[label[1]] = len(self.blocks) - 1
            elif found := INSTRUCTION.match(line):
                predicate, name, operands = found.groups()
                self.blocks[-1].append(name)
                if name.split(".")[0] in ("BRA", "EXIT", "RET"):
                    target = re.search(r"\.L_x_\d+", operands)
                    maybe = predicate is not None or re.match(r"\s*!?U?P\d", operands) is not None
                    ends.append((target and target[0], maybe))
                    self.blocks.append([])
        ends.append((None, False))
        self.after = [
            ([labels[target]] if target in labels else []) + ([i + 1] if falls and i + 1 < len(ends) else [])
            for i, (target, falls) in enumerate(ends)
        ]

    @cached_property
    def before(self) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in self.blocks]
        for i, following in enumerate(self.after):
            for j in following:
                found[j].append(i)
        return found

    @cached_property
    def dominators(self) -> list[set[int]]:
        everything = set(range(len(self.blocks)))
        found = [{0}, *[set(everything) for _ in self.blocks[1:]]]
        changed = True
        while changed:
            changed = False
            for i in range(1, len(self.blocks)):
                above = [found[j] for j in self.before[i]]
                new = {i} | (set.intersection(*above) if above else set())
                changed |= new != found[i]
                found[i] = new
        return found

    @cached_property
    def loops(self) -> list[Loop]:
        """Natural loops with matrix instructions, one a header, the smallest first."""
        bodies: dict[int, set[int]] = {}
        for end, following in enumerate(self.after):
            for header in following:
                if header in self.dominators[end]:
                    body, reached = bodies.setdefault(header, {header}), [end]
                    while reached:
                        if (block := reached.pop()) not in body:
                            body.add(block)
                            reached += self.before[block]
        loops = []
        for body in bodies.values():
            names = [name for block in body for name in self.blocks[block]]
            loops.append(Loop(frozenset(body), len(names), sum(bool(MATRIX.match(name)) for name in names)))
        return sorted((loop for loop in loops if loop.matrix), key=lambda loop: loop.instructions)

    def nest(self) -> tuple[Loop, Loop | None]:
        """The smallest innermost loop with matrix instructions, and the loop around it."""
        inner = self.loops[0]
        return inner, next((loop for loop in self.loops if loop.blocks > inner.blocks), None)
