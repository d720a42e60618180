"""Evaluation of pictures in a folder beside those of another: no model is needed, and none is trusted.

Pictures that :mod:`l2p.pairing` finds to belong together are compared one by one as well. Distances between the sets are taken on the
features of the landscapes judge, which for other worlds are those of a small network that never saw them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from l2p.corpus.prompts import is_endless, prompts_for, prompts_of
from l2p.errors import UserError, warn
from l2p.evaluation.alarms import alarms
from l2p.evaluation.clip import Clip
from l2p.evaluation.collection import Gathered
from l2p.evaluation.distances import distances
from l2p.evaluation.evaluate import machine, not_measured
from l2p.evaluation.sample_store import Shown
from l2p.evaluation.spaces import Spaces, describe
from l2p.features import FeatureNetwork, load_features
from l2p.files import check_writable, write_json
from l2p.images import Pictures, decoding, from_uint8, open_picture, read_picture
from l2p.pairing import Pairing, pair_folders
from l2p.picture_folder import Picture, PictureFolder
from l2p.picture_manifest import MANIFEST
from l2p.runtime import return_free_memory
from l2p.texts import write_prompts

BATCH = 16
PERIODS = (16, 8, 4)
LEAST = 32  # pixels a side
ORIENTATION = 0x0112  # EXIF's tag; from 5 on the picture lies on its side


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
    features: Sequence[str] = (),
    losses_saw: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Measure the pictures of ``folder`` beside those of ``against``; write metrics, pictures and report.html to ``out``.

    Args:
        prompts: file with a prompt for each picture of a folder, in natural order (1, 2, 10) or by a column ``file_name``;
            what the folder's manifest says if None, and without one attributes are left out. A picture's partner is held
            against the same prompt.
        num_images: the first so many pictures of ``folder``, their partners, and others to make as many; all if None.
        settings: more lines for the report.
        clip: folder or Hub name of a CLIP; None leaves its figures out.
        periods: of the borders on which seams are sought, the patch's first.
        features: feature networks (:mod:`l2p.features`) for distances in their spaces. With them the pictures may be of
            several sizes: then these distances alone are measured, and no report is written.
        losses_saw: licences of the networks that the losses of these pictures' student saw, by identity.

    Returns:
        the content of metrics.json: summary, student (the pictures of ``folder``), against, settings, alarms.

    Raises:
        UserError: a folder without pictures, pictures of several sizes, a file that is none, or another number of prompts.
    """
    import torch

    from l2p.evaluation.attributes import named_labels
    from l2p.evaluation.judge import load_judge
    from l2p.evaluation.report import write_report

    began = time.perf_counter()
    check_writable(out)
    folders = {name: _checked(path) for name, path in (("student", folder), ("against", against))}
    pairing = pair_folders(folders["student"], folders["against"])
    told = prompts_of(prompts, pairing) if prompts else {}
    if (line := pairing.line()) is not None:
        warn(line)
    files, pairs = _chosen(pairing, num_images)
    if num_images is not None and num_images > len(files["student"]):
        warn(f"num_images is {num_images}, but {folder} holds {len(files['student'])} pictures")
    sizes = {name: read_picture(some[0].path).shape[:2] for name, some in files.items()}
    if pairs and sizes["student"] != sizes["against"]:
        shapes = " and ".join("{} x {}".format(*size) for size in sizes.values())
        warn(f"pictures of {shapes} are compared as sets alone, not one by one")
        pairs = 0
    paired = pairs > 0
    texts = _texts(files["student"], told)
    spaces = [load_features(name) for name in features]
    about = {"features": describe(spaces, losses_saw or {}), "losses_saw": losses_saw}
    if spaces and any(_are_mixed(some) for some in files.values()):
        about |= {"pictures": str(folder), "against": str(against), **(settings or {})}
        return _only_spaces(files, spaces, Path(out), about, progress, began)
    judge = load_judge()
    network = Clip(clip) if clip else None
    sets = {
        "against": Gathered("against", judge, tuple(periods), None, None, network, spaces=spaces),
        "student": Gathered(
            "student", judge, tuple(periods), None, "against" if paired else None, network, spaces=spaces
        ),
    }
    kept = Shown(shown)
    for start, batches in _batches(files, pairs, sizes, progress):
        kept.add(batches)
        images = {key: from_uint8(value) for key, value in batches.items()}
        for name, pictures in batches.items():
            some = (
                texts[start : start + len(pictures)]
                if texts and (name == "student" or start < pairs)
                else None
            )
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
    summary += ("fdr",) * bool(spaces)
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
        "pairs": pairs,
        "clip": clip,
        **about,
        "not_measured": not_measured(clip),
        **machine(torch.device("cpu")),
        **(settings or {}),
    }
    metrics["alarms"] = alarms(metrics)
    metrics["seconds"] = round(time.perf_counter() - began, 1)
    kept.save(out, texts or [picture.path.stem for picture in files["student"]])
    write_json(Path(out) / "metrics.json", metrics)
    write_report(out, title=f"{Path(folder).resolve().name} beside {Path(against).resolve().name}")
    return metrics


def _are_mixed(pictures: list[Picture]) -> bool:
    """Whether pictures are of several sizes, by their files' headers."""
    sizes = set()
    for picture in pictures:
        with open_picture(picture.path, str(picture.path)) as image, decoding(str(picture.path)):
            lies = image.getexif().get(ORIENTATION, 1) > 4
            sizes.add(image.size[::-1] if lies else image.size)
        if len(sizes) > 1:
            return True
    return False


def _only_spaces(
    files: dict[str, list[Picture]],
    networks: Sequence[FeatureNetwork],
    out: Path,
    settings: dict[str, Any],
    progress: bool,
    start: float,
) -> dict[str, Any]:
    """Distances in feature spaces between pictures of any sizes."""
    import torch
    from rich.progress import track

    from l2p.console import Console

    sets = {name: Spaces(networks) for name in files}
    paths = [(name, picture.path) for name, some in files.items() for picture in some]
    waiting: dict[tuple[str, tuple[int, ...]], list[np.ndarray]] = {}  # pictures of one size go together
    for name, path in track(paths, "evaluating", console=Console(stderr=True), disable=not progress):
        picture = read_picture(path)
        batch = waiting.setdefault((name, picture.shape), [])
        batch.append(picture)
        if len(batch) == BATCH:
            sets[name].update(from_uint8(np.stack(batch)))
            batch.clear()
    for (name, _), batch in waiting.items():
        if batch:
            sets[name].update(from_uint8(np.stack(batch)))
    student = sets["student"].report(sets["against"])
    metrics: dict[str, Any] = {"summary": {"fdr": student["fdr"]}, "student": student, "against": {}}
    left_out = "all but the distances of features, and the report: the pictures are of several sizes"
    counts = {"num_images": len(files["student"]), "num_against": len(files["against"])}
    metrics["settings"] = {**counts, **settings, "not_measured": [left_out], **machine(torch.device("cpu"))}
    metrics["alarms"] = []
    metrics["seconds"] = round(time.perf_counter() - start, 1)
    write_json(out / "metrics.json", metrics)
    return metrics


def _checked(folder: str | Path) -> PictureFolder:
    found = PictureFolder.read(folder)
    if len(found.pictures) < 2:
        raise found.none_found(least=2)
    return found


def _chosen(pairing: Pairing, count: int | None) -> tuple[dict[str, list[Picture]], int]:
    """The pictures of each folder, those of pairs first and in the same order; and how many pairs."""
    first = {picture.path for picture in pairing.folders[0].pictures[:count]}
    pairs = [pair for pair in pairing.pairs if pair[0].path in first]
    student, against = ([pair[side] for pair in pairs] for side in range(2))
    student += [picture for picture in pairing.alone[0] if picture.path in first]
    against += pairing.alone[1]
    return {"student": student, "against": against[: max(count, len(pairs)) if count else None]}, len(pairs)


def _texts(pictures: list[Picture], told: dict[Path, str]) -> list[str] | None:
    """The prompts of all pictures, or None: of some alone, no figure would be that of the set."""
    texts = [told.get(picture.path, picture.prompt) for picture in pictures]
    missing = [picture.path.name for picture, text in zip(pictures, texts, strict=True) if not text]
    if missing and len(missing) < len(pictures):
        warn(
            f"{missing[0]}{f' and {len(missing) - 1} more have' if missing[1:] else ' has'} no prompt: attributes are left out"
        )
    return None if missing else [text for text in texts if text]


def _batches(
    files: dict[str, list[Picture]], pairs: int, sizes: dict[str, tuple[int, int]], progress: bool
) -> Iterator[tuple[int, dict[str, Pictures]]]:
    """First index and next pictures: of both sets where they are pairs, then of each set alone."""
    from rich.progress import track

    from l2p.console import Console

    for name, size in sizes.items():
        if min(size) < LEAST:
            raise UserError(
                f"{files[name][0].path} is {size[0]} x {size[1]}, expected at least {LEAST} x {LEAST}"
            )
    parts = [(tuple(files), start, min(start + BATCH, pairs)) for start in range(0, pairs, BATCH)]
    for name, some in files.items():
        parts += [((name,), start, start + BATCH) for start in range(pairs, len(some), BATCH)]
    for names, start, stop in track(parts, "evaluating", console=Console(stderr=True), disable=not progress):
        yield start, {name: _read(files[name][start:stop], sizes[name]) for name in names}


def _read(pictures: list[Picture], size: tuple[int, int]) -> Pictures:
    read = []
    for picture in pictures:
        read.append(read_picture(picture.path))
        if read[-1].shape[:2] != size:
            found, wanted = ("{} x {}".format(*s) for s in (read[-1].shape[:2], size))
            raise UserError(
                f"{picture.path} is {found}, the others are {wanted}: pictures of one size expected"
            )
    return np.stack(read)


def draw_pictures(
    student_path: str | Path,
    folder: str | Path,
    num_images: int | None,
    prompts: str | None,
    device: str = "auto",
    dtype: str = "auto",
    progress: bool = True,
) -> dict[str, Any]:
    """Draw a student's pictures for the evaluation as PNG files; those that are there, of the same weights, prompts and
    settings, are not drawn again.

    Returns:
        keyword arguments for :func:`evaluate_pictures`.
    """
    from rich.progress import track

    from l2p.artifacts import digest, hash_model, reusable
    from l2p.console import Console
    from l2p.corpus.prompts import fingerprint
    from l2p.evaluation.evaluate import EVALUATION_SEEDS
    from l2p.images import save_png
    from l2p.objectives import networks_seen
    from l2p.recipe import EvaluationConfig
    from l2p.students.io import read_config
    from l2p.students.origin import recipe_prompts
    from l2p.students.pipeline import load

    recipe = read_config(student_path).get("recipe") or {}
    config = EvaluationConfig(**recipe.get("evaluation", {}))
    count = num_images or config.num_images
    source = prompts or recipe_prompts(student_path, recipe)
    first = EVALUATION_SEEDS if is_endless(source) else 0
    texts = prompts_for(source, range(config.seed, config.seed + count), first)
    pipeline = load(student_path, device, dtype)
    made_from = {
        "student_sha256": hash_model(student_path),
        "prompts_sha256": fingerprint(source, first),
        "first_seed": EVALUATION_SEEDS + config.seed,
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        "device": pipeline.device.type,
    }
    # another student, other prompts, or the same student after more training, get a folder of their own
    folder = Path(folder) / digest(made_from)[:16]
    records = [made_from | {"prompt": text, "number": k} for k, text in enumerate(texts)]
    missing = [k for k in range(count) if not reusable(folder / f"{k:06d}.png", records[k])]
    starts = range(0, len(missing), config.batch_size)
    for start in track(starts, "drawing", console=Console(stderr=True), disable=not progress):
        some = missing[start : start + config.batch_size]
        seeds = [EVALUATION_SEEDS + config.seed + k for k in some]
        for k, image in zip(some, pipeline.generate([texts[k] for k in some], seeds), strict=True):
            save_png(np.asarray(image), folder / f"{k:06d}.png", records[k])
    rows = [
        {"file_name": f"{k:06d}.png", "prompt": text, "seed": EVALUATION_SEEDS + config.seed + k}
        for k, text in enumerate(texts)
    ]
    write_prompts(folder / MANIFEST, rows)
    p = pipeline.student.spec.patch_size
    return {
        "folder": folder,
        "num_images": count,
        "clip": config.clip,
        "features": config.features,
        "losses_saw": networks_seen(recipe) if recipe else None,
        "periods": tuple(dict.fromkeys((p, 8, 4))),
        "settings": {"student": str(student_path), "prompts": str(source)},
    }
