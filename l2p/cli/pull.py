"""Fetch a student from the Hugging Face Hub, verified; prints the folder where it lies."""

from __future__ import annotations

import argparse

EXAMPLES = """\
examples:
  l2p pull ann/landscapes-1step
  l2p pull ann/landscapes-1step@v2 --out students/landscapes
"""
WHEN_STOPPED = "; run the same command again to go on"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="USER/NAME[@REVISION]", help="a branch, tag or commit after the @")
    parser.add_argument("--out", metavar="FOLDER", help="copy it there; else it stays in the Hub's cache")
    parser.add_argument("--endpoint", metavar="URL", help="another Hub; else HF_ENDPOINT or huggingface.co")


def run(args: argparse.Namespace) -> None:
    from l2p.hub.fetch import pull

    print(pull(args.name, args.out, args.endpoint))
