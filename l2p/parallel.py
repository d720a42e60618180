"""Independent work next to each other, a thread each.

A small network's operations are too small for several cores: its threads wait for one another at the end of each. Where
there is a batch, half of it on one core and half on the other takes three quarters of the time (2 cores, the bundled teacher).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item, Result = TypeVar("Item"), TypeVar("Result")


def parallel_map(
    function: Callable[[Item], Result], items: Iterable[Item], device: torch.device
) -> list[Result]:
    """``[function(item) for item in items]``; on a CPU as many at a time as torch has threads, which they share.

    Gradient mode and autocast are the caller's. The first error is raised once all have ended.
    """
    items, threads = list(items), torch.get_num_threads()
    workers = min(threads, len(items)) if device.type == "cpu" else 1
    if workers < 2:
        return [function(item) for item in items]
    with_gradients = torch.is_grad_enabled()
    cast, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def work(item: Item) -> Result:
        torch.set_num_threads(threads // workers)  # of this thread alone
        with torch.set_grad_enabled(with_gradients), torch.autocast("cpu", dtype, enabled=cast):
            return function(item)

    try:
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(work, items))
    finally:
        torch.set_num_threads(threads)  # of threads that are yet to begin


def shares(count: int, device: torch.device, least: int = 8) -> list[slice]:
    """A batch of ``count`` in parts for :func:`parallel_map`, of ``least`` or more; one part where no CPU computes."""
    number = min(torch.get_num_threads(), count // least) if device.type == "cpu" else 1
    edges = [count * i // max(1, number) for i in range(max(1, number) + 1)]
    return [slice(first, last) for first, last in zip(edges[:-1], edges[1:], strict=True)]
