"""The pairs of a review: two pictures of one prompt, drawn or found, and the order in which a reviewer meets them.

Order and sides are drawn from the reviewer's name, so they are the same after a reload or a restart, other for each
reviewer, and nothing in the page tells which picture is whose.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2p.artifacts import differences, hash_model, read_sealed, reusable, write_sealed
from l2p.corpus.prompts import fingerprint
from l2p.errors import UserError, warn
from l2p.files import check_writable, leads_out
from l2p.pairing import pair_folders
from l2p.picture_folder import PictureFolder, holds_pictures

if TYPE_CHECKING:
    from l2p.evaluation.references import TeacherPictures
    from l2p.recipe import TeacherConfig
    from l2p.students.pipeline import StudentPipeline

MANIFEST = "review.json"


@dataclass(frozen=True)
class Pair:
    """``a`` and ``b`` are paths of pictures."""

    id: str
    prompt: str
    a: str
    b: str


@dataclass(frozen=True)
class Review:
    """``a`` and ``b`` name what is compared; ``made_from`` holds the settings that the pictures were drawn with."""

    a: str
    b: str
    pairs: list[Pair]
    made_from: dict[str, Any]

    def order(self, reviewer: str) -> list[Pair]:
        """The pairs in this reviewer's order."""
        pairs = list(self.pairs)
        _random("order", reviewer).shuffle(pairs)
        return pairs

    def sides(self, reviewer: str, pair: str) -> dict[str, str]:
        """What stands "left" and "right": "a" or "b"."""
        swapped = _random("sides", reviewer, pair).random() < 0.5
        return {"left": "b", "right": "a"} if swapped else {"left": "a", "right": "b"}

    def pair(self, pair: str) -> Pair | None:
        """The pair of this id."""
        return next((item for item in self.pairs if item.id == pair), None)


def _random(*words: str) -> random.Random:
    # random.Random(str) differs between no versions, but a hash says plainly what it depends on
    return random.Random(int.from_bytes(hashlib.sha256("\0".join(words).encode()).digest()[:8], "big"))


def read_review(folder: str | Path) -> Review:
    """Raises UserError if the folder holds no review."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder} holds no review: start one with l2p review STUDENT --against OTHER")
    values = read_sealed(path, "delete it and start the review anew; the answers are kept")
    try:
        review = Review(**{**values, "pairs": [Pair(**pair) for pair in values["pairs"]]})
        texts = [review.a, review.b, *(text for pair in review.pairs for text in asdict(pair).values())]
        if not all(isinstance(text, str) and "\0" not in text for text in texts):
            raise TypeError("a name, a prompt or a path that is no text")
        return review
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is no review of this version: {error}") from error


def prepare(
    folder: str | Path,
    student: str | Path,
    against: str,
    *,
    prompts: str | None = None,
    num_images: int = 30,
    device: str = "auto",
    dtype: str = "auto",
) -> Review:
    """Find or draw the pictures of both sides and write ``review.json``; a review that is there goes on as it is.

    Args:
        student, against: a student (its folder or name) or a folder of pictures; ``against`` also a teacher. Two folders
            of pictures are paired as :mod:`l2p.pairing` says.
        prompts: "landscapes" or a file of prompts, of folders a prompt a picture; what the student's corpus was drawn from, or
            what a folder's manifest says, if None.

    Raises:
        UserError: nothing to pair, or the folder holds a review of other pictures.
    """
    folder = Path(folder)
    if Path(student).exists():
        student = Path(student).resolve()
    made_from = {
        "student": str(student),
        "against": str(against),
        "prompts": prompts,
        "num_images": num_images,
    }
    made_from["student_sha256"], made_from["against_sha256"] = _hash_of(student), _hash_of(against)
    if prompts is not None:
        made_from["prompts_sha256"] = fingerprint(prompts)
    if (folder / MANIFEST).is_file():
        review = read_review(folder)
        if changed := differences(review.made_from, made_from):
            raise UserError(
                f"{folder} holds a review with other settings ({changed}): repeat those, or choose another --out"
            )
        return review
    if holds_pictures(student) and holds_pictures(against):
        check_writable(folder)
        pairs = _pair_files(PictureFolder.read(student), PictureFolder.read(against), num_images, prompts)
    else:
        pairs = _draw(folder, student, against, prompts, num_images, device, dtype)
    review = Review(Path(student).name, Path(against).name, pairs, made_from)
    write_sealed(folder / MANIFEST, asdict(review))
    return review


def _hash_of(side: str | Path) -> str | None:
    """What tells one side of a review from others of its name; None for a name on the Hub that is not here."""
    from l2p.students.resolve import names_student, resolve_student
    from l2p.teachers import teacher_sha256

    if holds_pictures(side):
        return PictureFolder.read(side).sha256
    if (found := teacher_sha256(side)) is not None:
        return found
    try:
        return hash_model(resolve_student(side)) if names_student(str(side)) else None
    except UserError:
        return None  # what is wrong with it is said when it is loaded


def _pair_files(a: PictureFolder, b: PictureFolder, num_images: int, prompts: str | None) -> list[Pair]:
    from l2p.corpus.prompts import prompts_of

    pairing = pair_folders(a, b)
    for folder in (a, b):
        if not folder.pictures:
            raise folder.none_found()
    if not pairing.pairs:
        raise UserError(f"no pictures of {a.path} and {b.path} belong together: {pairing.line()}")
    if (line := pairing.line()) is not None:
        warn(line)
    for path, folder in (
        (p.path, f.path) for pair in pairing.pairs for p, f in zip(pair, (a, b), strict=True)
    ):
        if leads_out(path, folder):
            raise UserError(
                f"{path} is a link out of its folder, which a review does not show: put the picture itself there"
            )
    told = prompts_of(prompts, pairing) if prompts else {}
    return [
        Pair(
            f"{k:04d}",
            told.get(one.path) or one.prompt or two.prompt or one.path.stem,
            str(one.path.resolve()),
            str(two.path.resolve()),
        )
        for k, (one, two) in enumerate(pairing.pairs[:num_images])
    ]


def _draw(
    folder: Path,
    student: str | Path,
    against: str,
    prompts: str | None,
    num_images: int,
    device: str,
    dtype: str,
) -> list[Pair]:
    import numpy as np

    from l2p import runtime
    from l2p.corpus.prompts import is_endless, prompts_for
    from l2p.evaluation.evaluate import EVALUATION_SEEDS
    from l2p.images import save_png
    from l2p.students.io import read_config
    from l2p.students.origin import recipe_prompts, teacher_config
    from l2p.students.pipeline import load
    from l2p.students.resolve import names_student, resolve_student

    if holds_pictures(student):
        raise UserError(
            f"{student} is a folder of pictures, so {against} must be one too: pairs are made of two folders"
        )
    if holds_pictures(against):
        raise UserError(
            f"{against} is a folder of pictures and {student} a student: draw its pictures under the same names first "
            "(l2p generate), then compare the two folders"
        )
    network = resolve_student(student)
    rival = resolve_student(against) if names_student(against) else None
    check_writable(folder)
    recipe = read_config(network).get("recipe") or {}
    runtime.setup()
    runtime.silence_libraries()
    source = prompts or recipe_prompts(network, recipe)
    first = EVALUATION_SEEDS if is_endless(source) else 0
    texts = prompts_for(source, range(num_images), first)
    pipeline = load(network, device, dtype)
    spec = pipeline.student.spec
    size = (spec.height or 128, spec.width or 128)
    if rival is not None:
        other = load(rival, device, dtype).generate
    else:
        named = replace(teacher_config(network, against), height=size[0], width=size[1])
        other = teacher_generator(named, pipeline)
    methods = {"a": pipeline.generate, "b": other}
    hashes = {"a": _hash_of(student), "b": _hash_of(against)}
    paths: dict[str, list[Path]] = {"a": [], "b": []}
    for side, paint in methods.items():
        for k, text in enumerate(texts):
            path = folder / "pictures" / side / f"{k:04d}.png"
            seed = EVALUATION_SEEDS + k
            made_from = {"sha256": hashes[side], "beside_sha256": hashes["a"], "prompt": text, "seed": seed}
            made_from |= {"size": list(size), "dtype": str(pipeline.dtype), "device": pipeline.device.type}
            if not reusable(path, made_from):
                image = paint(text, seeds=seed, height=size[0], width=size[1])[0]
                save_png(np.asarray(image), path, made_from)
            paths[side].append(path.resolve())
    return [
        Pair(f"{k:04d}", text, str(a), str(b))
        for k, (text, a, b) in enumerate(zip(texts, paths["a"], paths["b"], strict=True))
    ]


def teacher_source(config: TeacherConfig, pipeline: StudentPipeline) -> TeacherPictures:
    """A teacher that paints from the pixel noise of a student's pipeline."""
    from l2p.evaluation.references import TeacherPictures
    from l2p.runtime import frozen_dtype
    from l2p.teachers import load_teacher

    weights = frozen_dtype(pipeline.device, pipeline.dtype)
    teacher = load_teacher(config.path, config.revision, pipeline.device, weights)
    generator = pipeline.noise_generator
    return TeacherPictures(teacher, pipeline.student.basis, config, pipeline.dtype, Path(), generator)


def teacher_generator(config: TeacherConfig, pipeline: StudentPipeline):
    """``(prompt, seeds, height, width) -> [picture]`` of a teacher, from the pixel noise of a student's pipeline."""
    from PIL import Image

    source = teacher_source(config, pipeline)

    def paint(prompt: str, seeds: int, height: int, width: int) -> list[Image.Image]:
        noise = source.noise([seeds], height, width)
        return [Image.fromarray(source.draw([prompt], noise, config.num_inference_steps)[0])]

    return paint
