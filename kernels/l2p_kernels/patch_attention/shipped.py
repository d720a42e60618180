"""The configurations of patch attention that are compiled ahead of time: what models of this project launch."""

from collections.abc import Iterator

from ..aot import ARCHS, Configuration
from . import strips, strips_kernels
from . import triton_kernels as kernels
from .op import HEAD_DIMS, TILE
from .triton import options

STRIDES = [f"{x}_{axis}" for x in "qkv" for axis in "byxh"]
KERNELS = {
    "forward": kernels.forward_kernel,
    "grad_q": kernels.grad_q_kernel,
    "grad_kv": kernels.grad_kv_kernel,
}
STRIPS = ("table", "turn", "forward", "grad_q", "grad_kv", "sum")


def configurations(arch: str) -> Iterator[Configuration]:
    """bf16, tile 8, halo 4, norms and RoPE on, head_dim 32, 64, 128."""
    for head_dim in (32, 64, 128):
        for name, kernel in KERNELS.items():
            yield configuration(
                name, kernel, head_dim, major={"sm_80": 8, "sm_86": 8, "sm_90": 9, "sm_120": 12}.get(arch)
            )
    for head_dim in HEAD_DIMS:
        for name in STRIPS:
            yield strips_configuration(name, head_dim, arch)


def configuration(
    name: str,
    kernel,
    head_dim: int,
    tile: int = 8,
    halo: int = 4,
    dtype: str = "bf16",
    major: int | None = None,
) -> Configuration:
    """One kernel as the launcher in `triton.py` starts it, with every option on."""
    chosen = options(name, tile, head_dim, element_size=2, major=major)
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
    )


def strips_configuration(name: str, head_dim: int, arch: str, dtype: str = "bf16") -> Configuration:
    """One kernel of `impl="triton_strips"` as `strips.py` starts it on an architecture, with norms and RoPE."""
    kernel = getattr(strips_kernels, f"{name}_kernel")
    limits = ARCHS[arch]
    chosen = strips.options(name, limits.target if limits.backend == "cuda" else None)
    warps, stages, held = chosen.pop("num_warps"), chosen.pop("num_stages"), chosen.get("HELD", TILE)

    keys = 2 * TILE if chosen.get("WALK") else TILE

    def blocks(rows: int, plane: bool) -> str:
        return f"tensordesc<{dtype}[1, {rows}, 8, {'' if plane else '1, '}{head_dim}]>"

    described = {
        "forward": {"q": blocks(held, True), "k": blocks(keys, True), "v": blocks(keys, False)},
        "grad_q": {"q": blocks(held, True), "k": blocks(TILE, True), "v": blocks(TILE, False)}
        | {"grad": blocks(held, False), "out": blocks(held, False)},
        "grad_kv": {"q": blocks(TILE, True), "k": blocks(held, True), "v": blocks(held, False)}
        | {"grad": blocks(TILE, False)},
    }.get(name, {})
    constants = {"D": head_dim, "NORM": True, "NORM_Q": True, "NORM_K": True, "ROPE": True, **chosen}
    constants |= {"N": head_dim // 4, "BN": head_dim // 4}
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    in_fp32 = {
        "rows",
        "columns",
        "table",
        "lse",
        "delta",
        "weight",
        "q_weight",
        "k_weight",
        "sums",
        "sums_q",
        "sums_k",
    }
    numbers = {"height", "width", "heads", "each", "programs_q", "programs_k"}
    strides = {f"{x}_{axis}" for x in ("q", "k", "raw") for axis in "byxh"}
    arguments = {}
    for argument in kernel.arg_names:
        if argument in constants:
            continue
        if argument == "scale":
            arguments[argument] = "fp32"
        elif argument in numbers | strides:
            arguments[argument] = "i32"
        else:
            arguments[argument] = described.get(argument, f"*{'fp32' if argument in in_fp32 else dtype}")
    return Configuration(
        f"patch_attention strips {name} {dtype} d {head_dim}",
        kernel,
        arguments,
        constants,
        num_warps=1 if name == "table" else warps,
        num_stages=stages,
        matrix=bool(described),
        aligned=tuple(strides),
    )
