"""Measure a pixel diffusion decoder beside the VAE with Lanczos, and what stopping its teacher early saves and costs.

Scenes of `landscapes` that no training saw: their true large pictures are known."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from l2p.cli.options import Mode, NoiseLevel, PairCount, check_modes, number_type, numbers_type
from l2p.config import SamplingSteps, Threads
from l2p.errors import UserError

EXAMPLES = """\
examples:
  l2p evaluate-decoder
  l2p evaluate-decoder --weights runs/pid-landscapes/decoder --num-images 64 --out runs/pid-landscapes/evaluation
  l2p evaluate-decoder --num-images 2 --sigmas 0.1,0.2,0.3,0.5,0.8 --stop-images 32
"""
STOPPED = ("stop_at", "sigma", "steps_skipped", "seconds_saved", "psnr_to_whole", "perceptual_to_whole", "color_drift",
           "patch_frechet")  # fmt: skip


STOPS = Mode("--sigmas", ("stop_images", "teacher_steps"))


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights", metavar="FOLDER", default="landscapes-4x", help="of the decoder (landscapes-4x)"
    )
    parser.add_argument(
        "--num-images", type=number_type(PairCount), default=64, metavar="N", help="scenes decoded (64)"
    )
    parser.add_argument(
        "--steps",
        type=numbers_type(SamplingSteps),
        default="1,4",
        metavar="LIST",
        help="numbers of steps measured (1,4)",
    )
    parser.add_argument(
        "--sigmas",
        type=numbers_type(NoiseLevel),
        default="",
        metavar="LIST",
        help="noise levels to stop the teacher at, as 0.1,0.3",
    )
    parser.add_argument(
        "--stop-images",
        type=number_type(PairCount),
        default=16,
        metavar="N",
        help="prompts drawn for them (16)",
    )
    parser.add_argument(
        "--teacher-steps",
        type=number_type(SamplingSteps),
        default=20,
        metavar="N",
        help="of a whole run (20)",
    )
    parser.add_argument(
        "--out", metavar="FOLDER", default="decoder-evaluation", help="where figures and pictures go"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--threads", type=number_type(Threads), help="else all usable cores")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="auto", help="auto, bf16, fp16 or fp32")


def run(args: argparse.Namespace) -> None:
    steps, sigmas = args.steps, args.sigmas
    if not steps:
        raise UserError("--steps names no number of steps, expected some such as 1,4")
    check_modes(args, (STOPS,), {STOPS} if sigmas else ())
    from l2p import runtime
    from l2p.decoders.io import load_decoder
    from l2p.evaluation.decoders import evaluate_decoder, verdict
    from l2p.locks import locked
    from l2p.teachers import load_teacher

    runtime.setup(args.threads)
    runtime.silence_libraries()
    device = runtime.pick_device(args.device)
    dtype = runtime.pick_dtype(args.dtype, device)
    student = load_decoder(args.weights, device)
    teacher = load_teacher(student.spec.teacher.get("name", "landscapes"), device=device)
    beyond = [level for level in sigmas if level > student.spec.max_sigma]
    if beyond:
        raise UserError(f"--sigmas has {beyond[0]:g}, the decoder was trained to {student.spec.max_sigma:g}")
    with locked(Path(args.out), "--out"):
        metrics = evaluate_decoder(
            student,
            teacher,
            args.out,
            num_images=args.num_images,
            steps=steps,
            sigmas=sigmas,
            stop_images=args.stop_images,
            teacher_steps=args.teacher_steps,
            dtype=dtype,
            progress=not args.json,
        )
    if args.json:
        print(json.dumps(metrics, indent=2))
        return
    rows = [{"path": name, **row} for name, row in metrics["paths"].items()]
    _print("path", tuple(rows[0])[1:], rows)
    if sigmas:
        _print(STOPPED[0], STOPPED[1:], metrics["early_stop"])
    for line in verdict(metrics["paths"]):
        print(f"  {line}")
    print(f"  pictures and figures are in {Path(args.out)}")


def _print(first: str, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from l2p.console import Console

    table = Table(first, *(column.replace("_", " ") for column in columns))
    for row in rows:
        told = [row[first] if isinstance(row[first], str) else f"{row[first]:g}"]
        table.add_row(*told, *(f"{row[column]:.3f}" for column in columns))
    Console(highlight=False, soft_wrap=True).print(table)
