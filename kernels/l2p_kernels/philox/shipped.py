"""The configuration of philox that is compiled ahead of time."""

from collections.abc import Iterator

from ..aot import Configuration
from . import triton as kernels


def configurations() -> Iterator[Configuration]:
    arguments = {name: "i32" for name in ("seed_low", "seed_high", "stream", "first", "count")}
    yield Configuration(
        "philox_normal",
        kernels.fill_kernel,
        {"out": "*fp32", **arguments},
        {"BLOCK": kernels.BLOCK},
        matrix=False,
    )
