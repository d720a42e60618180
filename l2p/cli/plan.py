"""Count what a recipe's training needs on so many GPUs, and say what to change where it does not fit.

Every byte is counted on tensors without numbers, so neither a GPU nor the teacher's weights are needed; its configurations
are. What is turned changes memory and time, not the result."""

from __future__ import annotations

import argparse
import json
from typing import Any

from l2p.cli.options import GpuCount, number_type
from l2p.recipe import load_recipe

EXAMPLES = """\
examples:
  l2p plan recipes/z-image-turbo-1k.yaml --gpus 8 --vram 80GB
  l2p plan recipes/quickstart.yaml --vram 8GB one_step.batch_size=256 --json
"""
KINDS = ("weights", "gradients", "optimizer", "average", "gathered", "teacher", "critics", "activations")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file, as for `l2p distill`")
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", default=[], help="changes to the recipe, such as seed=3"
    )
    parser.add_argument(
        "--gpus", type=number_type(GpuCount), default=1, metavar="N", help="processes, one a GPU (1)"
    )
    parser.add_argument("--vram", default="80GB", metavar="SIZE", help="memory of each GPU (80GB)")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")


def run(args: argparse.Namespace) -> int:
    from l2p import runtime
    from l2p.training.plan import plan

    vram = runtime.parse_bytes(args.vram)
    runtime.silence_libraries()
    rows = plan(load_recipe(args.recipe, args.overrides), args.gpus, vram)
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        _print(rows, args.gpus, vram)
    return 0 if all(row["fits"] for row in rows) else 1


def _print(rows: list[dict[str, Any]], gpus: int, vram: int) -> None:
    from rich.table import Table

    from l2p.console import Console

    console = Console(highlight=False, soft_wrap=True)
    table = Table("GB on each GPU", *(row["stage"] for row in rows), title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("pictures at a time", *(str(row["pictures"]) for row in rows))
    for kind in KINDS:
        table.add_row(kind, *(_gb(row["bytes"][kind]) for row in rows))
    table.add_row("in all", *(_gb(row["total"]) for row in rows))
    console.print(table)
    console.print(
        f"{gpus} x {_gb(vram)} GB, of which {_gb(rows[0]['budget'])} are planned with: "
        "CUDA, NCCL and fragmentation have the rest"
    )
    for row in rows:
        console.print(f"{row['stage']}: {_verdict(row)}")
        for note in row["notes"]:
            console.print(f"{row['stage']}: {note}")


def _verdict(row: dict[str, Any]) -> str:
    if row["fits"]:
        return "fits"
    if row["change"] is None:
        return (
            "does not fit, whatever is sharded: more GPUs, student.train_blocks={first: 5, last: 5}, student.lora, "
            f"a smaller picture, or a smaller {row['stage']}.batch_size"
        )
    return f"does not fit; with {' '.join(row['change'])} it takes {_gb(row['total_after'])} GB"


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f}"
