"""Turn published weights into a folder of this toolkit: L2P's students (1024 and 4096 px) and PiD's decoders.

A file must be its variant to the letter: every name and shape. Values and number formats stay as published. PyTorch files
are read without running anything in them."""

from __future__ import annotations

import argparse
from pathlib import Path

from l2p.cli.options import Mode, check_alone, check_modes
from l2p.errors import UserError

EXAMPLES = """\
examples:
  l2p import zhen-nan/L2P:l2p-1k --out l2p-1k
  l2p import HaojunChen/PixVerve-L2P:l2p-4k --out l2p-4k --text-encoder Z-Image
  l2p import nvidia/PiD:pid-flux-2kto4k-v1.5 --out pid-flux
  l2p import model_ema_bf16.pth --variant pid-sdxl-2kto4k --out pid-sdxl
  l2p import --list
  l2p import --keys pid-flux-2k
"""
WHEN_STOPPED = "; nothing half-written is left"


FROM_HUB = Mode("a file on the Hub", ("endpoint",))
IMPORT = Mode("a file to import", ("source", "out", "variant", "text_encoder"))


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="FILE|USER/NAME[@REVISION]:FILE",
        nargs="?",
        help="a .safetensors or .pth here, or on the Hub, where a variant's name stands for its file",
    )
    parser.add_argument("--out", metavar="FOLDER", help="what to make; an imported folder there is replaced")
    parser.add_argument(
        "--variant", metavar="NAME", help="which published file it is, where its name does not tell"
    )
    parser.add_argument(
        "--text-encoder",
        metavar="FOLDER|USER/NAME",
        help="for a student: a folder with text_encoder/ and tokenizer/ to copy, or a name to note; else its teacher's name",
    )
    parser.add_argument("--endpoint", metavar="URL", help="another Hub; else HF_ENDPOINT or huggingface.co")
    parser.add_argument("--list", action="store_true", help="what can be imported, with licences")
    parser.add_argument("--keys", metavar="NAME", help="every name and shape of a variant's file")


def run(args: argparse.Namespace) -> None:
    from l2p import runtime
    from l2p.published import importing, tables
    from l2p.published.pid import NOTICE
    from l2p.published.pid import PiDVariant as PiD

    check_alone(args, "list", "keys")
    shown = args.list or args.keys
    on_hub = not shown and args.source and not Path(args.source).is_file()
    check_modes(args, (FROM_HUB, IMPORT), [*([] if shown else [IMPORT]), *([FROM_HUB] if on_hub else [])])
    runtime.silence_libraries()
    if args.list or args.keys:
        print(tables.list_variants() if args.list else tables.list_keys(args.keys))
        return
    if not args.source or not args.out:
        raise UserError(
            "give a file or USER/NAME:FILE, and --out FOLDER; l2p import --list says what can be imported"
        )
    name, license = importing.import_weights(
        args.source, args.out, args.variant, args.text_encoder, args.endpoint
    )
    print(f"{args.out}  {name}  licence: {license}")
    if isinstance(importing.variants()[name], PiD):
        print(f"{NOTICE}; pictures decoded with them may be bound too")
    elif license == "unknown":
        print("its licence is not known here: read its page before you use it")
