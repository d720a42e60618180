"""`philox_normal`: checks, dispatch, and the operator behind it."""

import torch
from torch import Tensor

from ..dispatch import choose
from .reference import philox_normal_reference


def philox_normal(out: Tensor, seed: int, stream: int = 0, first: int = 0, *, impl: str = "auto") -> Tensor:
    """Fills `out` with standard normal numbers, `first` and the following ones of a stream; returns it.

    Number e of a stream depends on (seed, stream, e) alone: word e mod 4 of Philox4x32-10 with the seed as its key and
    (e div 4, stream, 0) as its counter, in pairs through Box-Muller in float32. The words are the same everywhere; the
    numbers differ between devices by the rounding of their logarithm, sine and cosine (2e-6 at most in what is tested).

    Args:
        out: float32, contiguous, any shape; filled in row-major order.
        seed: 0 to 2^63 - 1.
        stream: 0 to 2^31 - 1; streams of one seed are independent of each other.
        first: 0 to 2^40.
        impl: `reference`, `triton`, or `auto`. It changes no more than the last bits.

    Raises:
        ValueError: an argument out of its range, or an `out` that does not fit.
        RuntimeError: `impl="triton"` with neither a GPU nor the interpreter.
    """
    if out.dtype != torch.float32 or not out.is_contiguous():
        raise ValueError(f"out must be contiguous float32; got {out.dtype} with strides {list(out.stride())}")
    for name, value, limit in (("seed", seed, 2**63), ("stream", stream, 2**31), ("first", first, 2**40 + 1)):
        if not 0 <= value < limit:
            raise ValueError(f"{name} must be 0 to {limit - 1}; got {value}")
    if out.numel():
        impl = choose("philox_normal", impl, ("reference", "reference", "triton"), out)
        {"reference": philox_normal_reference, "triton": philox_normal_triton}[impl](
            out.view(-1), seed, stream, first
        )
    return out


@torch.library.custom_op(
    "l2p_kernels::philox_normal",
    mutates_args=("out",),
    schema="(Tensor(a!) out, int seed, int stream, int first) -> ()",
)
def philox_normal_triton(out: Tensor, seed: int, stream: int, first: int) -> None:
    from . import triton as kernels

    kernels.fill(out, seed, stream, first)


@philox_normal_triton.register_fake
def _(out: Tensor, seed: int, stream: int, first: int) -> None:
    return None
