"""The report: one self-contained page about a run, made from the files that the run left.

Reads ``metrics.json`` and ``evaluation/pictures.npz`` and, where a distillation left them, ``recipe.yaml``,
``stages/*.json``, ``logs/*.csv`` and ``previews/*.png``. Captions and names are hostile input: the template escapes all,
and the page's own policy lets no script run but the one that came with it.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2p.errors import UserError
from l2p.evaluation.charts import HEIGHT, LEFT, RIGHT, WIDTH, line_chart
from l2p.evaluation.history import png_uri, read_history
from l2p.evaluation.sample_store import FILE
from l2p.evaluation.tables import INVENTED, NAMED, Column, table
from l2p.evaluation.tables import RIGHT as FIGURES
from l2p.evaluation.tables import number as _number
from l2p.features import is_non_commercial
from l2p.files import read_json, write_text

TEMPLATES = Path(__file__).parent / "templates"
METHODS = {
    "teacher": "Teacher, {steps} steps (vae)",
    "teacher_one_step": "Teacher, one step (vae)",
    "pid": "Teacher, {steps} steps (pid)",
    "lift": "Lift, untrained (l2p)",
    "against": "Beside: {against}",
    "student": "Student, {student_steps} (l2p)",
}
BASELINES = {"vae": "VAE of real renders", "real": "Real renders"}
MAPS = {"free noise": "Invention map", "departure": "Departure from the teacher"}
MAP_COLOR = (255, 60, 0)
SPACE_FIGURES = (  # key, title, decimals, what is better
    ("frechet", "Fréchet", 3, -1),
    ("frechet_ratio", "over halves of the reference", 2, -1),
    ("kernel", "kernel", 5, -1),
    ("precision", "precision", 2, 1),
    ("recall", "recall", 2, 1),
)


def write_report(folder: str | Path, title: str | None = None, recipe: str | None = None) -> Path:
    """Write ``folder/report.html``.

    Args:
        folder: where `evaluate` wrote, which is the run's own folder after a distillation.
        title: the run's name if None.
        recipe: YAML of the distillation where the folder does not hold it.

    Raises:
        UserError: metrics.json or the pictures are missing or broken.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    folder = Path(folder)
    metrics = read_json(folder / "metrics.json")
    settings = metrics["settings"]
    captions, pictures, maps = _pictures(folder / FILE)
    labels = _labels(metrics, pictures)
    kind = settings.get("map", "free noise")
    scale = max(0.02, float(np.quantile(maps, 0.995))) if maps is not None and maps.size else 0.0
    cases = [
        {
            "caption": caption,
            "pictures": [
                (label, png_uri(pictures[key][k])) for key, label in labels.items() if k < len(pictures[key])
            ],
            "map": _map_uri(maps[k], scale) if maps is not None and k < len(maps) else None,
        }
        for k, caption in enumerate(captions)
    ]
    baselines = {name: text for name, text in BASELINES.items() if name in metrics}
    made = [
        table("Right and sharp", "figures", FIGURES, metrics, labels, baselines),
        table("Attribute by attribute", "attributes", NAMED, metrics, labels, baselines),
        table("Feature spaces", "spaces", _space_columns(settings), metrics, labels, baselines),
        table("Invented", "invented", INVENTED, metrics, labels, baselines),
    ]
    history = read_history(folder, settings)
    history.recipe = history.recipe or recipe
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html").render(
        title=title or folder.resolve().name,
        metrics=metrics,
        settings=settings,
        alarms=metrics.get("alarms", []),
        tiles=_tiles(metrics),
        cases=cases,
        map_scale=scale,
        map_kind=kind,
        map_name=MAPS[kind],
        tables=[item for item in made if item],
        plots=_plots(metrics, {**labels, **baselines}),
        history=history,
        longest=max((stage["seconds"] for stage in history.stages), default=0.0),
        chart={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT},
        facts=_facts(settings, metrics),
        json_uri=json_uri,
        duration=duration,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
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


def json_uri(value: Any) -> str:
    """A value as a data URI that downloads as JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return "data:application/json;base64," + base64.b64encode(text.encode()).decode()


def _pictures(path: Path) -> tuple[list[str], dict[str, NDArray[np.uint8]], NDArray[np.float16] | None]:
    """Captions, pictures by method, and invention maps where there are some."""
    if not path.is_file():
        raise UserError(f"{path} is missing: run the evaluation first")
    with np.load(path, allow_pickle=False) as file:
        pictures = {name: file[name] for name in METHODS if name in file}
        maps = file["invention"].astype(np.float32) if "invention" in file else None
        return [str(text) for text in file["captions"]], pictures, maps


def _map_uri(values: NDArray[np.float32], scale: float) -> str:
    """A map [H, W] as a picture whose opacity is the value over ``scale``."""
    from PIL import Image

    layer = np.empty((*values.shape, 4), np.uint8)
    layer[..., :3] = MAP_COLOR
    layer[..., 3] = np.clip(255 * values / scale, 0, 255).round()
    buffer = io.BytesIO()
    Image.fromarray(layer).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _labels(metrics: dict[str, Any], pictures: dict[str, Any]) -> dict[str, str]:
    settings = metrics["settings"]
    steps = settings.get("student_steps")
    names = {
        "steps": settings.get("teacher_steps", ""),
        "student_steps": "one step" if steps == 1 else f"{steps} steps",
        "against": Path(settings.get("against", "")).name,
    }
    labels = {
        key: text.format(**names) for key, text in METHODS.items() if key in metrics and key in pictures
    }
    if steps is None:
        labels["student"] = Path(settings.get("student") or settings["pictures"]).name
    return labels


def _plots(metrics: dict[str, Any], labels: dict[str, str]) -> list[dict[str, Any]]:
    plots = []
    spectra = {name: metrics[name]["spectrum"] for name in labels if "spectrum" in metrics[name]}
    lines = {labels[n]: ([200 * f for f in s["frequencies"]], s["power"]) for n, s in spectra.items()}
    chart = line_chart("Power over frequency", lines, log=True)
    if chart:
        note = "Across: frequency in % of the finest the pixels can show. A line below the others is softer."
        plots.append({"title": chart.title, "chart": chart, "note": note, "file": "spectra", "data": spectra})
    times = {name: metrics[name]["latency_ms"] for name in labels if metrics[name].get("latency_ms")}
    if times:
        bars = [(labels[name], value) for name, value in times.items()]
        plot = {
            "title": "Latency of one picture",
            "chart": None,
            "bars": bars,
            "longest": max(times.values()),
        }
        plots.append({**plot, "note": "Prompt to 8-bit.", "file": "latency", "data": times})
    return plots


def _tiles(metrics: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(figure, what it is, what to compare it with)."""
    summary, student = metrics["summary"], metrics["student"]
    teacher, lift = metrics.get("teacher", {}), metrics.get("lift", {})
    tiles = []
    if summary.get("speedup"):
        times = f"{_number(student['latency_ms'], 0)} against {_number(teacher['latency_ms'], 0)} ms, prompt to picture"
        tiles.append((f"{summary['speedup']:.1f}×", "faster than the teacher", times))
    if summary.get("psnr_to_teacher") is not None:
        beside = f"same noise; the untrained lift has {_number(lift.get('psnr_to_teacher'), 1)} dB"
        tiles.append(
            (f"{_number(summary['psnr_to_teacher'], 1)} dB", "PSNR to the teacher’s picture", beside)
        )
    if summary.get("frechet_to_against") is not None:
        beside = "on the landscapes judge’s features; 0 for equal sets"
        tiles.append((_number(summary["frechet_to_against"], 2), "Fréchet distance between the sets", beside))
    if student.get("attribute_accuracy") is not None:
        others = {"teacher": teacher, "real renders": metrics.get("real", {})}
        beside = [f"{n} {_number(v['attribute_accuracy'], 1, 100)} %" for n, v in others.items() if v]
        score = f"{_number(student['attribute_accuracy'], 1, 100)} %"
        tiles.append((score, "of what prompts name is there", ", ".join(beside) or "read by the judge"))
    if student.get("frechet") is not None:
        others = {"teacher": teacher, "floor": metrics.get("real", {})}
        beside = ", ".join(f"{name} {_number(v['frechet'], 2)}" for name, v in others.items() if v)
        tiles.append((_number(student["frechet"], 2), "Fréchet distance to real renders", beside))
    seams = _number(summary["seam_ratio"], 2)
    return [*tiles, (seams, "seam energy at patch borders", "1.00 is a picture without seams")]


def _licence(license: str) -> str:
    return f"{license} (non-commercial)" if is_non_commercial(license) else license


def _space_columns(settings: dict[str, Any]) -> tuple[Column, ...]:
    """Columns of every feature space, marked where a loss saw it."""
    columns: list[Column] = []
    for name, about in (settings.get("features") or {}).items():
        title = f"{name}, trained on" if about["trained_on"] else name
        for key, label, digits, better in SPACE_FIGURES:
            columns.append(Column(("features", name, key), f"{label}: {title}", digits, 1, better))
    return (*columns, Column("fdr", "FDr, mean over spaces", 2, 1, -1)) if columns else ()


def _facts(settings: dict[str, Any], metrics: dict[str, Any]) -> list[tuple[str, str]]:
    facts = []
    if "teacher" in settings:
        guidance = f", guidance {settings['teacher_guidance']:g}" if settings["teacher_guidance"] else ""
        facts.append(("Teacher", f"{settings['teacher']}, {settings['teacher_steps']} steps{guidance}"))
    else:
        facts.append(("Beside", settings["against"]))
    facts.append(("Pictures", f"{settings['num_images']} of {settings['height']} × {settings['width']} px"))
    if "first_seed" in settings:
        known = settings.get("seen_prompts")  # None: not known
        unseen = "" if known is None else f", {known} of them in the training corpus" if known else ", unseen"
        facts.append(("Prompts", f"{settings['prompts']}{unseen}; seeds from {settings['first_seed']:,}"))
    if settings.get("sampled_images", settings["num_images"]) < settings["num_images"]:
        facts.append(("Costly figures", f"of the first {settings['sampled_images']} pictures"))
    if "judge" in metrics:
        judge = metrics["judge"]
        facts += [
            ("Judge", f"right on {100 * judge['accuracy']:.1f} % of unseen real renders’ attributes"),
            ("Fréchet reference", f"{judge['reference_images']:,} real renders of other scenes"),
        ]
    if settings.get("clip"):
        facts.append(("CLIP", settings["clip"]))
    facts += [
        ("A loss saw", f"{name}; licence: {_licence(text)}")
        for name, text in (settings.get("losses_saw") or {}).items()
    ]
    facts += [
        ("Feature space", f"{name}; licence: {_licence(about['license'])}")
        for name, about in (settings.get("features") or {}).items()
    ]
    facts += [("Not measured", line) for line in settings.get("not_measured", [])]
    number = f", {settings['dtype']}" if "dtype" in settings else ""
    return [
        *facts,
        ("Device", f"{settings['device']}, {settings['threads']} threads{number}"),
        ("Versions", f"l2p {settings['l2p']}, torch {settings['torch']}, Python {settings['python']}"),
        ("Evaluated in", duration(metrics["seconds"])),
    ]
