"""Line charts as numbers: paths and ticks that a template draws as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 440, 250  # units of the SVG: near a phone's pixels, so that its text stays readable there
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 12, 26
_POINTS = 240  # a path's points; more than the chart has room for only make the page heavy

Series = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Tick:
    place: float
    text: str


@dataclass(frozen=True)
class Line:
    name: str
    path: str
    last: float


@dataclass(frozen=True)
class Chart:
    """Everything the template needs, in SVG units; ``data`` is what is drawn, as JSON: name to xs and ys."""

    title: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    data: dict[str, dict[str, list[float]]]


def line_chart(
    title: str, series: Mapping[str, Series], log: bool = False, smooth: float = 0.0
) -> Chart | None:
    """A chart of named (xs, ys); None if nothing in it can be drawn.

    Args:
        log: logarithmic heights; values that are not positive are left out, as are those that are not finite.
        smooth: weight in [0, 1) of the running mean, for noisy losses.
    """
    kept: dict[str, list[tuple[float, float]]] = {}
    for name, (xs, ys) in series.items():
        points = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y) and (y > 0 or not log)]
        if points:
            kept[name] = _thin(_smoothed(points, smooth))
    if not kept:
        return None
    scale = math.log10 if log else float
    xs = [x for points in kept.values() for x, _ in points]
    ys = [scale(y) for points in kept.values() for _, y in points]
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1)
    margin = 0.06 * (max(ys) - min(ys)) or 0.05 * abs(max(ys)) or 0.5
    y_low, y_high = min(ys) - margin, max(ys) + margin

    def x_at(x: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (x - x_low) / (x_high - x_low), 1)

    def y_at(y: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (y_high - scale(y)) / (y_high - y_low), 1)

    lines = [
        Line(name, "M" + "L".join(f"{x_at(x)} {y_at(y)}" for x, y in points), points[-1][1])
        for name, points in kept.items()
    ]
    heights = _log_ticks(y_low, y_high) if log else _even_ticks(y_low, y_high, 4)
    return Chart(
        title,
        lines,
        [Tick(x_at(x), f"{x:g}") for x in _even_ticks(x_low, x_high, 5)],
        [Tick(y_at(y), f"{y:.3g}") for y in heights],
        {
            name: {"x": [x for x, _ in points], "y": [float(f"{y:.5g}") for _, y in points]}
            for name, points in kept.items()
        },
    )


def _smoothed(points: list[tuple[float, float]], weight: float) -> list[tuple[float, float]]:
    mean, total, result = 0.0, 0.0, []
    for x, y in points:  # the running mean of Adam: no pull to zero at the start
        mean, total = weight * mean + (1 - weight) * y, weight * total + (1 - weight)
        result.append((x, mean / total))
    return result


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    step = -(-len(points) // _POINTS)
    return points[::step] if (len(points) - 1) % step == 0 else [*points[::step], points[-1]]


def _even_ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round numbers inside [low, high], about ``wanted`` of them."""
    raw = (high - low) / wanted
    unit = 10 ** math.floor(math.log10(raw))
    step = min((m * unit for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(s - raw))
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Round values whose logarithms lie inside [low, high]: 1, 2, 5 where the range is short, decades where it is long."""
    digits = (1, 2, 5) if high - low < 2 else (1,)
    every = max(1, round((high - low) / 5))
    decades = range(math.floor(low), math.ceil(high) + 1)
    values = [m * 10.0**k for k in decades if k % every == 0 for m in digits]
    inside = [v for v in values if low <= math.log10(v) <= high]
    return (
        inside
        if len(inside) > 1
        else [10.0**y for y in (low + 0.1 * (high - low), high - 0.1 * (high - low))]
    )
