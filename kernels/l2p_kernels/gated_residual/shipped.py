"""The configurations of gated_residual that are compiled ahead of time."""

from collections.abc import Iterator

from ..adaln.triton import warps
from ..aot import Configuration
from . import triton as kernels


def configurations() -> Iterator[Configuration]:
    """bf16, widths from the fine grid's to a large core's."""
    for width in (192, 3840):
        constants = kernels.constants(width)
        for name, kernel in (("forward", kernels.forward_kernel), ("backward", kernels.backward_kernel)):
            types = {"tokens": "i32", "rows_each": "i32", "sums": "*fp32"}
            arguments = {n: types.get(n, "*bf16") for n in kernel.arg_names if n not in constants}
            title = f"gated_residual {name} bf16 D {width}"
            yield Configuration(title, kernel, arguments, constants, warps(width), matrix=False)
