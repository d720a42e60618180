"""Write a student in the form that other libraries read, and check what was written."""

from __future__ import annotations

import argparse

EXAMPLES = """\
examples:
  l2p export runs/quickstart/student --to diffusers landscapes-pipeline
  l2p export runs/quickstart/student --to torch-export landscapes-program
  l2p export runs/quickstart/student --to onnx landscapes-onnx
  l2p export runs/lora/student --to merged landscapes-merged
  l2p export runs/quickstart/student --to int8 landscapes-int8
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "student", metavar="STUDENT", help="folder that `l2p distill` wrote, or USER/NAME[@REVISION]"
    )
    parser.add_argument("out", metavar="OUT", help="folder to write")
    parser.add_argument(
        "--to",
        required=True,
        metavar="KIND",
        help="diffusers, torch-export, onnx, or a student's folder: merged (its LoRA adapters are in its layers), int8 or fp8 (quantised besides)",
    )


def run(args: argparse.Namespace) -> None:
    from l2p import runtime
    from l2p.hub.export import export

    runtime.silence_libraries()
    print(export(args.student, args.to, args.out))
