"""What a distillation left about how it came to be: stages, curves, and the student's pictures over training."""

from __future__ import annotations

import base64
import csv
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2p.errors import UserError
from l2p.evaluation.charts import Chart, line_chart
from l2p.files import read_json
from l2p.images import read_picture

TRAINING = ("transfer", "one_step", "match")
_STRIPS = 6  # previews shown over training
_STRIP_PICTURES = 8


@dataclass(frozen=True)
class Strip:
    """Pictures of the held-out pairs at one moment of training."""

    label: str
    pictures: list[str]


@dataclass
class History:
    """What a distillation left about how it came to be."""

    stages: list[dict[str, Any]] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    strips: list[Strip] = field(default_factory=list)
    recipe: str | None = None


def read_history(folder: Path, settings: dict[str, Any]) -> History:
    """Stages, curves and previews of a distillation's folder; empty where there are none."""
    history = History()
    recipe = folder / "recipe.yaml"
    history.recipe = recipe.read_text(encoding="utf-8") if recipe.is_file() else None
    markers = [read_json(path) for path in (folder / "stages").glob("*.json")]
    order = ("lift", "corpus", *TRAINING, "student", "evaluation")
    history.stages = sorted(
        markers, key=lambda m: order.index(m["stage"]) if m["stage"] in order else len(order)
    )
    psnr: dict[str, tuple[list[float], list[float]]] = {}
    done = 0
    for stage in TRAINING:
        rows = _read_csv(folder / "logs" / f"{stage}.csv")
        if not rows:
            continue
        steps = [int(row["step"]) for row in rows]
        terms = [key for key in rows[0] if key not in ("step", "seconds", "lr", "grad_norm", "psnr")]
        terms.sort(key=lambda key: key != "loss")
        series = {term: (steps, [float(row[term] or "nan") for row in rows]) for term in terms}
        chart = line_chart(f"{stage.replace('_', ' ')}: loss over steps", series, log=True, smooth=0.9)
        history.charts += [chart] if chart else []
        measured = [k for k, row in enumerate(rows) if row.get("psnr")]
        if (
            measured
        ):  # a line for each stage: one with many steps and one with a single step are not one curve
            psnr[stage.replace("_", " ")] = (
                [done + steps[k] for k in measured],
                [float(rows[k]["psnr"]) for k in measured],
            )
        done += steps[-1]
    chart = line_chart("Held-out PSNR to the teacher, dB", psnr)
    history.charts += [chart] if chart else []
    history.strips = _strips(folder, settings, markers)
    return history


def _read_csv(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]


def _strips(folder: Path, settings: dict[str, Any], markers: list[dict[str, Any]]) -> list[Strip]:
    """The student's row of some previews over training, then the teacher's row it is to meet."""
    paths = [path for stage in TRAINING for path in sorted((folder / "previews").glob(f"{stage}-*.png"))]
    count = next(
        (marker["figures"].get("num_held_out") for marker in markers if marker["stage"] == "corpus"), None
    )
    if not paths or not count:
        return []
    chosen = sorted({round(k * (len(paths) - 1) / max(1, _STRIPS - 1)) for k in range(_STRIPS)})
    strips = []
    for path in (paths[k] for k in chosen):
        stage, _, step = path.stem.rpartition("-")
        rows = _cut(path, settings["height"], settings["width"], count)
        strips.append(Strip(f"{stage.replace('_', ' ')}, step {int(step)}", rows[-1]))
    return [*strips, Strip("teacher", rows[0])]


def _cut(path: Path, height: int, width: int, count: int) -> list[list[str]]:
    """The pictures of a labelled grid (two rows of ``count``, at its lower right, 2 px after each) as data URIs."""
    sheet = read_picture(path)
    top, left = sheet.shape[0] - 2 * (height + 2), sheet.shape[1] - count * (width + 2)
    if top < 0 or left < 0:
        raise UserError(f"{path} is no preview of {count} pictures of {height} x {width}: delete it")
    corners = [
        [(top + r * (height + 2), left + c * (width + 2)) for c in range(min(count, _STRIP_PICTURES))]
        for r in (0, 1)
    ]
    return [[png_uri(sheet[y : y + height, x : x + width]) for y, x in row] for row in corners]


def png_uri(picture: NDArray[np.uint8]) -> str:
    """uint8 [H, W, 3] as a data URI."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
