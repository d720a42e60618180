"""Where and how a process computes: threads, device, number format. Set once at the start of a verb, nowhere else."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import random
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import nn

from l2p.errors import UserError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
ALIGNMENT = 64  # bytes; where torch's own allocator begins a tensor on a CPU


def setup(threads: int | None = None, seed: int | None = None) -> int:
    """Sets torch's threads (None: OMP_NUM_THREADS, else the usable cores) and every global seed; returns the threads."""
    threads = threads or int(os.environ.get("OMP_NUM_THREADS") or 0) or usable_cores()
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    if seed is not None:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
    return threads


def usable_cores() -> int:
    """Cores this process may use: its affinity, and a container's quota, beyond which threads only wait for each other."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota_file = Path("/sys/fs/cgroup/cpu.max")
    quota, period = (quota_file.read_text().split() if quota_file.is_file() else ("max", "1"))[:2]
    return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))


def synchronize(device: torch.device | str) -> None:
    """Wait for what was launched on a GPU, so that a clock read next counts it; nothing to do on a CPU."""
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def threads_of(processes: int) -> int:
    """Threads of each of several processes that share this machine."""
    return int(os.environ.get("OMP_NUM_THREADS") or 0) or max(1, usable_cores() // processes)


def pick_device(name: str = "auto", local_rank: int | None = None) -> torch.device:
    """The device called `name`: auto (cuda, else mps, else cpu), cpu, cuda, cuda:N or mps. UserError when it is not here.

    Args:
        local_rank: of one of several processes on this machine, which take a CUDA device each.
    """
    if local_rank is not None and (name == "cuda" or (name == "auto" and torch.cuda.is_available())):
        name = f"cuda:{local_rank}"
    if name == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not (kind == "cuda" and index.isdecimal())):
        raise UserError(f"device is {name!r}, expected auto, cpu, cuda, cuda:N or mps")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("device is mps, but this machine has none that torch can use: use device auto or cpu")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device is {name}, but torch sees {torch.cuda.device_count()} CUDA devices: use device auto or cpu"
        )
    return torch.device(name)


def device_name(device: torch.device | str) -> str:
    """What its maker calls the GPU or the CPU, such as "AMD EPYC"; the architecture where that is not told."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.is_file() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(filter(None, names), platform.machine())


def has_fast_bf16(device: torch.device | str) -> bool:
    """Whether bf16 matrix products run in hardware: on a CPU avx512_bf16, amx_bf16 or Arm's bf16, on a GPU Ampere or later."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpu_info = Path("/proc/cpuinfo")
    if kind != "cpu" or not cpu_info.is_file():
        return False
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(cpu_info.read_text().split())


def pick_dtype(name: str, device: torch.device | str) -> torch.dtype:
    """auto, bf16, fp16 or fp32 -> torch.dtype; auto is bf16 where the device computes it in hardware, else fp32."""
    if name == "auto":
        return torch.bfloat16 if has_fast_bf16(device) else torch.float32
    if name not in DTYPES:
        raise UserError(f"dtype is {name!r}, expected auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def frozen_dtype(device: torch.device | str, dtype: torch.dtype) -> torch.dtype:
    """Of a frozen network's weights where the arithmetic is in `dtype`.

    On a CPU a small teacher stays in fp32 and autocast does the rest; a large one on a GPU comes in `dtype`.
    """
    return torch.float32 if torch.device(device).type == "cpu" else dtype


def autocast(device: torch.device | str, dtype: torch.dtype) -> AbstractContextManager:
    """Context in which matrix products run in `dtype`; fp32 changes nothing."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype)


def no_autocast(x: torch.Tensor) -> AbstractContextManager:
    """Context in which products with `x` keep its dtype, whatever autocast is on; the meta device knows none."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


@contextmanager
def weights_in_autocast_dtype(module: nn.Module) -> Iterator[None]:
    """Under autocast, `module` holds its weights in the autocast dtype inside the `with`, its own ones after it.

    For loops that call a frozen network many times: autocast casts its weights anew in every call, and its activations
    back and forth between operations; on a CPU that is half of a small network's time.
    """
    weights = list(module.parameters())
    kind = weights[0].device.type
    if not torch.is_autocast_enabled(kind):
        yield
        return
    own = [weight.data for weight in weights]
    cast_weights(module, torch.get_autocast_dtype(kind))
    try:
        yield
    finally:
        for weight, data in zip(weights, own, strict=True):
            weight.data = data


def cast_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Bring the parameters to `dtype`; buffers, which may be exact on purpose, keep theirs."""
    for weight in module.parameters():
        weight.data = weight.data.to(dtype)


def realign_tensors(module: nn.Module) -> nn.Module:
    """Copy weights that lie where no allocator puts them, as those of a mapped file do. Returns the module.

    Where a tensor begins decides how a CPU's matrix product is rounded, so that the same weights from another file would
    draw a picture that differs in its last bits.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if (
            type(tensor.data) is torch.Tensor
            and tensor.device.type == "cpu"
            and tensor.data_ptr() % ALIGNMENT
        ):
            tensor.data = tensor.data.clone()
    return module


def keep_freed_memory() -> None:
    """Lets blocks of up to a quarter of a GB stay with the process when they are freed. glibc gives each back to the system, and
    every page of the next one is then faulted in and cleared anew: a twentieth of a 4096 px picture's time on a CPU."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, 2**28), mallopt(M_TRIM_THRESHOLD, 2**30)


def return_free_memory() -> None:
    """Gives freed pages back to the system. glibc keeps those that lie between blocks still in use, so a loop that keeps
    a few numbers of each large batch grows although nothing holds on to the batches."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none, and no such habit
        if trim is not None:
            trim(0)


UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def parse_bytes(text: str) -> int:
    """Bytes of a size such as 2GB, 1.5GiB, 800MB or 1000. Raises UserError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?\s*", text)
    if not found or not float(found[1]):
        raise UserError(f"memory size {text!r} is not understood, expected one such as 2GB, 1.5GiB or 800MB")
    return int(float(found[1]) * UNITS[found[2] or ""])


def check_compiler(device: torch.device) -> None:
    """Raises UserError where `torch.compile` cannot work: on a CPU it needs a C++ compiler."""
    if device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++"))):
        raise UserError("compiling for a CPU needs a C++ compiler: install g++, or go without --compile")


def silence_libraries() -> None:
    """Keeps transformers and diffusers from drawing bars and giving advice while they load; downloads keep their bars.

    Where torchao is installed, diffusers imports it, and torch advises torchao's developers on its enums.
    """
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    import diffusers.utils.logging
    import transformers.utils.logging
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars

    hidden_before = are_progress_bars_disabled()
    for library in (transformers, diffusers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
    if not hidden_before:  # the switch of transformers is the Hub's as well
        enable_progress_bars()


def call_in(dtype: torch.dtype, module: nn.Module, *args: object) -> object:
    """`module(*args)` with its weights as copies in `dtype`; gradients arrive in the weights themselves.

    Cheaper than autocast where small operations between the matrix products set the pace, as on a CPU: activations
    stay in `dtype` from end to end. The optimiser still moves fp32 weights.
    """
    if dtype == torch.float32:
        return module(*args)
    weights = {name: p.to(dtype) for name, p in module.named_parameters()}
    return torch.func.functional_call(module, weights, args)
