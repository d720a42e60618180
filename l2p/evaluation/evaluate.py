"""Evaluation of a one-step student beside its teacher, on captions and seeds that neither training nor corpus saw.

All four methods get the same pixel noise ``eps`` of a seed; the teacher starts at ``A^T eps``. Objects of the result:
``teacher`` (its own many steps), ``teacher_one_step``, ``lift`` (the student before any training), ``student``, and as
baselines ``real`` (renders of the same scenes: the judge's ceiling and the floor of the Frechet distance) and ``vae``
(those renders through the teacher's encoder and decoder: what no student of this teacher can be blamed for).
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from l2p import __version__
from l2p.artifacts import hash_tensors
from l2p.corpus.prompts import LANDSCAPES, prompts_for
from l2p.decoders.sources import Source
from l2p.errors import UserError, warn
from l2p.evaluation.alarms import alarms
from l2p.evaluation.attributes import named_labels
from l2p.evaluation.clip import Clip
from l2p.evaluation.collection import Gathered
from l2p.evaluation.invention import departure_map, has_free_noise, student_invention
from l2p.evaluation.judge import load_judge
from l2p.evaluation.latency import paths_latency
from l2p.evaluation.memory import peak_memory
from l2p.evaluation.perceptual import backbone_available
from l2p.evaluation.references import TeacherPictures, remembered
from l2p.evaluation.sample_store import Shown
from l2p.evaluation.spaces import describe
from l2p.features import load_features
from l2p.files import check_writable, write_json
from l2p.images import Pictures, from_uint8, to_uint8
from l2p.landscapes import render_batch
from l2p.noise import pixel_noise
from l2p.parallel import parallel_map, shares
from l2p.runtime import autocast, device_name, return_free_memory
from l2p.seeds import SEEDS
from l2p.students.io import tensors_of
from l2p.students.pipeline import StudentPipeline

if TYPE_CHECKING:
    from l2p.decoders.decode import PidDecoder
    from l2p.recipe import EvaluationConfig, TeacherConfig
    from l2p.students.student import PixelStudent
    from l2p.teachers import Teacher

EVALUATION_SEEDS = SEEDS["evaluation"].start
METHODS = ("teacher", "teacher_one_step", "lift", "student")
PATHS = {"vae": ("teacher", "teacher_one_step"), "l2p": ("lift", "student")}
QUICK_LIMIT = 48  # pictures that the costly figures look at unless the evaluation is thorough
DRAWS = {False: 4, True: 8}  # of the invention map, quick and thorough


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
    paths: Sequence[str] = ("vae", "l2p"),
    thorough: bool = False,
    student_folder: str | Path | None = None,
    decoder: PidDecoder | None = None,
    losses_saw: dict[str, str] | None = None,
    seen: Collection[str] | None = None,
) -> dict[str, Any]:
    """Measure, and write ``output_dir/metrics.json`` and ``output_dir/evaluation/pictures.npz`` (for the report).

    Args:
        lift_student: the student that the lift alone makes, with its linear head.
        prompts: "landscapes", or a text file of prompts; there, without ground truth, attributes and Frechet distances
            are left out (None).
        cache: folder of the teacher's pictures, ``output_dir/evaluation/teacher`` by default.
        paths: of "vae" (the teacher and its decoder), "pid" (the teacher and ``decoder``) and "l2p" (the student, always
            drawn); "l2p" alone saves the teacher's time and leaves out what compares with it.
        decoder: a pixel diffusion decoder of the teacher's latents; its pictures are measured averaged down to the
            teacher's size, as the others are of that size.
        seen: the prompts that the student was trained on, to count those of the evaluation among them; None if not known.
        thorough: all figures of all pictures (else the costly ones of the first 48), and the student's pictures are
            kept on the disk, so that a run that was stopped goes on where it was.
        losses_saw: licences of the feature networks that the student's losses saw, by identity
            (:func:`l2p.objectives.networks_seen`); None where that is not known.

    Returns:
        the content of metrics.json.

    Raises:
        UserError: a student that draws NaN, too few pictures, a folder that cannot be written.
    """
    if config.num_images < 2:
        raise UserError(f"evaluation.num_images is {config.num_images}: statistics need at least 2 pictures")
    known_world = prompts == LANDSCAPES
    with_teacher = "vae" in paths
    if not with_teacher and not known_world:
        raise UserError(
            "--paths l2p alone has nothing to compare with on prompts of a file: add vae, or leave --prompts out"
        )
    if with_teacher:
        pipeline.student.check_lifted("compared with a teacher's picture of the same noise: use --paths l2p")
    start = time.perf_counter()
    output_dir = Path(output_dir)
    check_writable(output_dir)
    device, dtype = teacher.device, pipeline.dtype
    p = pipeline.student.spec.patch_size
    size = (teacher_config.height, teacher_config.width)
    judge = load_judge(device=device) if known_world else None
    clip = Clip(config.clip, device) if config.clip else None
    basis = pipeline.student.basis
    kept = output_dir / "evaluation"
    source = TeacherPictures(
        teacher, basis, teacher_config, dtype, Path(cache or kept / "teacher"), pipeline.noise_generator
    )
    methods = {"student": pipeline}
    if with_teacher:
        methods = {"lift": StudentPipeline(lift_student, teacher.text_encoder, dtype), **methods}
    keys = {
        name: {"weights": hash_tensors(tensors_of(method.student)), "size": size, "dtype": str(dtype)}
        | {"steps": method.student.spec.num_steps, "device": device.type, "noise_generator": pipeline.noise_generator}
        for name, method in methods.items()
    }  # fmt: skip
    baselines = ("real",) * known_world + ("vae",) * (known_world and with_teacher)
    decoded = ("pid",) * (decoder is not None)
    names = (*(PATHS["vae"] if with_teacher else ()), *decoded, *methods, *baselines)
    # seams are sought at the token's side, the fine token's and the VAE's own cell
    periods = tuple(dict.fromkeys((p, teacher.geometry.compression, 4)))
    limit = None if thorough else QUICK_LIMIT
    repeats = {"real": None, "teacher": None, "vae": "real"}
    repeats |= {name: "teacher" if with_teacher else None for name in ("pid", *METHODS[1:])}
    encoder = encoder_vectors(teacher, dtype) if known_world else None
    spaces = [load_features(name, teacher) for name in config.features]
    sets = {
        name: Gathered(name, judge, periods, limit, repeats[name], clip, encoder, spaces) for name in names
    }
    shown = Shown(config.preview_images)
    captions: list[str] = []
    known = 0  # prompts that the student was trained on
    for indices in _batches(config, progress):
        texts = prompts_for(prompts, indices, EVALUATION_SEEDS)
        known += 0 if seen is None else sum(text in seen for text in texts)
        seeds = [EVALUATION_SEEDS + index for index in indices]
        drawn = dict(zip(PATHS["vae"], source.get(texts, seeds), strict=True)) if with_teacher else {}
        if decoder is not None:
            drawn["pid"] = _decoded(decoder, source.latents(texts, seeds), texts, seeds, size)
        noise = pixel_noise(pipeline.noise_generator, seeds, *size, basis)
        for name, method in methods.items():
            if thorough:
                key = {**keys[name], "prompts": texts, "seeds": seeds}
                drawn[name] = remembered(
                    kept / name,
                    key,
                    ("pictures",),
                    lambda: {"pictures": _paint(method, texts, noise, name)},  # noqa: B023 - called at once
                )["pictures"]
            else:
                drawn[name] = _paint(method, texts, noise, name)
        if known_world:
            drawn["real"] = render_batch(seeds, *size)
        if "vae" in sets:
            drawn["vae"] = source.reconstruct(from_uint8(drawn["real"]))
        labels = named_labels(texts) if known_world else None
        images = {name: from_uint8(pictures).to(device) for name, pictures in drawn.items()}
        cycles = with_teacher and (limit is None or sets["student"].cycled < limit)
        latents = source.latents(texts, seeds) if cycles else None

        def measure(gathered: Gathered) -> None:
            z = latents if gathered.name in METHODS else None  # noqa: B023 - called at once
            gathered.update(images, labels, z, source.encode, texts)  # noqa: B023

        parallel_map(measure, sets.values(), device)
        shown.add(drawn)
        return_free_memory()
        captions += texts[: max(0, config.preview_images - len(captions))]

    asked = source if with_teacher else None
    latency = paths_latency(asked, methods, captions or texts, config, size, EVALUATION_SEEDS)
    metrics = _metrics(sets, latency, judge)
    # a student that sees no free noise cannot draw anew: where it departs from its teacher is shown instead
    maps, kind = {}, "free noise" if has_free_noise(pipeline.student.spec) else "departure"
    metrics["student"]["invention"] = None
    if kind == "free noise":
        maps["invention"] = _invention(pipeline, captions, size, config, DRAWS[thorough])
        metrics["student"]["invention"] = float(maps["invention"].mean())
    elif with_teacher:
        own, wanted = (from_uint8(shown.pictures(name)) for name in ("student", "teacher"))
        maps["invention"] = departure_map(own, wanted).numpy()
        metrics["student"]["departure"] = float(maps["invention"].mean())
    if config.peak_memory and student_folder is not None:
        drawers = {"student": {"student": student_folder}}
        drawers |= {"teacher": {"teacher": teacher_config}} if with_teacher else {}
        peaks = parallel_map(lambda who: peak_memory(size, device, dtype, **who), drawers.values(), device)
        for name, peak in zip(drawers, peaks, strict=True):
            metrics[name]["peak_memory_mb"] = peak
    metrics["settings"] = {
        "num_images": config.num_images,
        "first_seed": EVALUATION_SEEDS + config.seed,
        "prompts": str(prompts),
        "seen_prompts": None if seen is None else known,
        "height": size[0],
        "width": size[1],
        "patch_size": p,
        "student_steps": pipeline.student.spec.num_steps,
        "teacher": teacher.name,
        "teacher_steps": teacher_config.num_inference_steps,
        "teacher_guidance": teacher_config.guidance_scale,
        "latency_runs": config.latency_runs,
        "dtype": str(dtype).removeprefix("torch."),
        "quantization": (pipeline.student.quantization or {}).get("kind"),
        "paths": list(paths),
        "thorough": thorough,
        "sampled_images": config.num_images if limit is None else min(limit, config.num_images),
        "invention_draws": DRAWS[thorough],
        "map": kind,
        "clip": config.clip,
        "features": describe(spaces, losses_saw or {}),
        "losses_saw": losses_saw,
        "not_measured": not_measured(config.clip),
        **machine(device),
    }
    metrics["alarms"] = alarms(metrics)
    metrics["seconds"] = round(time.perf_counter() - start, 1)
    shown.save(output_dir, captions, **{name: found.astype(np.float16) for name, found in maps.items()})
    write_json(output_dir / "metrics.json", metrics)
    return metrics


def encoder_vectors(teacher: Teacher, dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Pictures to vectors of the teacher's encoder, or None where it shows no features."""
    try:
        network = load_features("encoder", teacher)
    except UserError as error:
        warn(f"the Frechet distance of the encoder's features is left out: {error}")
        return None

    @torch.no_grad()
    def vectors(images: torch.Tensor) -> torch.Tensor:
        with autocast(images.device, dtype):
            return network.vectors(images)

    return vectors


def _batches(config: EvaluationConfig, progress: bool):
    """Ranges of sample numbers, with a bar."""
    from rich.progress import track

    from l2p.console import Console

    first, last = config.seed, config.seed + config.num_images
    ranges = [range(i, min(i + config.batch_size, last)) for i in range(first, last, config.batch_size)]
    return track(ranges, "evaluating", console=Console(stderr=True), disable=not progress)


def _decoded(
    decoder: PidDecoder, z: torch.Tensor, texts: list[str], seeds: Sequence[int], size: tuple[int, int]
) -> Pictures:
    """Pictures of latents, averaged down to the size that the teacher's own decoder paints."""
    pictures = [
        decoder(Source(z[i : i + 1], 0.0, *size, text), seed)
        for i, (text, seed) in enumerate(zip(texts, seeds, strict=True))
    ]
    return to_uint8(F.avg_pool2d(from_uint8(np.stack(pictures)), decoder.scale))


def _paint(method: StudentPipeline, texts: list[str], noise: torch.Tensor, name: str) -> Pictures:
    conditioning, device = method.text_encoder(texts), method.student.device
    parts = shares(len(noise), device)
    drawn = parallel_map(lambda some: method.sample(conditioning[some], noise[some]), parts, device)
    pictures = torch.cat(drawn)
    if not torch.isfinite(pictures).all():
        raise UserError(
            f"the {name} draws numbers that are not finite: its weights are broken, or try dtype=fp32"
        )
    return to_uint8(pictures)


def _invention(
    pipeline: StudentPipeline,
    captions: list[str],
    size: tuple[int, int],
    config: EvaluationConfig,
    draws: int,
) -> np.ndarray:
    """Invention maps [n, H, W] of the pictures shown."""
    maps = []
    for k, text in enumerate(captions):  # one at a time: these pictures may be large
        seed = EVALUATION_SEEDS + config.seed + k
        noise = pipeline.noise([seed], *size)
        noise = noise.rows(0, noise.shape[2])
        found = student_invention(pipeline, pipeline.text_encoder([text]), noise, draws, seed * 1000)
        maps.append(found[:, : size[0], : size[1]].numpy())
    return np.concatenate(maps) if maps else np.zeros((0, *size))


def _metrics(sets: dict[str, Gathered], latency: dict[str, float], judge: Any) -> dict[str, Any]:
    clean = sets.get("real", sets.get("teacher"))
    metrics: dict[str, Any] = {}
    for name, gathered in sets.items():
        metrics[name] = gathered.report(clean, sets.get("real"), sets.get(gathered.repeats))
        if name in latency:
            metrics[name]["latency_ms"] = round(latency[name], 2)
    student, teacher = metrics["student"], metrics.get("teacher")
    summary: dict[str, Any] = {
        "psnr_to_teacher": student.get("psnr_to_teacher"),
        "seam_ratio": student["seam_ratio"],
        "seam_ratio_to_teacher": student.get("seam_ratio_to_teacher"),
        "speedup": latency["teacher"] / latency["student"] if teacher else None,
    }
    if judge is not None:
        lost = frechet = None
        if teacher:
            lost = 100 * (teacher["attribute_accuracy"] - student["attribute_accuracy"])
            frechet = student["frechet"] / max(teacher["frechet"], 1e-9)
        summary |= {"attribute_points_lost": lost, "frechet_over_teacher": frechet}
        report = judge.report
        metrics["judge"] = {
            "accuracy": report["accuracy"],
            "accuracy_by_attribute": report["accuracy_by_attribute"],
            "reference_images": report["test_images"],
        }
    return {"summary": summary, **metrics}


def not_measured(clip: str | None) -> list[str]:
    """What was left out because its network is not here, and how to have it."""
    lines = [] if clip else ["CLIP score and CMMD: name a CLIP with --clip FOLDER|NAME"]
    if not backbone_available():
        lines.append("LPIPS and DISTS: VGG-16's weights are not in torch's cache")
    return lines


def machine(device: torch.device) -> dict[str, Any]:
    """Device and versions, as they stand in a report."""
    return {
        "device": f"{device.type} ({device_name(device)})",
        "threads": torch.get_num_threads(),
        "l2p": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
