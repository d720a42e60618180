"""Evaluation of a student as it lies on the disk, beside the teacher it names or another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from l2p.errors import UserError
from l2p.evaluation.evaluate import evaluate

MOST_MADE = 20_000  # prompts of a corpus that are made anew to tell which the student has seen


def evaluate_folder(
    student_path: str | Path,
    num_images: int | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: bool = True,
    against: str | None = None,
    prompts: str | None = None,
    paths: Sequence[str] = ("vae", "l2p"),
    clip: str | None = None,
    decoder: str | Path | None = None,
    features: Sequence[str] = (),
) -> dict[str, Any]:
    """Evaluate a saved student against the teacher it names; write metrics, pictures and report.html.

    Args:
        num_images: pictures measured; the recipe's if None.
        against: another teacher (folder or name on the Hub) of the same latents.
        prompts: "landscapes" or a text file, one prompt a line; what the recipe's corpus was drawn from if None.
        clip: folder or Hub name of a CLIP; the recipe's if None.
        features: feature networks (:mod:`l2p.features`) for distances in their spaces; the recipe's if empty.
        paths: see :func:`l2p.evaluation.evaluate.evaluate`.
        decoder: folder or name of a pixel diffusion decoder, for the path pid.
        out: folder of the results, ``evaluation-NAME`` beside the student by default.

    Raises:
        UserError: not a student, a grown student, one that names no teacher, or the teacher cannot be found.
    """
    import yaml

    from l2p.config import validate
    from l2p.evaluation.report import write_report
    from l2p.lift import Lift
    from l2p.objectives import networks_seen
    from l2p.recipe import EvaluationConfig, HeadConfig, StudentConfig
    from l2p.runtime import frozen_dtype
    from l2p.students.build import from_teacher
    from l2p.students.io import read_config
    from l2p.students.origin import recipe_prompts, teacher_config
    from l2p.students.pipeline import load
    from l2p.teachers import load_teacher

    student_path = Path(student_path)
    told = read_config(student_path)
    recipe = told.get("recipe") or {}
    if (told.get("head") or {}).get("kind") == "grown":
        raise UserError(
            f"{student_path} was grown beyond its teacher, which draws no pictures of this size: compare it with "
            "pictures that have it, --against FOLDER"
        )
    named = teacher_config(student_path, against)
    if named is None:
        raise UserError(
            f"{student_path} does not say which teacher it comes from, so there is nothing to compare it with"
        )
    pipeline = load(student_path, device, dtype)
    spec = pipeline.student.spec
    own = recipe.get("evaluation") if isinstance(recipe.get("evaluation"), dict) else {}
    known = {item.name for item in fields(EvaluationConfig)}
    config = validate(EvaluationConfig, {key: own[key] for key in own if key in known}, "evaluation")
    config.num_images = num_images or config.num_images
    config.clip = clip or config.clip
    config.features = list(features) or config.features
    weights = frozen_dtype(pipeline.device, pipeline.dtype)
    teacher = load_teacher(named.path, named.revision, pipeline.device, weights)
    nothing = float("nan")  # how well the lift fits was measured when it was made, and is not in the student
    lift = Lift(
        pipeline.student.basis.double(),
        spec.lift_scale,
        pipeline.student.offset.double(),
        nothing,
        nothing,
        nothing,
    )
    student_config = StudentConfig(patch_size=spec.patch_size, head=HeadConfig(kind="linear"))
    lift_student = from_teacher(teacher, lift, student_config, (named.height, named.width))
    out = Path(out) if out else student_path.resolve().parent / f"evaluation-{student_path.resolve().name}"
    source = prompts or recipe_prompts(student_path, recipe)
    method = None
    if decoder is not None:
        from l2p.decoders.decode import PidDecoder
        from l2p.decoders.io import load_decoder

        network = load_decoder(decoder, pipeline.device)
        if network.spec.geometry != teacher.geometry:
            raise UserError(
                f"the decoder {decoder} is of other latents than those of {named.path}: name one with --pid"
            )
        method = PidDecoder(network, None, pipeline.dtype, teacher.encode_prompts)
    metrics = evaluate(
        pipeline,
        teacher,
        lift_student,
        config,
        out,
        teacher_config=named,
        prompts=source,
        progress=progress,
        paths=paths,
        thorough=True,
        student_folder=student_path,
        decoder=method,
        losses_saw=networks_seen(recipe) if recipe else None,
        seen=_seen(recipe),
    )
    written = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True) if recipe else None
    write_report(out, f"{recipe.get('name', student_path.name)}: {student_path.name}", written)
    return metrics


def _seen(recipe: dict[str, Any]) -> set[str] | None:
    """The prompts that a student was trained on, where its recipe made them; those of a file are not known here."""
    from l2p.corpus.prompts import is_endless, prompts_for

    corpus = recipe.get("corpus") if isinstance(recipe.get("corpus"), dict) else {}
    source, count, seed = corpus.get("prompts"), corpus.get("num_pairs"), recipe.get("seed", 0)
    if not isinstance(source, str) or type(count) is not int or type(seed) is not int:
        return None
    if not is_endless(source) or not 0 < count <= MOST_MADE or seed < 0:
        return None
    return set(prompts_for(source, range(count), seed))
