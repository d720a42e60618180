"""The report's tables: which figures stand in which column, what is better, and what each means."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from l2p.landscapes import ATTRIBUTES


class Column(NamedTuple):
    """A figure: its path in a method's object, title, decimals, factor, and what is better.

    ``better``: +1 more, -1 less, 0 nearer to 1.
    """

    key: str | tuple[str, ...]
    title: str
    digits: int
    factor: float
    better: int


RIGHT = (
    Column("attribute_accuracy", "Attributes %", 1, 100, 1),
    Column("frechet", "Fréchet to real", 2, 1, -1),
    Column("frechet_encoder", "Fréchet, VAE’s features", 3, 1, -1),
    Column("frechet_to_teacher", "Fréchet to teacher", 2, 1, -1),
    Column("frechet_to_against", "Fréchet", 2, 1, -1),
    Column("kernel", "Kernel × 1000", 1, 1000, -1),
    Column("precision", "Precision", 2, 1, 1),
    Column("recall", "Recall", 2, 1, 1),
    Column("psnr_to_teacher", "PSNR to teacher, dB", 1, 1, 1),
    Column("psnr_to_against", "PSNR, dB", 1, 1, 1),
    Column("ssim_to_teacher", "SSIM", 3, 1, 1),
    Column("ssim_to_against", "SSIM", 3, 1, 1),
    Column("lpips_to_teacher", "LPIPS", 3, 1, -1),
    Column("lpips_to_against", "LPIPS", 3, 1, -1),
    Column("dists_to_teacher", "DISTS", 3, 1, -1),
    Column("dists_to_against", "DISTS", 3, 1, -1),
    Column("clip_score", "CLIP score", 2, 1, 1),
    Column("cmmd", "CMMD", 3, 1, -1),
    Column("patch_frechet", "Fréchet of crops", 2, 1, -1),
    Column("detail_ratio", "Detail", 2, 1, 0),
    Column("seam_ratio", "Seams", 3, 1, 0),
    Column("latency_ms", "Latency, ms", 0, 1, -1),
    Column("peak_memory_mb", "Peak memory, MB", 0, 1, -1),
)
INVENTED = (
    Column("seams.strength", "Seams, any period", 2, 1, 0),
    Column("grid_share", "Patch marks %", 1, 100, -1),
    Column("repeated_share", "Repeated %", 2, 100, -1),
    Column("high_frequency_ratio", "Fine energy", 2, 1, 0),
    Column("color_drift", "Colour ΔE", 2, 1, -1),
    Column("color_drift_worst", "Colour ΔE, worst", 2, 1, -1),
    Column("downsample_consistency", "From afar", 3, 1, -1),
    Column("latent_cycle_error", "Latent cycle", 3, 1, -1),
    Column("invention", "Invention", 4, 1, -1),
    Column("departure", "Departure", 4, 1, -1),
)
NAMED = tuple(
    Column(f"attribute_accuracy_by_attribute.{name}", f"{name.capitalize()} %", 1, 100, 1)
    for name in ATTRIBUTES
)
NOTES = {
    "attribute_accuracy": (
        "Attributes",
        "Share of the attributes named in the prompts that a judge, trained on real renders only, finds in the "
        "pictures. Its score on real renders is the ceiling.",
    ),
    "frechet": (
        "Fréchet",
        "Distance between feature distributions, on the judge’s features; lower is nearer. Real renders of the same "
        "scenes give its floor for this number of pictures. It is not FID.",
    ),
    "fdr": (
        "FDr",
        "Fréchet distance to the reference over that between two halves of the reference, the mean over the feature spaces. "
        "A space that a loss saw flatters: it is marked.",
    ),
    "frechet_encoder": (
        "Fréchet, VAE’s features",
        "The same in another feature space, that of the teacher’s VAE encoder, and to renders of the very scenes. Judge and "
        "encoder should agree; a student trained on the encoder’s features (perceptual, drift) is favoured here.",
    ),
    "attribute_accuracy_by_attribute.time": (
        "Attribute by attribute",
        "The same for one attribute at a time, over the prompts that name it: an object that a method leaves out "
        "shows here. The row of real renders is the judge’s own accuracy.",
    ),
    "kernel": ("Kernel", "The same without assuming a Gaussian, and unbiased: about 0 where sets do not differ."),
    "precision": (
        "Precision, recall",
        "Share of the pictures that resemble real ones, and of the real ones that are covered.",
    ),
    "clip_score": ("CLIP score", "A hundred times the cosine between a picture’s and its prompt’s embeddings."),
    "cmmd": ("CMMD", "Distance between sets of CLIP’s embeddings, times 1000; about 0 where they do not differ."),
    "psnr_to_teacher": (
        "PSNR",
        "Picture by picture against the teacher’s many steps from the same noise. Alone it must not rank methods: it "
        "rewards softness.",
    ),
    "detail_ratio": (
        "Detail",
        "Energy of the finest structure relative to clean pictures: below 1 is softer, above 1 is noisier.",
    ),
    "seam_ratio": (
        "Seams",
        "Gradient energy on patch borders over the energy elsewhere, relative to clean pictures; 1 is no seam.",
    ),
    "latency_ms": ("Latency", "One picture, prompt to 8-bit, text encoder included; median, methods taking turns."),
    "peak_memory_mb": (
        "Peak memory",
        "One picture in a process of its own, weights and text encoder included: resident memory gained on a CPU, the "
        "most allocated on a GPU.",
    ),
    "seams.strength": (
        "Seams, any period",
        "Steps on the most striking comb of lines over all others, whatever its period; alarm from 1.5.",
    ),
    "grid_share": ("Patch marks", "Share of the fine structure that every patch repeats; alarm from 2.5 %."),
    "repeated_share": ("Repeated", "Area that is a copy of another part of the same picture."),
    "high_frequency_ratio": ("Fine energy", "Energy above a quarter cycle a pixel over that of clean pictures."),
    "color_drift": (
        "Colour ΔE",
        "CIEDE2000 between mean colours, of the whole picture and of its worst sixteenth; 1 is just visible.",
    ),
    "downsample_consistency": ("From afar", "Difference that is left after averaging 8 × 8 pixels."),
    "latent_cycle_error": (
        "Latent cycle",
        "Relative distance between the latent a picture encodes to and the one it was meant to show. The teacher’s own "
        "is what encoder and decoder cannot do better.",
    ),
    "invention": (
        "Invention",
        "Mean deviation of the student’s pixels when only its free noise changes; 0 also for one that ignores it.",
    ),
    "departure": (
        "Departure",
        "Mean difference of the student’s pixels from its teacher’s decoded picture of the same noise, on the pictures "
        "shown. This student sees no free noise, so it has no invention figure.",
    ),
}  # fmt: skip
INTERVALS = {"attribute_accuracy", "frechet", "kernel", "psnr_to_teacher", "psnr_to_against"}


@dataclass(frozen=True)
class Cell:
    text: str
    best: bool = False
    interval: str = ""


@dataclass(frozen=True)
class Row:
    name: str
    cells: list[Cell]
    baseline: bool = False


@dataclass(frozen=True)
class Table:
    """What the template draws; ``data`` is the same as JSON."""

    title: str
    file: str
    columns: list[str]
    rows: list[Row]
    notes: list[tuple[str, str]]
    data: dict[str, Any] = field(default_factory=dict)


def number(value: float | None, digits: int, factor: float = 1.0) -> str:
    """A figure as text; a dash for none."""
    return "–" if value is None or not math.isfinite(value) else f"{value * factor:,.{digits}f}"


def lookup(values: dict[str, Any], key: str | tuple[str, ...]) -> float | None:
    """The figure at a dotted path, or one in parts; None if it is not there or not finite."""
    found: Any = values
    for part in key.split(".") if isinstance(key, str) else key:
        found = found.get(part) if isinstance(found, dict) else None
    return found if isinstance(found, (int, float)) and math.isfinite(found) else None


def table(
    title: str,
    file: str,
    columns: tuple[Column, ...],
    metrics: dict[str, Any],
    methods: dict[str, str],
    baselines: dict[str, str],
) -> Table | None:
    """A table of those columns for which a method has a figure; None if there is none.

    Args:
        methods: name to label, which compete for the mark; baselines: those which do not.
    """
    columns = tuple(c for c in columns if any(lookup(metrics[name], c.key) is not None for name in methods))
    if not columns:
        return None
    labels = {name: text for name, text in {**methods, **baselines}.items() if name in metrics}
    rows = []
    for name, label in labels.items():
        cells = []
        for column in columns:
            merits = [m for method in methods if (m := _merit(metrics[method], column)) is not None]
            own = _merit(metrics[name], column) if name in methods else None
            best = own is not None and own == max(merits)
            text = number(lookup(metrics[name], column.key), column.digits, column.factor)
            cells.append(Cell(text, best, _interval(metrics[name], column)))
        rows.append(Row(label, cells, name in baselines))
    data = {
        name: {c.key if isinstance(c.key, str) else c.title: lookup(metrics[name], c.key) for c in columns}
        for name in labels
    }
    notes = [NOTES[c.key] for c in columns if c.key in NOTES]
    return Table(title, file, [c.title for c in columns], rows, notes, data)


def _merit(values: dict[str, Any], column: Column) -> float | None:
    """How good a cell is as it is shown: more is better; None for an empty one."""
    value = lookup(values, column.key)
    if value is None:
        return None
    shown = round(value * column.factor, column.digits)
    if column.better < 0:
        shown = max(
            shown, 0.0
        )  # unbiased distances scatter around 0: less than nothing is no better than nothing
    return shown * column.better if column.better else -round(abs(shown - 1), column.digits)


def _interval(values: dict[str, Any], column: Column) -> str:
    ends = values.get(f"{column.key}_interval") if column.key in INTERVALS else None
    return " … ".join(number(end, column.digits, column.factor) for end in ends) if ends else ""
