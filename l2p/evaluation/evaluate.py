"""Evaluation of a one-step student beside its teacher, on captions and seeds that neither training nor corpus saw.

All four painters get the same pixel noise ``eps`` of a seed; the teacher starts at ``A^T eps``. Objects of the result:
``teacher`` (its own many steps), ``teacher_one_step``, ``lift`` (the student before any training), ``student``, and as
yardsticks ``real`` (renders of the same scenes: the judge's ceiling and the floor of the Frechet distance) and ``vae``
(those renders through the teacher's encoder and decoder: what no student of this teacher can be blamed for).
"""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from l2p import __version__, flow
from l2p.corpus.prompts import LANDSCAPES, prompts_for
from l2p.errors import UserError
from l2p.evaluation.attributes import named_labels
from l2p.evaluation.figures import Figures
from l2p.evaluation.judge import load_judge
from l2p.evaluation.latency import median_latency
from l2p.evaluation.references import TeacherPictures
from l2p.files import atomic_path, check_writable, write_json
from l2p.images import Pictures, from_uint8, to_uint8
from l2p.landscapes import render_batch
from l2p.students.pipeline import StudentPipeline

if TYPE_CHECKING:
    from l2p.recipe import EvaluationConfig, TeacherConfig
    from l2p.students.student import PixelStudent
    from l2p.teachers import Teacher

EVALUATION_SEEDS = 7_000_000  # scenes and noise from here on are for the evaluation alone
PAINTERS = ("teacher", "teacher_one_step", "lift", "student")


def evaluate(
    pipeline: StudentPipeline,
    teacher: Teacher,
    lift_student: PixelStudent,
    config: EvaluationConfig,
    output_dir: str | Path,
    *,
    teacher_config: TeacherConfig,
    prompts: str = LANDSCAPES,
    cache: str | Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure, and write ``output_dir/metrics.json`` and ``output_dir/evaluation/pictures.npz`` (for the report).

    Args:
        lift_student: the student that the lift alone makes, with its linear head.
        prompts: "landscapes", or a text file of prompts; there, without ground truth, attributes and Frechet distances
            are left out (None).
        cache: folder of the teacher's pictures, ``output_dir/evaluation/teacher`` by default.

    Returns:
        the content of metrics.json.

    Raises:
        UserError: a student that draws NaN, too few pictures, a folder that cannot be written.
    """
    if config.num_images < 2:
        raise UserError(f"evaluation.num_images is {config.num_images}: statistics need at least 2 pictures")
    start = time.perf_counter()
    output_dir = Path(output_dir)
    check_writable(output_dir)
    device, dtype = teacher.device, pipeline.dtype
    p = pipeline.student.spec.patch_size
    size = (teacher_config.height, teacher_config.width)
    known_world = prompts == LANDSCAPES
    judge = load_judge(device=device) if known_world else None
    source = TeacherPictures(
        teacher,
        pipeline.student.basis,
        teacher_config,
        dtype,
        Path(cache or output_dir / "evaluation" / "teacher"),
    )
    painters = {"lift": StudentPipeline(lift_student, teacher.text_encoder, dtype), "student": pipeline}

    yardsticks = ("real", "vae") if known_world else ()
    # seams are sought at the token's side, the fine token's and the VAE's own cell
    periods = tuple(dict.fromkeys((p, teacher.geometry.compression, 4)))
    sets = {name: Figures(judge, periods) for name in (*PAINTERS, *yardsticks)}
    shown: dict[str, list[Pictures]] = {name: [] for name in sets}
    captions: list[str] = []
    for indices in _batches(config, progress):
        texts = prompts_for(prompts, indices, EVALUATION_SEEDS)
        seeds = [EVALUATION_SEEDS + index for index in indices]
        drawn = dict(zip(PAINTERS, source.get(texts, seeds), strict=False))
        noise = flow.noise(seeds, 3, *size)
        for name, painter in painters.items():
            drawn[name] = _paint(painter, texts, noise, name)
        if known_world:
            drawn["real"] = render_batch(seeds, *size)
            drawn["vae"] = source.reconstruct(from_uint8(drawn["real"]))
        labels = named_labels(texts) if known_world else None
        images = {name: from_uint8(pictures).to(device) for name, pictures in drawn.items()}
        for name, figures in sets.items():
            repeats = {"real": None, "teacher": None, "vae": "real"}.get(name, "teacher")
            figures.update(images[name], labels, images[repeats] if repeats else None)
        room = max(0, config.preview_images - len(captions))
        for name, pictures in drawn.items():
            shown[name].append(pictures[:room])
        captions += texts[:room]

    latency = _latency(source, painters, captions or texts, config)
    metrics = _metrics(sets, latency, judge, p)
    metrics["settings"] = {
        "num_images": config.num_images,
        "first_seed": EVALUATION_SEEDS + config.seed,
        "prompts": str(prompts),
        "height": size[0],
        "width": size[1],
        "patch_size": p,
        "student_steps": pipeline.student.spec.num_steps,
        "teacher": teacher.name,
        "teacher_steps": teacher_config.num_inference_steps,
        "teacher_guidance": teacher_config.guidance_scale,
        "latency_runs": config.latency_runs,
        "dtype": str(dtype).removeprefix("torch."),
        **_machine(device),
    }
    metrics["seconds"] = round(time.perf_counter() - start, 1)
    with atomic_path(output_dir / "evaluation" / "pictures.npz") as partial:
        arrays = {name: np.concatenate(parts) for name, parts in shown.items()}
        np.savez_compressed(partial, captions=np.array(captions, dtype=np.str_), **arrays)
    write_json(output_dir / "metrics.json", metrics)
    return metrics


def _batches(config: EvaluationConfig, progress: bool):
    """Ranges of sample numbers, with a bar."""
    from rich.console import Console
    from rich.progress import track

    first, last = config.seed, config.seed + config.num_images
    ranges = [range(i, min(i + config.batch_size, last)) for i in range(first, last, config.batch_size)]
    return track(ranges, "evaluating", console=Console(stderr=True), disable=not progress)


def _paint(painter: StudentPipeline, texts: list[str], noise: torch.Tensor, name: str) -> Pictures:
    pictures = painter.sample(painter.text_encoder(texts), noise)
    if not torch.isfinite(pictures).all():
        raise UserError(
            f"the {name} draws numbers that are not finite: its weights are broken, or try dtype=fp32"
        )
    return to_uint8(pictures)


def _latency(
    source: TeacherPictures,
    painters: dict[str, StudentPipeline],
    captions: list[str],
    config: EvaluationConfig,
) -> dict[str, float]:
    """Milliseconds from one prompt to one 8-bit picture; captions are read anew each time."""
    size = (source.config.height, source.config.width)

    def teacher(num_steps: int):
        def draw(number: int) -> Pictures:
            noise = flow.noise([EVALUATION_SEEDS + number % config.num_images], 3, *size)
            return source.draw([captions[number % len(captions)]], noise, num_steps)

        return draw

    def student(painter: StudentPipeline):
        def draw(number: int):
            seed = EVALUATION_SEEDS + number % config.num_images
            return painter.generate(
                captions[number % len(captions)], seeds=seed, height=size[0], width=size[1]
            )

        return draw

    def forget() -> None:
        for encoder in {id(painter): painter.text_encoder for painter in painters.values()}.values():
            encoder.forget()

    paths = {"teacher": teacher(source.config.num_inference_steps), "teacher_one_step": teacher(1)}
    paths |= {name: student(painter) for name, painter in painters.items()}
    return median_latency(paths, config.latency_runs, source.teacher.device, before=forget)


def _metrics(sets: dict[str, Figures], latency: dict[str, float], judge: Any, p: int) -> dict[str, Any]:
    teacher, student = sets["teacher"], sets["student"]
    clean = sets.get("real", teacher)
    metrics: dict[str, Any] = {}
    for name, figures in sets.items():
        metrics[name] = figures.report(clean)
        if name in latency:
            metrics[name]["latency_ms"] = round(latency[name], 2)
        if name == "vae":
            metrics[name]["psnr_to_real"] = figures.mean_psnr
        elif name in PAINTERS[1:]:
            # the same noise makes the same layout: this ratio scatters less than the one to other pictures
            metrics[name]["seam_ratio_to_teacher"] = figures.seam_ratio_to(teacher, p)
            metrics[name]["frechet_to_teacher"] = figures.frechet_to(teacher)
            metrics[name]["psnr_to_teacher"] = figures.mean_psnr
    summary: dict[str, Any] = {
        "psnr_to_teacher": student.mean_psnr,
        "seam_ratio": metrics["student"]["seam_ratio"],
        "seam_ratio_to_teacher": metrics["student"]["seam_ratio_to_teacher"],
        "speedup": latency["teacher"] / latency["student"],
    }
    if judge is not None:
        summary["attribute_points_lost"] = 100 * (teacher.score.accuracy - student.score.accuracy)
        summary["frechet_over_teacher"] = student.frechet_to_real / max(teacher.frechet_to_real, 1e-9)
        report = judge.report
        metrics["judge"] = {
            "accuracy": report["accuracy"],
            "accuracy_by_attribute": report["accuracy_by_attribute"],
            "reference_images": report["test_images"],
        }
    return {"summary": summary, **metrics}


def _machine(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "l2p": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def evaluate_folder(
    student_path: str | Path,
    num_images: int | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluate a saved student against the teacher it names; write metrics, pictures and report.html.

    Args:
        num_images: pictures measured; the recipe's if None.
        out: folder of the results, ``evaluation-NAME`` beside the student by default.

    Raises:
        UserError: not a student, a student that names no teacher, or the teacher cannot be found.
    """
    from l2p.evaluation.report import write_report
    from l2p.lift import Lift
    from l2p.recipe import EvaluationConfig, HeadConfig, StudentConfig, TeacherConfig
    from l2p.students.build import from_teacher
    from l2p.students.io import read_config
    from l2p.students.pipeline import load
    from l2p.teachers import load_teacher

    student_path = Path(student_path)
    recipe = read_config(student_path).get("recipe") or {}
    pipeline = load(student_path, device, dtype)
    spec = pipeline.student.spec
    origin = {**spec.teacher, **recipe.get("teacher", {})}
    name = origin.get("path") or origin.get("name")
    if not name:
        raise UserError(
            f"{student_path} does not say which teacher it comes from, so there is nothing to compare it with"
        )
    keys = ("revision", "num_inference_steps", "guidance_scale", "height", "width")
    teacher_config = TeacherConfig(path=name, **{key: origin[key] for key in keys if key in origin})
    config = EvaluationConfig(**recipe.get("evaluation", {}))
    config.num_images = num_images or config.num_images
    weights = torch.float32 if pipeline.device.type == "cpu" else pipeline.dtype
    teacher = load_teacher(name, teacher_config.revision, pipeline.device, weights)
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
    lift_student = from_teacher(teacher, lift, student_config, (teacher_config.height, teacher_config.width))
    out = Path(out) if out else student_path.resolve().parent / f"evaluation-{student_path.resolve().name}"
    source = recipe.get("corpus", {}).get("prompts", LANDSCAPES)
    metrics = evaluate(
        pipeline,
        teacher,
        lift_student,
        config,
        out,
        teacher_config=teacher_config,
        prompts=source,
        progress=progress,
    )
    write_report(out, title=f"{recipe.get('name', student_path.name)}: {student_path.name}")
    return metrics
