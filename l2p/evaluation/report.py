"""The report: one self-contained page about a run, made from the files that the run left.

Reads ``metrics.json`` and ``evaluation/pictures.npz`` and, where a distillation left them, ``recipe.yaml``,
``stages/*.json``, ``logs/*.csv`` and ``previews/*.png``. Captions and names are hostile input: the template escapes all.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2p.errors import UserError
from l2p.evaluation.charts import HEIGHT, LEFT, RIGHT, WIDTH, Chart, line_chart
from l2p.files import read_json, write_text

PAINTERS = {
    "teacher": "Teacher, {steps} steps",
    "teacher_one_step": "Teacher, one step",
    "lift": "Lift, untrained",
    "student": "Student, {student_steps}",
}
YARDSTICKS = {"vae": "VAE of real renders", "real": "Real renders"}
TRAINING = ("transfer", "one_step", "match")
_STRIPS = 6  # previews shown over training
_STRIP_PICTURES = 8
# key, title, decimals, factor, what is better: +1 more, -1 less, 0 nearer to 1
_COLUMNS = (
    ("attribute_accuracy", "Attributes %", 1, 100, 1),
    ("frechet", "Fréchet to real", 2, 1, -1),
    ("frechet_to_teacher", "Fréchet to teacher", 2, 1, -1),
    ("psnr_to_teacher", "PSNR to teacher, dB", 1, 1, 1),
    ("detail_ratio", "Detail", 2, 1, 0),
    ("seam_ratio", "Seams", 3, 1, 0),
    ("latency_ms", "Latency, ms", 0, 1, -1),
)


@dataclass(frozen=True)
class Cell:
    text: str
    best: bool = False


@dataclass(frozen=True)
class Row:
    name: str
    cells: list[Cell]
    yardstick: bool = False


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


def write_report(folder: str | Path, title: str | None = None) -> Path:
    """Write ``folder/report.html``.

    Args:
        folder: where `evaluate` wrote, which is the run's own folder after a distillation.
        title: the run's name if None.

    Raises:
        UserError: metrics.json or the pictures are missing or broken.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = Path(folder)
    metrics = read_json(folder / "metrics.json")
    captions, pictures = _pictures(folder / "evaluation" / "pictures.npz")
    settings = metrics["settings"]
    steps = settings["student_steps"]
    names = {
        "steps": settings["teacher_steps"],
        "student_steps": "one step" if steps == 1 else f"{steps} steps",
    }
    labels = {key: text.format(**names) for key, text in PAINTERS.items()}
    cases = [
        {"caption": caption, "pictures": [(labels[key], png_uri(pictures[key][k])) for key in PAINTERS]}
        for k, caption in enumerate(captions)
    ]
    history = read_history(folder, settings)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html").render(
        title=title or folder.resolve().name,
        metrics=metrics,
        settings=settings,
        labels=labels,
        tiles=_tiles(metrics),
        cases=cases,
        columns=[column[1] for column in _COLUMNS],
        rows=_rows(metrics, labels),
        history=history,
        longest=max((stage["seconds"] for stage in history.stages), default=0.0),
        chart={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT},
        facts=_facts(settings, metrics),
        data=base64.b64encode(json.dumps(metrics, indent=2).encode()).decode(),
        duration=duration,
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def png_uri(picture: NDArray[np.uint8]) -> str:
    """uint8 [H, W, 3] as a data URI."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def duration(seconds: float) -> str:
    """Seconds in words: 41 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    return (
        f"{whole // 60} min {whole % 60:02d} s"
        if whole < 3600
        else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    )


def _pictures(path: Path) -> tuple[list[str], dict[str, NDArray[np.uint8]]]:
    if not path.is_file():
        raise UserError(f"{path} is missing: run the evaluation first")
    with np.load(path, allow_pickle=False) as file:
        return [str(text) for text in file["captions"]], {name: file[name] for name in PAINTERS}


def _number(value: float | None, digits: int, factor: float = 1.0) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value * factor:,.{digits}f}"


def _rows(metrics: dict[str, Any], labels: dict[str, str]) -> list[Row]:
    def merit(name: str, column: tuple[str, str, int, float, int]) -> float | None:
        """How good a cell is as it is shown: more is better; None for an empty one."""
        key, _, digits, factor, better = column
        value = metrics[name].get(key)
        if value is None or not math.isfinite(value):
            return None
        shown = round(value * factor, digits)
        return shown * better if better else -round(abs(shown - 1), digits)

    rows = []
    for name, label in {**labels, **YARDSTICKS}.items():
        if name not in metrics:
            continue
        cells = []
        for column in _COLUMNS:
            merits = [m for painter in PAINTERS if (m := merit(painter, column)) is not None]
            own = merit(name, column) if name in PAINTERS else None
            text = _number(metrics[name].get(column[0]), column[2], column[3])
            cells.append(Cell(text, own is not None and own == max(merits)))
        rows.append(Row(label, cells, name in YARDSTICKS))
    return rows


def _tiles(metrics: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(figure, what it is, what to compare it with)."""
    summary, teacher, student = metrics["summary"], metrics["teacher"], metrics["student"]
    tiles = [
        (
            f"{summary['speedup']:.1f}×",
            "faster than the teacher",
            f"{_number(student['latency_ms'], 0)} against {_number(teacher['latency_ms'], 0)} ms, prompt to picture",
        ),
        (
            f"{_number(summary['psnr_to_teacher'], 1)} dB",
            "PSNR to the teacher’s picture",
            f"same noise; the untrained lift has {_number(metrics['lift']['psnr_to_teacher'], 1)} dB",
        ),
    ]
    if student["attribute_accuracy"] is not None:
        tiles += [
            (
                f"{_number(student['attribute_accuracy'], 1, 100)} %",
                "of what prompts name is there",
                f"teacher {_number(teacher['attribute_accuracy'], 1, 100)} %, "
                f"real renders {_number(metrics['real']['attribute_accuracy'], 1, 100)} %",
            ),
            (
                f"{_number(student['frechet'], 2)}",
                "Fréchet distance to real renders",
                f"teacher {_number(teacher['frechet'], 2)}, floor {_number(metrics['real']['frechet'], 2)}",
            ),
        ]
    seams = (
        f"{_number(summary['seam_ratio'], 2)}",
        "seam energy at patch borders",
        "1.00 is a picture without seams",
    )
    return [*tiles, seams]


def _facts(settings: dict[str, Any], metrics: dict[str, Any]) -> list[tuple[str, str]]:
    guidance = f", guidance {settings['teacher_guidance']:g}" if settings["teacher_guidance"] else ""
    facts = [
        ("Teacher", f"{settings['teacher']}, {settings['teacher_steps']} steps{guidance}"),
        ("Pictures", f"{settings['num_images']} of {settings['height']} × {settings['width']} px"),
        ("Prompts", f"{settings['prompts']}, unseen; seeds from {settings['first_seed']:,}"),
        ("Device", f"{settings['device']}, {settings['threads']} threads, {settings['dtype']}"),
        ("Versions", f"l2p {settings['l2p']}, torch {settings['torch']}, Python {settings['python']}"),
        ("Evaluated in", duration(metrics["seconds"])),
    ]
    if "judge" in metrics:
        judge = metrics["judge"]
        facts.insert(
            3, ("Judge", f"right on {100 * judge['accuracy']:.1f} % of unseen real renders’ attributes")
        )
        facts.insert(4, ("Fréchet reference", f"{judge['reference_images']:,} real renders of other scenes"))
    return facts


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
    from PIL import Image

    with Image.open(path) as image:
        sheet = np.asarray(image.convert("RGB"))
    top, left = sheet.shape[0] - 2 * (height + 2), sheet.shape[1] - count * (width + 2)
    if top < 0 or left < 0:
        raise UserError(f"{path} is no preview of {count} pictures of {height} x {width}: delete it")
    corners = [
        [(top + r * (height + 2), left + c * (width + 2)) for c in range(min(count, _STRIP_PICTURES))]
        for r in (0, 1)
    ]
    return [[png_uri(sheet[y : y + height, x : x + width]) for y, x in row] for row in corners]
