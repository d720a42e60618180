"""A local page to try a student: prompt, seed, size and path in, a picture and its latency out."""

from __future__ import annotations

import argparse
from pathlib import Path

from l2p.cli.review import add_address
from l2p.students.resolve import resolve_student, student_help

EXAMPLES = """\
examples:
  l2p demo runs/quickstart/student
  l2p demo runs/quickstart/student --port 9000
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("student", metavar="STUDENT", help=student_help())
    parser.add_argument(
        "--pid",
        metavar="FOLDER",
        help="pixel diffusion decoder of the path pid; else landscapes-4x, for students of that teacher",
    )
    add_address(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--dtype", default="auto", help="auto, bf16, fp16 or fp32")


def run(args: argparse.Namespace) -> None:
    from l2p.review.serving import check_address

    check_address(args.host, args.port)
    folder = resolve_student(args.student)
    from l2p import runtime
    from l2p.review.demo import DemoModels, demo_app
    from l2p.review.serving import serve

    runtime.setup()
    runtime.silence_libraries()
    models = DemoModels(folder, args.device, args.dtype, name=Path(args.student).name, decoder=args.pid)
    serve(demo_app(models, args.host), args.host, args.port, "demo")
