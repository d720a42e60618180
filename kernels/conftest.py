"""Without a GPU the Triton kernels are tested in Triton's interpreter, which must be chosen before Triton is imported."""

import os
from pathlib import Path

import pytest

if not Path("/dev/nvidia0").exists() and not Path("/dev/kfd").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def interpreted_bf16(monkeypatch):
    """Lets Triton's interpreter, where it is in use, compute in bf16: its own products read the bits as integers, and its
    rounding loses the carry of a full mantissa. `impl="triton"` refuses bf16 there for that reason.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    import numpy as np
    import torch
    import triton.language as tl
    from l2p_kernels import dispatch
    from triton.runtime import interpreter

    convert, dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def convert_float(data, source, target, rounding):
        if source == tl.bfloat16 and target == tl.float32:
            return data.astype(np.uint32) << 16
        if source == tl.float32 and target == tl.bfloat16:
            narrow = torch.from_numpy(np.ascontiguousarray(data.view(np.float32))).bfloat16()
            return narrow.view(torch.int16).numpy().view(np.uint16)
        return convert(data, source, target, rounding)

    def create_dot(self, a, b, d, precision, imprecise):
        if a.dtype.scalar == tl.bfloat16:
            a, b = (self.create_fp_ext(x, tl.float32) for x in (a, b))
        return dot(self, a, b, d, precision, imprecise)

    monkeypatch.setattr(interpreter, "_convert_float", convert_float)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
    monkeypatch.setattr(dispatch, "check_triton", lambda x: None)


def pytest_collection_finish(session):
    """Importing the tests of a folder, pytest puts the folder in place of the operator of the same name: put it back."""
    import l2p_kernels
    from l2p_kernels.patch_attention.api import patch_attention

    l2p_kernels.patch_attention = patch_attention
