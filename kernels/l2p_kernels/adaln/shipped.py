"""The configurations of adaln that are compiled ahead of time."""

from collections.abc import Iterator

from ..aot import Configuration
from . import triton as kernels


def configurations() -> Iterator[Configuration]:
    """bf16, RMS norm with a gated branch, widths from the fine grid's to a large core's."""
    for width in (192, 3840):
        constants = kernels.constants(width, branch=True, layer_norm=False)
        for name, kernel in (("forward", kernels.forward_kernel), ("backward", kernels.backward_kernel)):
            types = {"tokens": "i32", "rows_each": "i32", "eps": "fp32", "sums": "*fp32"}
            arguments = {n: types.get(n, "*bf16") for n in kernel.arg_names if n not in constants}
            yield Configuration(
                f"adaln {name} bf16 D {width}",
                kernel,
                arguments,
                constants,
                kernels.warps(width),
                matrix=False,
            )
