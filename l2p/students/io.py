"""Students on disk: ``config.json``, ``model.safetensors``, and the ``text_encoder/`` and ``tokenizer/`` they
use.

Loading is strict and says what does not fit; saving replaces a folder whole or not at all.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from l2p.errors import UserError
from l2p.files import atomic_path, read_json, write_json
from l2p.students.student import PixelStudent, StudentSpec

if TYPE_CHECKING:
    from torch import Tensor

    from l2p.teachers.text import TextEncoder

FORMAT_VERSION = 1
CLASS_NAME = "PixelStudent"
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save_student(
    student: PixelStudent,
    folder: str | Path,
    text_encoder: TextEncoder | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write a student's folder; an older student there is replaced once the new one is complete.

    Args:
        extra: JSON values to keep in ``config.json`` beside the spec, such as ``recipe``.

    Raises:
        UserError: if the folder holds something that is no student, or cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    config = {"format_version": FORMAT_VERSION, "class": CLASS_NAME, **asdict(student.spec)}
    clash = config.keys() & (extra or {}).keys()
    if clash:
        raise ValueError(f"extra may not hold {sorted(clash)}: these keys are the format's own")
    config.update(extra or {})
    state = {name: tensor.contiguous() for name, tensor in student.state_dict().items()}
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"cannot save a student as {folder}: there is a file of that name")
    if folder.is_dir() and any(folder.iterdir()) and not _is_student(folder):
        raise UserError(
            f"{folder} holds files that are no student, so it is left alone: choose another folder"
        )
    try:
        with atomic_path(folder) as partial:
            partial.mkdir()
            save_file(state, partial / WEIGHTS, metadata={"format": "pt", "config": json.dumps(config)})
            write_json(partial / CONFIG, config)
            if text_encoder is not None:
                text_encoder.save_pretrained(partial)
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot save the student in {folder}: {error}") from error


def _is_student(folder: Path) -> bool:
    try:
        return read_json(folder / CONFIG).get("class") == CLASS_NAME
    except (UserError, AttributeError):
        return False


def read_config(folder: str | Path) -> dict[str, Any]:
    """The checked ``config.json`` of a student's folder.

    Raises:
        UserError: if the folder is no student, or one of a newer format.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no student at {folder}: expected a folder that `l2p distill` wrote")
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"{folder} is no student: {CONFIG} is missing; expected a folder that `l2p distill` wrote"
        )
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or config.get("class") != CLASS_NAME:
        raise UserError(
            f"{folder / CONFIG} does not describe a student; expected a folder that `l2p distill` wrote"
        )
    version = config.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise UserError(
            f"{folder} has student format {version}, this l2p reads up to {FORMAT_VERSION}: "
            "upgrade with `pip install -U latent2pixel`"
        )
    return config


def load_student(folder: str | Path, device: torch.device | str = "cpu") -> PixelStudent:
    """Load a student in evaluation mode, in the dtype it was saved in.

    Raises:
        UserError: for anything but complete, matching, finite weights.
    """
    folder = Path(folder)
    config = read_config(folder)
    try:
        spec = StudentSpec(**{f.name: config[f.name] for f in fields(StudentSpec)})
        with torch.device("meta"):
            student = PixelStudent(spec)
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise UserError(
            f"{folder / CONFIG} is broken ({error}): save the student again or restore the file"
        ) from error
    state = _read_weights(folder / WEIGHTS, device)
    _check(student.state_dict(), state, folder / WEIGHTS)
    student.load_state_dict(state, strict=True, assign=True)
    return student.eval()


def _read_weights(path: Path, device: torch.device | str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"{path} is missing: the folder is incomplete; save or download the student again")
    try:
        return load_file(path, device=str(device))
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is broken or cut short ({error}): save or download the student again"
        ) from error


def _check(expected: dict[str, Tensor], found: dict[str, Tensor], path: Path) -> None:
    """Raises: UserError naming the first few keys that are missing, unexpected, misshapen, or not finite."""
    shared = expected.keys() & found.keys()
    faults = {
        "missing": [key for key in expected if key not in found],
        "unexpected": [key for key in found if key not in expected],
        "misshapen": [
            f"{key} ({list(found[key].shape)} for {list(expected[key].shape)})"
            for key in expected
            if key in shared and found[key].shape != expected[key].shape
        ],
        "not finite": [key for key in found if key in shared and not torch.isfinite(found[key]).all()],
    }
    lines = [f"{what}: {_few(keys)}" for what, keys in faults.items() if keys]
    if lines:
        raise UserError(f"the weights in {path} do not fit their config; {'; '.join(lines)}")


def _few(keys: list[str], shown: int = 3) -> str:
    rest = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return ", ".join(keys[:shown]) + rest
