"""Wall-clock time of one picture, prompt to 8-bit, of several paths side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def median_latency(
    paths: Mapping[str, Callable[[int], object]],
    runs: int = 5,
    device: torch.device | str = "cpu",
    before: Callable[[], object] | None = None,
) -> dict[str, float]:
    """Median milliseconds of each path.

    The paths take turns in every round, so that a machine that gets busy slows all of them and not the last one.

    Args:
        paths: name to a function of the round's number that makes one picture.
        runs: timed rounds, at least 1; one untimed round goes first.
        before: called untimed before each picture (for example to empty a cache that would flatter the later paths).
    """
    if runs < 1:
        raise ValueError(f"{runs=} must be at least 1")
    on_gpu = torch.device(device).type == "cuda"
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    for number in range(-1, runs):
        for name, make in paths.items():
            if before is not None:
                before()
            if on_gpu:
                torch.cuda.synchronize(device)
            start = time.perf_counter()
            make(number)
            if on_gpu:
                torch.cuda.synchronize(device)
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(values) for name, values in seconds.items()}
