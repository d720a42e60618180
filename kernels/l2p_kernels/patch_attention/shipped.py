"""The configurations of patch attention that are compiled ahead of time: what models of this project launch."""

from collections.abc import Iterator

from ..aot import Configuration
from . import triton_kernels as kernels
from .triton import options

STRIDES = [f"{x}_{axis}" for x in "qkv" for axis in "byxh"]
KERNELS = {
    "forward": kernels.forward_kernel,
    "grad_q": kernels.grad_q_kernel,
    "grad_kv": kernels.grad_kv_kernel,
}


def configurations() -> Iterator[Configuration]:
    """bf16, tile 8, halo 4, norms and RoPE on, head_dim 32, 64, 128."""
    for head_dim in (32, 64, 128):
        for name, kernel in KERNELS.items():
            yield configuration(name, kernel, head_dim)


def configuration(
    name: str, kernel, head_dim: int, tile: int = 8, halo: int = 4, dtype: str = "bf16"
) -> Configuration:
    """One kernel as the launcher in `triton.py` starts it, with every option on."""
    chosen = options(name, tile, head_dim, element_size=2, hopper=False)
    on_hopper = options(name, tile, head_dim, element_size=2, hopper=True)
    warps, stages = chosen.pop("num_warps"), chosen.pop("num_stages")
    constants = {"TILE": tile, "HALO": halo, "D": head_dim, **chosen}
    constants |= {"NORM_Q": True, "NORM_K": True, "ROPE": True}
    in_fp32 = {"table", "lse", "delta", "q_weight", "k_weight", "grad_q", "grad_k"}
    arguments = {}
    for argument in kernel.arg_names:
        if argument in constants:
            continue
        if argument in ("scale", "grad_scale"):
            arguments[argument] = "fp32"
        elif argument in ("height", "width", "heads") or argument in STRIDES:
            arguments[argument] = "i32"
        else:
            arguments[argument] = "*fp32" if argument in in_fp32 else f"*{dtype}"
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    title = f"patch_attention {name} {dtype} tile {tile} halo {halo} d {head_dim}"
    return Configuration(
        title,
        kernel,
        arguments,
        constants,
        warps,
        stages,
        aligned=tuple(STRIDES),
        hopper_stages=on_hopper["num_stages"],
    )
