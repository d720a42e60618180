"""Latency and memory over size, log-log, a line a path with its slope."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from l2p.files import PathLike, atomic_path


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """Exponent b of the best power law ``y ~ x^b`` through points (x, y) above 0; None below two points."""
    logs = [(math.log(x), math.log(y)) for x, y in points]
    mean_x, mean_y = (sum(values) / len(logs) for values in zip(*logs, strict=True)) if logs else (0, 0)
    spread = sum((x - mean_x) ** 2 for x, _ in logs)
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / spread if spread else None


def plot(rows: Sequence[Mapping[str, Any]], path: PathLike, title: str) -> None:
    """Write the picture (PNG, SVG or PDF by its name): on the left seconds, on the right peak memory, over pixels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    figure.suptitle(title)
    panels = (("seconds_median", "seconds a picture", 1.0), ("peak_memory_bytes", "peak memory, GB", 1e9))
    for axes, (key, label, unit) in zip(figure.subplots(1, 2), panels, strict=True):
        for name in dict.fromkeys(row["path"] for row in rows):
            points = sorted(
                (row["height"] * row["width"] / 1e6, row[key] / unit)
                for row in rows
                if row["path"] == name and row["status"] == "ok"
            )
            if points:
                found = slope(points)
                axes.plot(
                    *zip(*points, strict=True),
                    marker="o",
                    label=name if found is None else f"{name}: slope {found:.2f}",
                )
        axes.set(xscale="log", yscale="log", xlabel="megapixels", ylabel=label)
        axes.grid(True, which="both", alpha=0.3)
        if axes.has_data():
            axes.legend(fontsize="small")
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=130)
