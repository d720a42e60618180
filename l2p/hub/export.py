"""A student in another form: a diffusers folder, an exported program, ONNX; or a student without adapters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from l2p import __version__
from l2p.errors import UserError
from l2p.files import PathLike, atomic_path, check_outputs, write_json, write_text
from l2p.hub.program import to_onnx, to_torch_export
from l2p.students.io import read_config
from l2p.students.resolve import resolve_student

CARD = """\
---
library_name: diffusers
pipeline_tag: text-to-image
---

A one-step pixel-space text-to-image model, exported with latent2pixel {version}.

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{name}", custom_pipeline="{name}", trust_remote_code=True)
pipe("a red house by a lake at dusk").images[0].save("picture.png")
```

With the package installed, and without the code in this folder: `l2p.PixelPipeline.from_pretrained("{name}")`.
"""


def export(student: PathLike, kind: str, out: PathLike) -> Path:
    """Write `student` (a folder or a Hub name) as `kind` to `out`.

    Args:
        kind: a key of :data:`KINDS`.
        out: a folder; a new one, or one of an earlier export.

    Raises:
        UserError: an unknown kind, a broken student, or `out` holds something else.
    """
    if kind not in KINDS:
        raise UserError(f"--to is {kind!r}, expected one of {', '.join(KINDS)}")
    folder = resolve_student(student)
    check_outputs([out], [folder], "OUT")
    if read_config(folder).get("quantization") is not None:
        raise UserError(f"{folder} is quantised: export the student that it was made from")
    return KINDS[kind](folder, Path(out))


def to_diffusers(student: Path, out: Path) -> Path:
    """A folder that `DiffusionPipeline.from_pretrained` reads, with the code it needs in one file."""
    import diffusers

    from l2p.hub.bundle import write_bundle
    from l2p.hub.pixel_pipeline import PixelStudentModel
    from l2p.hub.portable import refuse_other_readers
    from l2p.students.io import load_student
    from l2p.students.lora import merged
    from l2p.students.pipeline import text_encoder_folder
    from l2p.teachers.text import TextEncoder

    if out.exists() and not (
        out.is_dir() and (not any(out.iterdir()) or (out / "model_index.json").is_file())
    ):
        raise UserError(
            f"{out} holds something that is no pipeline, so it is left alone: move it away, or choose another folder"
        )
    loaded = load_student(student)
    refuse_other_readers(loaded.spec, student)
    model = PixelStudentModel.from_student(merged(loaded))
    texts = TextEncoder.from_pretrained(text_encoder_folder(student), dtype="auto")
    with atomic_path(out) as partial:
        partial.mkdir()
        model.save_pretrained(partial / "student", safe_serialization=True)
        texts.save_pretrained(partial)
        write_bundle(
            "l2p.hub.pixel_pipeline",
            ["PixelStudentModel"],
            partial / "student" / "l2p_student.py",
            __version__,
        )
        write_bundle("l2p.hub.pixel_pipeline", ["PixelPipeline"], partial / "pipeline.py", __version__)
        parts = {"text_encoder": texts.model, "tokenizer": texts.tokenizer}
        index = {"_class_name": "PixelPipeline", "_diffusers_version": diffusers.__version__}
        index |= {"student": ["l2p_student", "PixelStudentModel"]}
        index |= {name: ["transformers", type(part).__name__] for name, part in parts.items()}
        write_json(partial / "model_index.json", index)
        write_text(partial / "README.md", CARD.format(version=__version__, name=out.name))
    return out


def to_student(student: Path, out: Path, quantize: str | None = None) -> Path:
    """A student's folder as it is published, its LoRA adapters merged into their layers, and perhaps quantised."""
    from l2p.hub.stage import stage
    from l2p.students.io import check_replaceable

    check_replaceable(out)
    with atomic_path(out) as scratch:
        stage(student, scratch, name=out.name, merge=True, quantize=quantize)
    return out


KINDS: dict[str, Callable[[Path, Path], Path]] = {
    "diffusers": to_diffusers,
    "torch-export": to_torch_export,
    "onnx": to_onnx,
    "merged": to_student,
    "int8": partial(to_student, quantize="int8"),
    "fp8": partial(to_student, quantize="fp8"),
}
