"""What is published: a student's folder made complete, from the student, the run around it and nothing else.

Loading it strictly is the first step, so that a broken student never leaves the machine.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from l2p.checksums import write_checksums
from l2p.errors import UserError
from l2p.files import PathLike, leads_out, read_json, write_json, write_text
from l2p.hub.card import write_card
from l2p.hub.client import HubName, commit_of
from l2p.images import labelled_grid, save_png
from l2p.keys import holds_key
from l2p.students.io import FORMAT_KEYS, load_student, read_config, save_student
from l2p.students.lora import merged
from l2p.students.pipeline import text_encoder_folder
from l2p.students.quantize import KINDS
from l2p.students.student import PixelStudent, StudentSpec

TEXT_PARTS = ("text_encoder", "tokenizer")
PICTURES = "pictures.png"
SEED = 8_000  # of the pictures that tell what quantising costs
PROMPTS = [
    f"{what} by a lake {when}"
    for what in ("a red house", "mountains", "trees in snow", "a white house")
    for when in ("at dusk", "at noon", "at night", "in the morning")
]
COMMIT = re.compile(r"[0-9a-f]{40}")


def stage(
    student: PathLike,
    out: PathLike,
    *,
    dtype: str | None = None,
    include_text_encoder: bool = False,
    name: str | None = None,
    merge: bool = False,
    quantize: str | None = None,
) -> Path:
    """Write the folder to publish: student, text encoder or its name, recipe, metrics, pictures and card.

    Args:
        student: folder that `l2p distill` wrote, or one that was pulled.
        dtype: "bf16", "fp16" or "fp32" of the weights; as they are if None.
        include_text_encoder: copy it even where a teacher on the Hub could be named instead.
        name: ``USER/NAME[@BRANCH]`` for the card; its folder's name if None.
        merge: add LoRA adapters to the layers they belong to.
        quantize: "int8" or "fp8" of the core's linear layers; what it costs is measured for the card.

    Raises:
        UserError: a broken student, or a text that holds a token.
    """
    source, out = Path(student), Path(out)
    beside = source.resolve().parent
    _refuse_links(
        source, beside / "metrics.json", beside / "evaluation", beside / "evaluation" / "pictures.npz"
    )
    config = read_config(source)
    network = load_student(source)
    if merge or quantize:
        network = merged(network)
    if quantize:
        quantize_measured(network, quantize, source)
    own = FORMAT_KEYS | {field.name for field in fields(StudentSpec)}
    extra = _without_places({key: value for key, value in config.items() if key not in own})
    network.spec.teacher = _without_places(network.spec.teacher)
    reference = None if include_text_encoder else _reference(source, config)
    extra.pop("text_encoder", None)
    if reference:
        extra["text_encoder"] = reference
    save_student(network, out, extra=extra, dtype=dtype)
    if not reference:
        texts = text_encoder_folder(source)
        _refuse_links(texts)
        for part in TEXT_PARTS:
            shutil.copytree(texts / part, out / part)
        write_checksums(out)
    if extra.get("recipe"):
        from omegaconf import OmegaConf

        write_text(out / "recipe.yaml", OmegaConf.to_yaml(OmegaConf.create(extra["recipe"])))
    metrics = find_metrics(source)
    if metrics:
        write_json(out / "metrics.json", _without_places(metrics))
    _pictures(source, out / PICTURES)
    write_card(out, name or source.resolve().name)
    _refuse_tokens(out)
    return out


def quantize_measured(student: PixelStudent, kind: str, folder: Path) -> None:
    """Quantise in place, and note the PSNR in dB of its pictures to those it drew before, at its own size."""
    from l2p.students.pipeline import StudentPipeline, load_texts
    from l2p.students.quantize import quantize

    if kind not in KINDS:
        raise UserError(f"--quantize is {kind!r}, expected one of {', '.join(KINDS)}")
    texts = load_texts(folder, student.spec)
    sides = {name: getattr(student.spec, name) or 8 * student.spec.patch_size for name in ("height", "width")}

    def draw() -> np.ndarray:
        pipeline = StudentPipeline(student, texts, torch.bfloat16)
        return np.stack([np.asarray(image) for image in pipeline.generate(PROMPTS, seeds=SEED, **sides)])

    before = draw()
    quantize(student, kind)
    error = np.square(draw() / 255 - before / 255).mean(axis=(1, 2, 3))
    psnr = -10 * np.log10(np.maximum(error, 1e-10))
    figures = {"psnr": round(float(psnr.mean()), 2), "psnr_worst": round(float(psnr.min()), 2)}
    student.quantization = {"kind": kind, **figures, "num_images": len(psnr), "dtype": "bf16", **sides}


def find_metrics(folder: Path) -> dict[str, Any] | None:
    """The figures of a student: in its folder where it was published, else beside it, where a run leaves them.

    A link out of that folder is not followed: it could lead to any file of this machine.
    """
    for path in (folder / "metrics.json", folder.resolve().parent / "metrics.json"):
        if path.is_file() and not leads_out(path, path.parent):
            metrics = read_json(path)
            return metrics if isinstance(metrics, dict) else None
    return None


def _without_places(value: Any) -> Any:
    """`value` with absolute paths cut to their last part: where things lie on this machine is nobody's business."""
    if isinstance(value, dict):
        return {key: _without_places(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_places(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _reference(folder: Path, config: dict[str, Any]) -> dict[str, str] | None:
    """Name and commit of the teacher on the Hub that has the text encoder; a name without a commit could change."""
    if not (folder / "text_encoder").is_dir():
        return config.get("text_encoder")
    teacher = config.get("teacher") or {}
    name, revision = teacher.get("name"), teacher.get("revision")
    if HubName.parse(str(name)) and COMMIT.fullmatch(str(revision)):
        return {"name": name, "revision": revision}
    return None


def _pictures(source: Path, path: Path) -> None:
    """Teacher and student side by side, from the evaluation; or the sheet that an earlier publication made."""
    drawn = source.resolve().parent / "evaluation" / "pictures.npz"
    if (source / PICTURES).is_file():
        shutil.copyfile(source / PICTURES, path)
    elif drawn.is_file() and commit_of(source) is None:
        with np.load(drawn, allow_pickle=False) as arrays:
            rows = {name: arrays[name][:4] for name in ("teacher", "student") if name in arrays}
            if rows:
                captions = [str(text) for text in arrays["captions"][:4]]
                save_png(labelled_grid(rows, captions), path)


def _refuse_links(folder: Path, *more: Path) -> None:
    """Raises UserError where a file in a folder, or one of `more` in the folder above, is a link out of it: publishing would
    follow it to a private file."""
    inside = ((path, folder) for path in sorted(folder.rglob("*")) if path.is_symlink())
    for path, root in (*inside, *((path, path.parent) for path in more if path.is_symlink())):
        if leads_out(path, root):
            raise UserError(
                f"{path} is a link out of its folder, which publishing does not follow: put the file itself there"
            )


def _refuse_tokens(folder: Path) -> None:
    for file in sorted(folder.rglob("*")):
        if file.suffix in (".json", ".yaml", ".md") and holds_key(file.read_text(encoding="utf-8")):
            raise UserError(
                f"{file.name} holds what looks like a token or a key (hf_...): take it out of the recipe, and revoke it"
            )
