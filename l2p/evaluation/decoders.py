"""A pixel diffusion decoder beside the VAE with Lanczos, on scenes whose true large picture is known.

Held-out scenes are rendered large; their averages over blocks are encoded, and each path decodes these latents to the
large size again. What the small picture tells must be kept (`psnr_small`), what it does not tell may be invented, and is
asked to look like the world (`perceptual`, `patch_frechet`, `high_frequency_ratio`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from l2p.decoders.decode import PidDecoder, VaeDecoder
from l2p.decoders.early_stop import sample
from l2p.decoders.pid import PidStudent
from l2p.decoders.sources import Source
from l2p.evaluation.color import color_drift
from l2p.evaluation.frechet import FeatureStatistics, frechet_distance
from l2p.evaluation.judge import Judge, load_judge
from l2p.evaluation.native import native_crops
from l2p.evaluation.psnr_ssim import psnr
from l2p.evaluation.seams import seam_index, seam_ratio
from l2p.evaluation.spectrum import high_frequency_energy
from l2p.features import PerceptualDistance, unit
from l2p.files import write_json
from l2p.images import Pictures, from_uint8, labelled_grid, save_png
from l2p.landscapes import Scene, caption, render_batch
from l2p.runtime import autocast, synchronize
from l2p.seeds import SEEDS
from l2p.teachers import Teacher

FIRST_SCENE = SEEDS["decoder evaluation"].start
SHOWN = 4
BETTER = 0.1  # share by which one step may be behind several


class DecoderFigures:
    """What is measured of one path's pictures against true ones.

    Args:
        distance: of the teacher's encoder, on which decoders are trained too; the judge's maps are in no loss.
        periods: of the borders where seams are sought: the core's patch first, which gives ``seam_ratio``.
    """

    def __init__(
        self, judge: Judge, distance: PerceptualDistance, scale: int, periods: Sequence[int]
    ) -> None:
        self.judge, self.distance, self.scale, self.periods = judge, distance, scale, periods
        self.crops, self.real_crops = FeatureStatistics(), FeatureStatistics()
        self.rows: dict[str, list[Tensor]] = {}
        self.seconds: list[float] = []

    @torch.no_grad()
    def update(self, picture: Pictures, truth: Pictures, seconds: float) -> None:
        """Add a picture uint8 [H, W, 3] and the true one."""
        x, y = from_uint8(picture[None]), from_uint8(truth[None])
        crops = [native_crops(images, first=len(self.seconds)) for images in (x, y)]
        for gathered, cut in zip((self.crops, self.real_crops), crops, strict=True):
            gathered.update(self.judge.features(cut))
        small = [F.avg_pool2d(images, self.scale) for images in (x, y)]
        values = {
            "perceptual": self.distance(x, y),
            "judge_distance": judge_distance(self.judge, *crops).mean()[None],
            "psnr": psnr(x, y),
            "psnr_small": psnr(*small),
            "color_drift": color_drift(x, y),
            "energy": high_frequency_energy(x),
            "real_energy": high_frequency_energy(y),
        }
        for period in self.periods:
            values[f"seam_{period}"], values[f"real_seam_{period}"] = (
                seam_index(x, period),
                seam_index(y, period),
            )
        for name, value in values.items():
            self.rows.setdefault(name, []).append(value.double().cpu())
        self.seconds.append(seconds)

    def report(self) -> dict[str, float]:
        found = {name: torch.cat(values) for name, values in self.rows.items()}
        figures = {
            name: float(found[name].mean())
            for name in ("perceptual", "judge_distance", "psnr", "psnr_small", "color_drift")
        }
        figures["high_frequency_ratio"] = float(found["energy"].mean() / found["real_energy"].mean())
        figures["patch_frechet"] = frechet_distance(self.crops, self.real_crops)
        seams = [seam_ratio(found[f"seam_{period}"], found[f"real_seam_{period}"]) for period in self.periods]
        figures["seam_ratio"] = seams[0]
        figures |= {f"seam_ratio_{n}": seam for n, seam in zip(self.periods[1:], seams[1:], strict=True)}
        figures["seconds"] = float(np.median(self.seconds))
        return figures


def judge_distance(judge: Judge, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared distance [B] of the judge's maps, each place of unit length: a perceptual distance used in no loss."""
    near = [judge.near(images.to(judge.project.weight)) for images in (x, y)]
    far = [judge.far(maps) for maps in near]
    return sum((unit(a) - unit(b)).square().sum(1).mean((1, 2)) for a, b in (near, far)) / 2


def evaluate_decoder(
    student: PidStudent,
    teacher: Teacher,
    out: str | Path,
    *,
    num_images: int = 64,
    steps: Sequence[int] = (1, 4),
    sigmas: Sequence[float] = (),
    stop_images: int = 16,
    teacher_steps: int = 20,
    guidance_scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure, and write ``metrics.json``, ``decoders.png`` and for ``sigmas`` ``early-stop.png`` into ``out``.

    Args:
        sigmas: noise levels to stop the teacher at, 0 (the whole run) among them or not.
        stop_images: prompts drawn for them.

    Returns:
        the content of metrics.json: ``paths`` (a row a path), ``early_stop`` (a row a level), ``settings``.
    """
    out, spec = Path(out), student.spec
    height, width = spec.height or 512, spec.width or 512
    judge, distance = load_judge(), PerceptualDistance("encoder", teacher)
    periods = tuple(dict.fromkeys((spec.patch_size, spec.cell, student.head.fine_patch)))
    paths: dict[str, Callable[[Source, int], Pictures]] = {
        "vae+lanczos": VaeDecoder(teacher, spec.scale, dtype),
        **{
            f"pid, {n} step{'s' * (n > 1)}": PidDecoder(student, n, dtype, teacher.encode_prompts)
            for n in steps
        },
    }
    figures = {name: DecoderFigures(judge, distance, spec.scale, periods) for name in paths}
    shown: dict[str, list[Pictures]] = {name: [] for name in (*paths, "render")}
    for number in _counted(num_images, "decoding", progress):
        seed = FIRST_SCENE + number
        truth = render_batch([seed], height, width)[0]
        small = F.avg_pool2d(from_uint8(truth[None]), spec.scale)
        with torch.no_grad(), autocast(teacher.device, dtype):
            z = teacher.encode(small.to(teacher.device)).float()
        source = Source(z, 0.0, *small.shape[2:], caption(Scene.from_seed(seed)))
        for name, path in paths.items():
            synchronize(teacher.device)
            started = time.perf_counter()
            picture = path(source, seed)
            synchronize(teacher.device)
            figures[name].update(picture, truth, time.perf_counter() - started)
            if number < SHOWN:
                shown[name].append(picture)
        if number < SHOWN:
            shown["render"].append(truth)
    out.mkdir(parents=True, exist_ok=True)
    save_png(
        labelled_grid({name: np.stack(pictures) for name, pictures in shown.items()}), out / "decoders.png"
    )
    metrics: dict[str, Any] = {"paths": {name: gathered.report() for name, gathered in figures.items()}}
    if sigmas:
        metrics["early_stop"] = early_stop_table(
            PidDecoder(student, min(steps), dtype, teacher.encode_prompts), teacher, judge, distance, out,
            sigmas, stop_images, teacher_steps, guidance_scale, dtype, progress,
        )  # fmt: skip
    metrics["settings"] = {
        "num_images": num_images,
        "first_scene": FIRST_SCENE,
        "stop_images": stop_images,
        "teacher": teacher.name,
        "teacher_steps": teacher_steps,
        "guidance_scale": guidance_scale,
        "height": height,
        "width": width,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }
    write_json(out / "metrics.json", metrics)
    return metrics


def early_stop_table(
    decoder: PidDecoder,
    teacher: Teacher,
    judge: Judge,
    distance: PerceptualDistance,
    out: Path,
    sigmas: Sequence[float],
    num_images: int,
    teacher_steps: int,
    guidance_scale: float,
    dtype: torch.dtype,
    progress: bool,
) -> list[dict[str, float]]:
    """A row a level: what stopping there skips and saves, and how far the picture is from that of the whole run."""
    spec = decoder.student.spec
    height, width = (side // spec.scale for side in (spec.height or 512, spec.width or 512))
    levels = sorted({0.0, *sigmas})
    rows: dict[float, list[dict[str, float]]] = {level: [] for level in levels}
    crops = {level: FeatureStatistics() for level in levels}
    real = FeatureStatistics()
    shown: dict[str, list[Pictures]] = {}
    for number in _counted(num_images, "stopping early", progress):
        seed = FIRST_SCENE + number
        truth = render_batch([seed], height * spec.scale, width * spec.scale)
        real.update(judge.features(native_crops(from_uint8(truth), first=number)))
        whole: Tensor | None = None
        for level in levels:
            with autocast(teacher.device, dtype):
                source, facts = sample(
                    teacher,
                    caption(Scene.from_seed(seed)),
                    seed,
                    height,
                    width,
                    teacher_steps,
                    guidance_scale,
                    level,
                )
            synchronize(teacher.device)
            started = time.perf_counter()
            picture = decoder(source, seed)
            synchronize(teacher.device)
            facts["decoder_seconds"] = time.perf_counter() - started
            x = from_uint8(picture[None])
            whole = x if whole is None else whole
            crops[level].update(judge.features(native_crops(x, first=number)))
            with torch.no_grad():
                facts |= {
                    "sigma": source.sigma,
                    "psnr_to_whole": float(psnr(x, whole)),
                    "perceptual_to_whole": float(distance(x, whole)),
                    "color_drift": float(color_drift(x, whole)),
                }
            rows[level].append(facts)
            if number < SHOWN:
                shown.setdefault(f"stop at {level:g}", []).append(picture)
    save_png(
        labelled_grid({name: np.stack(pictures) for name, pictures in shown.items()}), out / "early-stop.png"
    )
    table = []
    for level in levels:
        means = {key: float(np.mean([row[key] for row in rows[level]])) for key in rows[level][0]}
        full = float(np.mean([row["teacher_seconds"] for row in rows[0.0]]))
        means["seconds_saved"] = (
            full - means["teacher_seconds"]
        )  # measured, where `sample` alone can only estimate
        table.append({"stop_at": level, **means, "patch_frechet": frechet_distance(crops[level], real)})
    return table


def _counted(count: int, told: str, progress: bool):
    from rich.progress import track

    from l2p.console import Console

    return track(range(count), told, console=Console(stderr=True), disable=not progress)


def verdict(paths: dict[str, dict[str, float]]) -> list[str]:
    """What a decoder should hold and does not, a line each; empty when all is well."""
    vae = paths["vae+lanczos"]
    lines = []
    rest = {name: row for name, row in paths.items() if name != "vae+lanczos"}
    for name, row in rest.items():
        for key in ("perceptual", "judge_distance", "patch_frechet"):
            if row[key] >= vae[key]:
                lines.append(f"{name}: {key} {row[key]:.3f} is no better than {vae[key]:.3f} of vae+lanczos")
        if abs(1 - row["high_frequency_ratio"]) >= abs(1 - vae["high_frequency_ratio"]):
            lines.append(f"{name}: high_frequency_ratio {row['high_frequency_ratio']:.2f} is no nearer to 1")
        if row["psnr_small"] < vae["psnr_small"] - 0.5:
            lost = vae["psnr_small"] - row["psnr_small"]
            lines.append(f"{name}: averaged down it is {lost:.2f} dB further from the truth than vae+lanczos")
        if row["seam_ratio"] > 1.1:
            lines.append(f"{name}: seams of {row['seam_ratio']:.2f}, above 1.1")
        if row["color_drift"] > 2:
            lines.append(f"{name}: colours drift by {row['color_drift']:.2f} CIEDE2000, above 2")
    one, others = rest.get("pid, 1 step"), [row for name, row in rest.items() if name != "pid, 1 step"]
    for row in others if one else []:
        for key in ("perceptual", "judge_distance", "patch_frechet"):
            if one[key] > (1 + BETTER) * row[key]:
                lines.append(
                    f"one step: {key} {one[key]:.3f} is more than a tenth above {row[key]:.3f} of several"
                )
    return lines
