"""Publish a student on the Hugging Face Hub, with a card made of its figures; verified after the upload."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

EXAMPLES = """\
examples:
  l2p push runs/quickstart/student ann/landscapes-1step --dry-run
  l2p push runs/quickstart/student ann/landscapes-1step --private --dtype bf16
  l2p push runs/quickstart/student ann/landscapes-1step --revision v2 --include-text-encoder
"""
WHEN_STOPPED = "; nothing on the Hub was changed: the same command goes on with what is up already"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("student", metavar="FOLDER", help="folder that `l2p distill` wrote")
    parser.add_argument("name", metavar="USER/NAME", help="made on the Hub where it is not there")
    parser.add_argument("--private", action="store_true", help="make the repository a private one")
    parser.add_argument(
        "--revision", metavar="BRANCH", help="made from main where it is not there; else main"
    )
    parser.add_argument("--dtype", help="bf16, fp16 or fp32 of the published weights; else as they are")
    parser.add_argument(
        "--quantize", metavar="KIND", help="int8 or fp8 weights of the core; what it costs goes on the card"
    )
    parser.add_argument("--create-pr", action="store_true", help="open a pull request, change no branch")
    parser.add_argument(
        "--include-text-encoder",
        action="store_true",
        help="copy the text encoder where the teacher on the Hub would be named",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be uploaded, change nothing")
    parser.add_argument("--endpoint", metavar="URL", help="another Hub; else HF_ENDPOINT or huggingface.co")
    parser.add_argument("--json", action="store_true", help="files, commit and address as JSON")


def run(args: argparse.Namespace) -> None:
    from l2p import runtime
    from l2p.hub.push import push

    runtime.silence_libraries()
    pushed = push(
        args.student,
        args.name,
        private=args.private,
        revision=args.revision,
        dtype=args.dtype,
        create_pr=args.create_pr,
        include_text_encoder=args.include_text_encoder,
        quantize=args.quantize,
        dry_run=args.dry_run,
        endpoint=args.endpoint,
    )
    if args.json:
        print(json.dumps(asdict(pushed), indent=2))
        return
    for name, size in pushed.files.items():
        print(f"  {name:<40}{size / 1e6:>12,.2f} MB")
    for name in pushed.deleted:
        print(f"  {name:<40}     deleted")
    print(f"would go to {pushed.url}" if args.dry_run else f"verified at {pushed.url}")
