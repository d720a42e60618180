"""What code asks of a GPU, counted on a machine without one: kernels, bytes, copies to and from the host, waits for it.

Fake tensors (`torch._subclasses.fake_tensor.FakeTensorMode`) have a device, a shape and no numbers, so whole pictures at
their real sizes pass in a second; a tensor on the wrong device raises, as it would on the GPU.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
NOTHING = {  # allocate or look at a tensor without a kernel
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias", "lift_fresh",
    "set_", "resize_", "record_stream", "is_pinned", "_pin_memory", "device", "_unsafe_view", "_reshape_alias",
}  # fmt: skip
WAITS = {
    "_local_scalar_dense",
    "item",
    "nonzero",
    "is_nonzero",
    "masked_select",
    "unique_dim",
    "_unique2",
    "equal",
}
COPIES = {"_to_copy", "copy_", "copy"}


class Launches(TorchDispatchMode):
    """Counts what runs on a device within the `with`.

    Attributes:
        kernels: operator -> launches. One for each operator that computes: what cuBLAS or cuDNN add to it, such as a
            reduction of split products, is theirs to choose.
        moved: bytes of all inputs and outputs of these, as if nothing stayed in a cache.
        to_device, to_host: copies that cross, as (bytes, pinned?).
        waits: operators that make the host wait for a value, and blocking copies to the host.
    """

    def __init__(self, device: str = "cuda") -> None:
        super().__init__()
        self.device = device
        self.kernels: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.to_device: list[int] = []
        self.to_host: list[int] = []
        self.waits: list[str] = []

    @property
    def total(self) -> int:
        return sum(self.kernels.values())

    @property
    def moved(self) -> int:
        return sum(self.bytes.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[-1]
        before = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if name in WAITS and any(self._here(x) for x in before):
            self.waits.append(name)
        out = func(*args, **kwargs)
        after = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if name in COPIES:
            self._copied(name, args, kwargs, out)
        views = any(a.alias_info is not None and not a.alias_info.is_write for a in func._schema.returns)
        tensors = before + [x for x in after if not any(x is y for y in before)]
        if views or name in NOTHING or not any(self._here(x) for x in tensors):
            return out
        self.kernels[name] += 1
        self.bytes[name] += sum(x.nbytes for x in tensors if self._here(x))
        if name.endswith("_") and name not in ("copy_", "fill_", "zero_"):  # in place: read, and written
            self.bytes[name] += sum(x.nbytes for x in tree_leaves(args[0]) if self._here(x))
        return out

    def _here(self, x: Tensor) -> bool:
        return x.device.type == self.device

    def _copied(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        source = args[1] if name == "copy_" else args[0]
        if not isinstance(source, Tensor) or source.device.type == out.device.type:
            return
        size = source.numel() * source.element_size()
        if self._here(out):
            self.to_device.append(size)
        elif self._here(source):
            self.to_host.append(size)
            free = kwargs.get("non_blocking", len(args) > 2 and bool(args[2]))
            if not free:
                self.waits.append(name)


def fake(module: nn.Module, device: str = "cuda") -> nn.Module:
    """The module with fake tensors on a device in place of its own; to be called within `FakeTensorMode`.

    Args:
        module: on the meta device.
    """
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, value in tensors.items():
                if value is not None:
                    made = torch.empty(value.shape, dtype=value.dtype, device=device)
                    is_weight = isinstance(value, nn.Parameter)
                    tensors[name] = nn.Parameter(made, value.requires_grad) if is_weight else made
    return module


class FusedAttention(TorchFunctionMode):
    """`scaled_dot_product_attention` as a GPU dispatches it; on a machine without one torch would write it out."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    if query.device.type != "cuda" or torch.is_grad_enabled():
        return aten.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, **options
        )
    scale = options.get("scale")
    if attn_mask is None:
        return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[
            0
        ]
    bias = query.new_empty(*query.shape[:-1], key.shape[-2])
    return aten._scaled_dot_product_efficient_attention(query, key, value, bias, False, scale=scale)[0]


@contextmanager
def counted(device: str = "cuda") -> Iterator[Launches]:
    """A count of what runs on a device within the `with`; to be entered within `FakeTensorMode`."""
    with FusedAttention(), Launches(device) as launches:
        yield launches


@contextmanager
def without_tables() -> Iterator[None]:
    """Outside the `with` no network finds a table of positions that was made of tensors without numbers inside it."""
    _forget_tables()
    try:
        yield
    finally:
        _forget_tables()


def _forget_tables() -> None:
    homes = [
        m
        for name, m in sys.modules.items()
        if name.startswith(("l2p.students", "l2p.teachers", "l2p_kernels"))
    ]
    for function in (value for home in homes for value in vars(home).values()):
        if hasattr(function, "cache_clear"):
            function.cache_clear()
