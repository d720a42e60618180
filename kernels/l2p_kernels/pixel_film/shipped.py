"""The configurations of pixel_film that are compiled ahead of time."""

from collections.abc import Iterator

from ..aot import Configuration
from . import triton as kernels

KERNELS = ("forward", "grad_pixels", "grad_tokens", "grad_weight")


def configurations() -> Iterator[Configuration]:
    """bf16, 64 pixel channels; any token width and patch side (they are no constants of the kernel)."""
    for name in KERNELS:
        kernel = getattr(kernels, f"{name}_kernel")
        constants = kernels.blocks(channels=64, width=1024)
        arguments = {n: "i32" if n in "NPCD" else "*bf16" for n in kernel.arg_names if n not in constants}
        yield Configuration(f"pixel_film {name} bf16 C 64", kernel, arguments, constants, num_stages=3)
