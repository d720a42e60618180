"""The report: one self-contained page about a run, made from the files that the run left.

Reads ``metrics.json`` and ``evaluation/pictures.npz`` and, where a distillation left them, ``recipe.yaml``,
``stages/*.json``, ``logs/*.csv`` and ``previews/*.png``. Captions and names are hostile input: the template escapes all.
"""

from __future__ import annotations

import base64
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2p.errors import UserError
from l2p.evaluation.charts import HEIGHT, LEFT, RIGHT, WIDTH
from l2p.evaluation.history import png_uri, read_history
from l2p.files import read_json, write_text

PAINTERS = {
    "teacher": "Teacher, {steps} steps",
    "teacher_one_step": "Teacher, one step",
    "lift": "Lift, untrained",
    "student": "Student, {student_steps}",
}
YARDSTICKS = {"vae": "VAE of real renders", "real": "Real renders"}
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
