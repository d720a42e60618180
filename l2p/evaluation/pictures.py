"""Evaluation of pictures in a folder beside those of another: no model is needed, and none is trusted.

Pictures of equal names in both folders are compared one by one as well. Distances between the sets are taken on the
features of the landscapes judge, which for other worlds are those of a small network that never saw them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from l2p.corpus.prompts import LANDSCAPES, is_endless, one_each, prompts_for
from l2p.errors import UserError
from l2p.evaluation.alarms import alarms
from l2p.evaluation.clip import Clip
from l2p.evaluation.distances import distances
from l2p.evaluation.evaluate import machine, not_measured
from l2p.evaluation.gather import Gathered
from l2p.evaluation.shown import Shown
from l2p.files import PICTURES, check_writable, picture_files, write_json
from l2p.images import Pictures, from_uint8, read_picture
from l2p.runtime import return_free_memory

BATCH = 16
PERIODS = (16, 8, 4)
LEAST = 32  # pixels a side


def evaluate_pictures(
    folder: str | Path,
    against: str | Path,
    out: str | Path,
    *,
    prompts: str | None = None,
    num_images: int | None = None,
    progress: bool = True,
    settings: dict[str, Any] | None = None,
    periods: Sequence[int] = PERIODS,
    shown: int = 8,
    clip: str | None = None,
) -> dict[str, Any]:
    """Measure the pictures of ``folder`` beside those of ``against``; write metrics, pictures and report.html to ``out``.

    Args:
        prompts: text file whose n-th line told the n-th picture, for the attributes; None leaves them out. Pictures of
            equal names are held against the same prompt on both sides.
        num_images: the first so many pictures of each; all if None.
        settings: more lines for the report.
        clip: folder or Hub name of a CLIP; None leaves its figures out.
        periods: of the borders on which seams are sought, the patch's first.

    Returns:
        the content of metrics.json: summary, student (the pictures of ``folder``), against, settings, alarms.

    Raises:
        UserError: a folder without pictures, pictures of several sizes, a file that is none, or fewer prompts.
    """
    import torch

    from l2p.evaluation.attributes import named_labels
    from l2p.evaluation.judge import load_judge
    from l2p.evaluation.report import write_report

    start = time.perf_counter()
    check_writable(out)
    files = {name: _checked(path, num_images) for name, path in (("student", folder), ("against", against))}
    names = [[path.name for path in paths] for paths in files.values()]
    sizes = {name: read_picture(paths[0]).shape[:2] for name, paths in files.items()}
    paired = names[0] == names[1] and sizes["student"] == sizes["against"]
    judge = load_judge()
    network = Clip(clip) if clip else None
    sets = {
        "against": Gathered("against", judge, tuple(periods), None, None, network),
        "student": Gathered("student", judge, tuple(periods), None, "against" if paired else None, network),
    }
    kept = Shown(shown)
    texts = one_each(prompts, len(files["student"]), "pictures") if prompts else None
    for batches in _batches(files, sizes, progress):
        first = sets["student"].seen
        kept.add(batches)
        for name, pictures in batches.items():
            images = {key: from_uint8(value) for key, value in batches.items()}
            some = texts[first : first + len(pictures)] if texts and (paired or name == "student") else None
            sets[name].update(images, named_labels(some) if some else None, None, None, some)
        return_free_memory()
    metrics: dict[str, Any] = {}
    for name, gathered in sets.items():
        metrics[name] = gathered.report(sets["against"], None, sets["against"])
        asked = int(gathered.figures.score.asked.sum())
        metrics[name]["attribute_accuracy"] = metrics[name]["attribute_accuracy"] if asked else None
        del metrics[name]["frechet"]  # to real renders, which these need not resemble
    features = {name: torch.cat(gathered.figures.vectors) for name, gathered in sets.items()}
    reference = sets["against"].figures.features
    metrics["student"] |= distances(
        features["student"], reference.mean, reference.covariance, features["against"]
    )
    metrics["student"]["frechet_to_against"] = sets["student"].figures.frechet_to(sets["against"].figures)
    summary = ("frechet_to_against", "kernel", "precision", "recall", "seam_ratio", "high_frequency_ratio")
    metrics = {"summary": {key: metrics["student"].get(key) for key in summary}, **metrics}
    metrics["settings"] = {
        "num_images": len(files["student"]),
        "num_against": len(files["against"]),
        "height": sizes["student"][0],
        "width": sizes["student"][1],
        "patch_size": periods[0],
        "pictures": str(folder),
        "against": str(against),
        "paired": paired,
        "clip": clip,
        "not_measured": not_measured(clip),
        **machine(torch.device("cpu")),
        **(settings or {}),
    }
    metrics["alarms"] = alarms(metrics)
    metrics["seconds"] = round(time.perf_counter() - start, 1)
    kept.save(out, texts or [path.stem for path in files["student"]])
    write_json(Path(out) / "metrics.json", metrics)
    write_report(out, title=f"{Path(folder).resolve().name} beside {Path(against).resolve().name}")
    return metrics


def _checked(folder: str | Path, num_images: int | None) -> list[Path]:
    files = picture_files(folder)
    if len(files) < 2:
        raise UserError(
            f"{folder} holds {len(files)} pictures, expected at least 2 files that end in {', '.join(PICTURES)}"
        )
    return files[:num_images]


def _batches(
    files: dict[str, list[Path]], sizes: dict[str, tuple[int, int]], progress: bool
) -> Iterator[dict[str, Pictures]]:
    """The next pictures of each folder, of the longer one alone at the end."""
    from rich.console import Console
    from rich.progress import track

    for name, size in sizes.items():
        if min(size) < LEAST:
            raise UserError(f"{files[name][0]} is {size[0]} x {size[1]}, expected at least {LEAST} x {LEAST}")
    starts = range(0, max(map(len, files.values())), BATCH)
    for start in track(starts, "evaluating", console=Console(stderr=True), disable=not progress):
        batch = {}
        for name, paths in files.items():
            pictures = []
            for path in paths[start : start + BATCH]:
                pictures.append(read_picture(path))
                if pictures[-1].shape[:2] != sizes[name]:
                    found, wanted = ("{} x {}".format(*s) for s in (pictures[-1].shape[:2], sizes[name]))
                    raise UserError(
                        f"{path} is {found}, the others are {wanted}: pictures of one size expected"
                    )
            if pictures:
                batch[name] = np.stack(pictures)
        yield batch


def draw_pictures(
    student_path: str | Path,
    folder: str | Path,
    num_images: int | None,
    prompts: str | None,
    device: str = "auto",
    dtype: str = "auto",
    progress: bool = True,
) -> dict[str, Any]:
    """Draw a student's pictures for the evaluation as PNG files; those that are there are not drawn again.

    Returns:
        keyword arguments for :func:`evaluate_pictures`.
    """
    from rich.console import Console
    from rich.progress import track

    from l2p.evaluation.evaluate import EVALUATION_SEEDS
    from l2p.evaluation.references import fingerprint
    from l2p.images import save_png
    from l2p.recipe import EvaluationConfig
    from l2p.students.io import read_config, tensors_of
    from l2p.students.pipeline import load

    recipe = read_config(student_path).get("recipe") or {}
    config = EvaluationConfig(**recipe.get("evaluation", {}))
    count = num_images or config.num_images
    source = prompts or recipe.get("corpus", {}).get("prompts", LANDSCAPES)
    first = EVALUATION_SEEDS if is_endless(source) else 0
    texts = prompts_for(source, range(config.seed, config.seed + count), first)
    pipeline = load(student_path, device, dtype)
    # another student, or the same one after more training, gets a folder of its own
    folder = Path(folder) / fingerprint([*tensors_of(pipeline.student).values()])
    missing = [k for k in range(count) if not (folder / f"{k:06d}.png").is_file()]
    starts = range(0, len(missing), config.batch_size)
    for start in track(starts, "drawing", console=Console(stderr=True), disable=not progress):
        some = missing[start : start + config.batch_size]
        seeds = [EVALUATION_SEEDS + config.seed + k for k in some]
        for k, image in zip(some, pipeline.generate([texts[k] for k in some], seeds), strict=True):
            save_png(np.asarray(image), folder / f"{k:06d}.png")
    from l2p.texts import write_prompts

    write_prompts(folder / "prompts.jsonl", [{"prompt": text} for text in texts])
    p = pipeline.student.spec.patch_size
    return {
        "folder": folder,
        "prompts": str(folder / "prompts.jsonl"),
        "num_images": count,
        "clip": config.clip,
        "periods": tuple(dict.fromkeys((p, 8, 4))),
        "settings": {"student": str(student_path), "prompts": str(source)},
    }
