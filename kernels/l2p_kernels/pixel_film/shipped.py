"""The configurations of pixel_film that are compiled ahead of time."""

from collections.abc import Iterator

from ..aot import Configuration
from . import triton as kernels


def configurations() -> Iterator[Configuration]:
    """bf16, 64 pixel channels; any token width that is a multiple of 16, any patch side: they are no constants."""
    for name in kernels.STAGES:
        kernel = getattr(kernels, f"{name}_kernel")
        constants = kernels.blocks(channels=64, width=1024)
        arguments = {n: "i32" if n in "NPCD" else "*bf16" for n in kernel.arg_names if n not in constants}
        yield Configuration(
            f"pixel_film {name} bf16 C 64",
            kernel,
            arguments,
            constants,
            num_stages=kernels.STAGES[name],
            aligned=("C", "D"),
        )
