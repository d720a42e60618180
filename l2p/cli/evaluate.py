"""Measure a student beside its teacher, on captions and seeds that neither saw; writes metrics.json and report.html."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from l2p.errors import UserError

EXAMPLES = """\
examples:
  l2p evaluate runs/quickstart/student
  l2p evaluate runs/quickstart/student --num-images 1000 --out runs/quickstart/thorough
"""
WHEN_STOPPED = "; run the same command again"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "student",
        metavar="STUDENT",
        help="folder that `l2p distill` wrote, or USER/NAME[@REVISION] on the Hub",
    )
    parser.add_argument(
        "--num-images", type=int, metavar="N", help="pictures measured; else as the recipe says"
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="where the results go; else evaluation-NAME beside the student, or here for one from the Hub",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--dtype", default="auto", help="auto, bf16, fp16 or fp32")


def run(args: argparse.Namespace) -> None:
    if args.num_images is not None and args.num_images < 2:
        raise UserError(f"--num-images is {args.num_images}, expected at least 2")
    from l2p import runtime
    from l2p.hub.fetch import resolve_student
    from l2p.teachers import commit_of

    folder = resolve_student(args.student).resolve()
    # A student from the Hub lies in the Hub's cache, which is no place for results.
    place = Path.cwd() if commit_of(folder) else folder.parent
    name = Path(args.student).name if commit_of(folder) else folder.name
    out = Path(args.out) if args.out else place / f"evaluation-{name}"
    runtime.setup()
    runtime.hush_loaders()
    from l2p.evaluation.evaluate import evaluate_folder

    metrics = evaluate_folder(
        folder,
        num_images=args.num_images,
        out=out,
        device=args.device,
        dtype=args.dtype,
        progress=not args.json,
    )
    if args.json:
        print(json.dumps(metrics, indent=2))
        return
    for name, value in metrics["summary"].items():
        print(f"  {name.replace('_', ' '):<24}{'-' if value is None else f'{value:.3f}'}")
    print(f"  {'report':<24}{out / 'report.html'}")
