"""A student in the form that other libraries read: a diffusers folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from l2p import __version__
from l2p.errors import UserError
from l2p.files import PathLike, atomic_path, write_json, write_text
from l2p.hub.fetch import resolve_student

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
    return KINDS[kind](resolve_student(student), Path(out))


def to_diffusers(student: Path, out: Path) -> Path:
    """A folder that `DiffusionPipeline.from_pretrained` reads, with the code it needs in one file."""
    import diffusers

    from l2p.hub.bundle import write_bundle
    from l2p.hub.pixel_pipeline import PixelStudentModel
    from l2p.students.io import load_student
    from l2p.students.pipeline import text_encoder_folder
    from l2p.teachers.text import TextEncoder

    if out.exists() and not (
        out.is_dir() and (not any(out.iterdir()) or (out / "model_index.json").is_file())
    ):
        raise UserError(
            f"{out} holds something that is no pipeline, so it is left alone: choose another folder"
        )
    loaded = load_student(student)
    read_as = loaded.spec.teacher.get("pipeline", "ZImagePipeline")
    if read_as != "ZImagePipeline":
        raise UserError(
            f"{student} reads prompts as a {read_as}, and the pipeline that diffusers gets reads them as Z-Image does: "
            "draw with `l2p generate` or l2p.load instead"
        )
    model = PixelStudentModel.from_student(loaded)
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


KINDS: dict[str, Callable[[Path, Path], Path]] = {
    "diffusers": to_diffusers,
}
