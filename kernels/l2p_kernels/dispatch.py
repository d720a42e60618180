"""Which path of an operator runs, said once; and whether Triton can run at all."""

import functools
import importlib.metadata
import importlib.util
import logging
import re

import torch
from torch import Tensor

logger = logging.getLogger("l2p_kernels")
HAS_TRITON = importlib.util.find_spec("triton") is not None  # a constant: `choose` runs inside traced code
TRITON_VERSION = (
    tuple(map(int, re.findall(r"\d+", importlib.metadata.version("triton"))[:2])) if HAS_TRITON else ()
)


def choose(operator: str, impl: str, impls: tuple[str, ...], x: Tensor) -> str:
    """The path to run for `x`. `impls`: reference, the CPU's path, triton, then others.

    Raises:
        ValueError: an unknown path, or one that does not take x's dtype.
        RuntimeError: triton with neither a GPU nor its interpreter.
    """
    if impl == "auto":
        on_gpu = x.device.type == "cuda" and x.dtype != torch.float64
        impl = "triton" if on_gpu and HAS_TRITON else impls[1]
        if not torch.compiler.is_compiling():
            _say_once(operator, x.device.type, impl, on_gpu and not HAS_TRITON)
    elif impl not in impls:
        raise ValueError(f"impl must be one of auto, {', '.join(impls)}; got {impl!r}")
    if impl.startswith("triton") and not torch.compiler.is_compiling():
        check_triton(x)
    return impl


@functools.cache
def _say_once(operator: str, device: str, impl: str, fallback: bool) -> None:
    if fallback:
        logger.warning(
            "%s on %s runs through impl=%r, which is slow there: the package triton is not installed",
            operator, device, impl,
        )  # fmt: skip
    else:
        logger.info("%s on %s runs through impl=%r", operator, device, impl)


def check_triton(x: Tensor) -> None:
    """Raises RuntimeError where there is neither a GPU nor Triton's interpreter, ValueError for what it cannot take."""
    if x.dtype == torch.float64:
        raise ValueError("impl='triton' takes fp32, fp16 or bf16; got torch.float64")
    if x.device.type == "cuda" and HAS_TRITON:
        return
    if not HAS_TRITON:
        raise RuntimeError("impl='triton' needs the package triton, which is not installed")
    import triton.language
    from triton import knobs
    from triton.runtime.interpreter import InterpretedFunction

    if not knobs.runtime.interpret:
        raise RuntimeError(
            f"impl='triton' needs a GPU tensor, or TRITON_INTERPRET=1 set before Python starts; got {x.device}"
        )
    if not isinstance(triton.language.sum, InterpretedFunction):
        raise RuntimeError(
            "TRITON_INTERPRET=1 was set after Triton was imported; set it before Python starts"
        )
    if x.dtype == torch.bfloat16:
        raise ValueError("Triton's interpreter miscomputes bf16 products in silence; use fp16 or fp32 there")
