"""Decoders on disk: ``config.json`` and the weights; strict in both directions, whole or not at all."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from l2p import __version__
from l2p.checksums import check_file, write_checksums
from l2p.config import shown
from l2p.declared import Declared, check_config
from l2p.decoders.pid import PidSpec, PidStudent
from l2p.errors import UserError
from l2p.files import atomic_path, read_json, write_json
from l2p.students import weights

BUNDLED = Path(__file__).parent / "bundled"
FORMAT_VERSION = 1
CLASS_NAME = "PidStudent"
CONFIG = "config.json"
MOST_STEPS = 1000  # of one picture
FORMAT = ("format_version", "written_by", "class")


def bundled_decoders() -> list[str]:
    """Names of the decoders that come with the package, sorted."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{CONFIG}"))


def save_decoder(
    student: PidStudent,
    folder: str | Path,
    extra: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a decoder's folder; an older decoder there is replaced once the new one is complete.

    Args:
        extra: JSON values to keep in ``config.json`` beside the spec, such as ``recipe``.
        dtype: of the weights on the disk; their own if None.

    Raises:
        UserError: the folder holds something that is no decoder, or cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and not _is_decoder(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder} is there and is no decoder, so it is left alone: move it away, or choose another folder"
        )
    config = {"format_version": FORMAT_VERSION, "written_by": __version__, "class": CLASS_NAME}
    config |= {**asdict(student.spec), **(extra or {})}
    state = {
        name: value.detach() if dtype is None else value.detach().to(dtype)
        for name, value in student.state_dict().items()
    }
    with atomic_path(folder) as partial:
        partial.mkdir()
        weights.write_weights(state, partial, {"format": "pt", "config": json.dumps(config)})
        write_json(partial / CONFIG, config)
        write_checksums(partial)


def _is_decoder(folder: Path) -> bool:
    try:
        return read_json(folder / CONFIG).get("class") == CLASS_NAME
    except (UserError, AttributeError):
        return False


def find_decoder(name: str | Path) -> Path:
    """The folder of a decoder: the name of a bundled one, or a folder.

    Raises:
        UserError: neither.
    """
    folder = BUNDLED / str(name) if str(name) in bundled_decoders() else Path(name)
    if not _is_decoder(folder):
        shipped = ", ".join(bundled_decoders()) or "none"
        raise UserError(
            f"no pixel diffusion decoder at {name}: expected a folder that `l2p train-pid` wrote, or one that comes "
            f"with l2p ({shipped})"
        )
    return folder


def read_spec(folder: Path) -> PidSpec:
    """The spec in a decoder's ``config.json``. Raises UserError when it is of a newer format, or broken."""
    config = read_json(folder / CONFIG)
    assert isinstance(config, dict)  # as find_decoder saw
    if config.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{folder} has decoder format {config.get('format_version')}, this is {__version__} and reads "
            f"{FORMAT_VERSION}: upgrade with `pip install -U latent2pixel`"
        )
    missing = [f.name for f in fields(PidSpec) if f.name not in config]
    if missing:
        raise UserError(f"{folder / CONFIG} is broken (it lacks {', '.join(missing)}): restore the file")
    for name in ("core", "head", "draft"):
        if not isinstance(config[name], dict):
            raise UserError(
                f"{folder / CONFIG} is broken ({name} is {shown(config[name])}): restore the file"
            )
    steps = config["num_steps"]
    if type(steps) is not int or not 1 <= steps <= MOST_STEPS:
        raise UserError(
            f"{folder / CONFIG} is broken (num_steps is {shown(steps)}, expected 1 to {MOST_STEPS}): restore the file"
        )
    try:
        return PidSpec(**{f.name: config[f.name] for f in fields(PidSpec)})
    except (TypeError, ArithmeticError) as error:
        raise UserError(f"{folder / CONFIG} is broken ({error}): restore the file") from error


def load_decoder(name: str | Path, device: torch.device | str = "cpu") -> PidStudent:
    """Load a decoder in evaluation mode and fp32.

    Args:
        name: of a bundled one, or a folder.

    Raises:
        UserError: for anything but complete, matching, finite weights.
    """
    folder = find_decoder(name)
    spec = read_spec(folder)
    declared = Declared.of(entry.shape for entry in weights.read_entries(folder).values())
    for part in (spec.core, spec.head, spec.draft, {"num_steps": spec.num_steps, "dim": spec.adapter_width}):
        check_config(part, declared, folder / CONFIG)
    try:
        with torch.device("meta"):
            student = PidStudent(spec)
    except (KeyError, TypeError, ValueError, AssertionError, RuntimeError, ArithmeticError) as error:
        reason = " ".join(str(error).split()) or "its sizes do not fit one another"
        raise UserError(f"{folder / CONFIG} is broken ({reason}): restore the file") from error
    fill_decoder(student, folder, device)
    return student.to(device).eval().requires_grad_(False)


def fill_decoder(student: PidStudent, name: str | Path, device: torch.device | str = "cpu") -> None:
    """Give a decoder, perhaps on the meta device, the weights of a kept one, in fp32.

    Raises:
        UserError: for anything but complete, matching, finite weights.
    """
    folder = find_decoder(name)
    expected = student.state_dict()
    entries = weights.read_entries(folder)
    weights.check_entries(expected, entries, folder)
    check_file(folder / CONFIG)
    state = weights.read_weights(entries, device, dict.fromkeys(expected, torch.float32))
    weights.check_finite(state, folder)
    trains = {key: p.requires_grad for key, p in student.named_parameters()}
    student.load_state_dict(state, strict=True, assign=True)
    for key, p in student.named_parameters():
        p.requires_grad_(trains[key])
