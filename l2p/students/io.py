"""Students on disk: ``config.json``, the weights, and the ``text_encoder/`` and ``tokenizer/`` they use, or the name of
the teacher that has them.

A student with LoRA adapters keeps them in two files of their own.

Loading is strict and says what does not fit; saving replaces a folder whole or not at all. The config, and with it
the provenance, also travels in the weights' own metadata, so that a file that was parted from its folder still tells.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from l2p import __version__
from l2p.checksums import check_file, write_checksums
from l2p.config import shown
from l2p.declared import Declared, check_config
from l2p.errors import UserError
from l2p.files import atomic_path, read_json, write_json
from l2p.noise import GENERATORS
from l2p.runtime import DTYPES
from l2p.students import quantize, weights
from l2p.students.lora import lora_of, plain_state, read_lora, write_lora
from l2p.students.student import PixelStudent, StudentSpec, current_keys

if TYPE_CHECKING:
    from torch import Tensor

    from l2p.teachers.text import PromptEncoder

FORMAT_VERSION = 1
NEEDS = "0.1.0"  # the first version of the package that reads this format
CLASS_NAME = "PixelStudent"
CONFIG = "config.json"
LATER = {
    "max_timestep": 1.0,
    "project_noise": False,
    "interval": False,
    "guidance_scale": 1.0,
    "shift": 1.0,
    "noise_generator": "mt19937",
}  # what folders from before these were written mean
FORMAT_KEYS = {"format_version", "needs", "written_by", "class", "lora", "quantization"}
TUPLE = "__tuple__"  # JSON has lists alone: a tuple travels as {"__tuple__": [...]}
LARGEST = 1_000_000  # no size in a config is larger; a broken one must not build networks for hours
DEEPEST = 1000  # layers
MOST_STEPS = 1000  # of one picture
LONGEST_SIDE = 16384  # pixels of the picture that is drawn where no size is asked for
LONGEST_AXIS = 2**17  # tokens of a caption, or patches of a side, that a core has positions for
DEPTHS = {"n_layers", "n_refiner_layers", "num_layers", "num_single_layers", "num_blocks", "patch_size"}
HEAD_SIZES = {"fine_patch", "width", "num_blocks", "head_dim", "tile", "halo", "factor"}


def save_student(
    student: PixelStudent,
    folder: str | Path,
    text_encoder: PromptEncoder | None = None,
    extra: dict[str, Any] | None = None,
    dtype: str | None = None,
    shard_bytes: int = weights.SHARD_BYTES,
) -> None:
    """Write a student's folder; an older student there is replaced once the new one is complete.

    Args:
        extra: JSON values to keep in ``config.json`` beside the spec, such as ``recipe``.
        dtype: "bf16", "fp16" or "fp32" to save a copy in; buffers, which are exact on purpose, keep theirs.
        shard_bytes: weights beyond are written as several files and an index.

    Raises:
        UserError: if the folder holds something that is no student, or cannot be written.
    """
    from safetensors import SafetensorError

    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    if dtype is not None and student.quantization is not None:
        raise UserError(f"a quantised student keeps its number formats: leave out dtype {dtype}")
    lora = lora_of(student)
    changed = {"lora": lora, "quantization": student.quantization}
    config = config_of(
        student.spec, extra, {key: value for key, value in changed.items() if value is not None}
    )
    folder = Path(folder)
    check_replaceable(folder)
    try:
        with atomic_path(folder) as partial:
            partial.mkdir()
            metadata = {"format": "pt", "config": json.dumps(config)}
            weights.write_weights(tensors_of(student, dtype), partial, metadata, shard_bytes)
            if lora is not None:
                write_lora(student, partial, DTYPES[dtype] if dtype else None)
            write_json(partial / CONFIG, config)
            if text_encoder is not None:
                text_encoder.save_pretrained(partial)
            write_checksums(partial)
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot save the student in {folder}: {error}") from error


def config_of(
    spec: StudentSpec, extra: dict[str, Any] | None = None, changed: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What ``config.json`` says of a student: the format, the spec, how its weights were changed, and `extra`, which may
    hold none of their keys."""
    config = {
        "format_version": FORMAT_VERSION,
        "needs": NEEDS,
        "written_by": __version__,
        "class": CLASS_NAME,
    }
    config.update(asdict(spec), **(changed or {}))
    clash = config.keys() & (extra or {}).keys()
    if clash:
        raise ValueError(f"extra may not hold {sorted(clash)}: these keys are the format's own")
    return _without_tuples({**config, **(extra or {})})


def check_replaceable(folder: Path) -> None:
    """Raises: UserError if `folder` holds something that is no student, which a save would destroy."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"cannot save a student as {folder}: there is a file of that name")
    if folder.is_dir() and any(folder.iterdir()) and not is_student(folder):
        raise UserError(
            f"{folder} holds files that are no student, so it is left alone: move it away, or choose another folder"
        )


def tensors_of(student: PixelStudent, dtype: str | None = None) -> dict[str, Tensor]:
    """Plain tensors by name as ``model.safetensors`` holds them: without adapters, quantised weights in their parts."""
    state = plain_state(student)
    if student.quantization is not None:
        return quantize.flat(state)[0]
    if dtype is not None:
        exact = {name for name, _ in student.named_buffers()}
        state = {name: v if name in exact else v.detach().to(DTYPES[dtype]) for name, v in state.items()}
    return state


def _without_tuples(value: Any) -> Any:
    if isinstance(value, tuple):
        return {TUPLE: [_without_tuples(item) for item in value]}
    if isinstance(value, dict):
        return {key: _without_tuples(item) for key, item in value.items()}
    return [_without_tuples(item) for item in value] if isinstance(value, list) else value


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {TUPLE} and isinstance(value[TUPLE], list):
            return tuple(_with_tuples(item) for item in value[TUPLE])
        return {key: _with_tuples(item) for key, item in value.items()}
    return [_with_tuples(item) for item in value] if isinstance(value, list) else value


def is_student(folder: Path) -> bool:
    """Whether a folder's ``config.json`` is a student's, be it sound or not."""
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
    if type(version) is not int or version < 1:
        raise UserError(
            f"{folder / CONFIG} is broken: format_version is {version!r}, expected a whole number"
        )
    if version > FORMAT_VERSION:
        reader = f"latent2pixel {config['needs']}" if isinstance(config.get("needs"), str) else "a newer l2p"
        raise UserError(
            f"{folder} has student format {version}, which {reader} reads; this is {__version__} and reads up to "
            f"{FORMAT_VERSION}: upgrade with `pip install -U latent2pixel`"
        )
    return _with_tuples(current_keys(config))


def read_spec(folder: str | Path) -> StudentSpec:
    """The spec in a student's ``config.json``. Raises UserError when it lacks something or holds absurd sizes."""
    folder = Path(folder)
    config = read_config(folder)
    names = [f.name for f in fields(StudentSpec)]
    config = {**LATER, **config}
    missing = [name for name in names if name not in config]
    if missing:
        raise _broken(folder, f"it lacks {', '.join(missing)}")
    for name in ("core", "head", "teacher"):
        if not isinstance(config[name], dict):
            raise _broken(folder, f"{name} is {shown(config[name])}, expected a mapping")
    for name, most in (("patch_size", DEEPEST), ("latent_dim", LARGEST), ("num_steps", MOST_STEPS)):
        if type(config[name]) is not int or not 1 <= config[name] <= most:
            raise _broken(
                folder, f"{name} is {shown(config[name])}, expected a whole number from 1 to {most}"
            )
    if type(config["lift_scale"]) not in (int, float) or not 0 < config["lift_scale"] < LARGEST:
        raise _broken(folder, f"lift_scale is {config['lift_scale']!r}, expected a positive number")
    for name in ("guidance_scale", "shift"):
        if type(config[name]) not in (int, float) or not 0 < config[name] <= 1000:
            raise _broken(folder, f"{name} is {config[name]!r}, expected a number above 0, at most 1000")
    latest = config["max_timestep"]
    if type(latest) not in (int, float) or not 0 < latest <= 1:
        raise _broken(folder, f"max_timestep is {latest!r}, expected a number above 0, at most 1")
    if config["noise_generator"] not in GENERATORS:
        raise _broken(
            folder, f"noise_generator is {config['noise_generator']!r}, expected {' or '.join(GENERATORS)}"
        )
    if type(config["project_noise"]) is not bool:
        raise _broken(folder, f"project_noise is {config['project_noise']!r}, expected true or false")
    for name in ("height", "width"):
        if config[name] is not None and (
            type(config[name]) is not int or not 0 < config[name] <= LONGEST_SIDE
        ):
            raise _broken(
                folder, f"{name} is {shown(config[name])}, expected 1 to {LONGEST_SIDE} pixels or null"
            )
    for key in HEAD_SIZES & config["head"].keys():
        value, least = config["head"][key], int(key not in ("num_blocks", "halo"))
        if type(value) is not int or value < least:
            raise _broken(folder, f"head.{key} is {shown(value)}, expected a whole number of {least} or more")
    for key, value in [
        *config["core"].items(),
        *config["head"].items(),
        ("patch_size", config["patch_size"]),
    ]:
        limit = DEEPEST if key in DEPTHS else LONGEST_AXIS if key == "axes_lens" else LARGEST
        sizes = value if isinstance(value, (list, tuple)) else [value]
        if key.startswith("axes_") and len(sizes) > 4:  # each has a table of its own
            raise _broken(folder, f"{key} has {len(sizes)} entries, expected at most 4")
        if len(sizes) > DEEPEST or any(
            isinstance(size, (int, float)) and not abs(size) <= limit for size in sizes
        ):
            raise _broken(folder, f"{key} is {shown(value)}, beyond {limit}")
    return StudentSpec(**{name: config[name] for name in names})


def _broken(folder: Path, reason: str) -> UserError:
    return UserError(f"{folder / CONFIG} is broken ({reason}): save the student again or restore the file")


def saved_dtype(folder: str | Path) -> torch.dtype:
    """The dtype of a student's weights on the disk, from their headers: the narrowest, as buffers are exact on purpose.

    Raises:
        UserError: the weights are missing or broken.
    """
    found = {weights.FLOATS.get(entry.dtype) for entry in weights.read_entries(Path(folder)).values()}
    return next((kind for kind in (torch.bfloat16, torch.float16) if kind in found), torch.float32)


def load_student(
    folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> PixelStudent:
    """Load a student in evaluation mode.

    Args:
        dtype: of the parameters, each cast as it is read; the one they were saved in if None. Buffers keep theirs.

    Raises:
        UserError: for anything but complete, matching, finite weights.
    """
    folder = Path(folder)
    spec, config = read_spec(folder), read_config(folder)
    entries = weights.read_entries(folder)
    declared = Declared.of(entry.shape for entry in entries.values())
    for part in (spec.core, spec.head):
        check_config(part, declared, folder / CONFIG)
    quantization, note = config.get("quantization"), None
    if quantization is not None and not isinstance(quantization, dict):
        raise _broken(folder, f"quantization is {quantization!r}, expected a mapping")
    try:
        with torch.device("meta"):
            student = PixelStudent(spec)
        expected = student.state_dict()
        if quantization is not None:
            quantize.quantize(student, quantization.get("kind"))
            expected, note = quantize.flat(student.state_dict())
            student.quantization = quantization
    except (KeyError, TypeError, ValueError, AssertionError, RuntimeError, ArithmeticError) as error:
        reason = " ".join(str(error).split()) or "its sizes do not fit one another"
        raise _broken(folder, reason) from error
    weights.check_entries(expected, entries, folder)
    check_file(folder / CONFIG)
    wanted = {name: dtype for name, _ in student.named_parameters()} if dtype is not None else None
    state = weights.read_weights(entries, device, wanted)
    weights.check_finite(state, folder)
    student.load_state_dict(quantize.unflat(state, note) if note else state, strict=True, assign=True)
    lora = config.get("lora")
    if lora is not None:
        read_lora(student, folder, lora, device)
    return student.to(device).eval()
