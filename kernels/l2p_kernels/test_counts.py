"""Loops found in SASS, and what patch attention executes."""

import os
import subprocess
import sys

import pytest

from .sass import Program

TEXT = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/              @!P0 BRA `(.L_x_3) ;
.L_x_0:
        /*0020*/                   IADD3 R1, R1, 0x1, RZ ;
.L_x_1:
        /*0030*/                   HMMA.16816.F32 R4, R8, R10, R4 ;
        /*0040*/              @!P1 BRA `(.L_x_4) ;
.L_x_2:
        /*0050*/                   FADD R1, R1, R2 ;
        /*0060*/               @P0 BRA `(.L_x_1) ;
        /*0070*/               @P2 BRA `(.L_x_0) ;
.L_x_3:
        /*0080*/                   EXIT ;
.L_x_4:
        /*0090*/                   SYNCS R1 ;
        /*00a0*/                   BRA `(.L_x_2) ;
.L_x_5:
        /*00b0*/                   BRA `(.L_x_5);
"""


def test_loops_are_those_of_the_flow_not_of_the_addresses():
    """Code that was moved to the end jumps back without being a loop, and belongs to the loop that it left."""
    inner, outer = Program(TEXT).nest()
    assert (inner.instructions, inner.matrix) == (6, 1)
    assert (outer.instructions, outer.matrix) == (8, 1)
    assert len(Program(TEXT).loops) == 2


def _count(*options):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-m", "l2p_kernels", "count", *options],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("arch", ("sm_90", "sm_100"))
def test_the_second_version_executes_less_than_half_of_the_first(arch):
    rows = {(row[1], row[2]): row for row in _count("--arch", arch) if len(row) == 13 and row[0] == arch}
    for kernel, first in (("forward", 3), ("grad_q", 1.7), ("grad_kv", 3)):
        old, new = (float(rows[version, kernel][3]) for version in ("triton", "triton_strips"))
        assert old > first * new, (kernel, old, new)
        assert rows["triton_strips", kernel][6] == "0"  # spilled
    totals = {
        (row[1], row[2]): float(row[3])
        for row in _count("--arch", arch)
        if row[2] in ("forward:", "backward:")
    }
    assert totals["triton_strips", "forward:"] <= 0.22 and totals["triton_strips", "backward:"] <= 0.5
