"""The teacher families: what each is, which checkpoints it loads, and which stages it supports. Downloads nothing."""

from __future__ import annotations

import argparse
import json
from typing import Any

EXAMPLES = """\
examples:
  l2p teachers
  l2p teachers --json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the same, as JSON")


def run(args: argparse.Namespace) -> None:
    rows = gather()
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        _print(rows)


def gather() -> list[dict[str, Any]]:
    """One row a published checkpoint."""
    from dataclasses import asdict

    from l2p.students.cores import CORES
    from l2p.teachers import BUNDLED, FAMILIES

    rows = []
    for pipeline, family in FAMILIES.items():
        stages = ["corpus", "lift", "core"] if family.denoiser_class in CORES else ["corpus", "lift"]
        for published in family.published:
            rows.append({**asdict(published), "pipeline": pipeline, "stages": stages})
    bundled = sorted(p.parent.name for p in BUNDLED.glob("*/model_index.json"))
    return [*rows, *(_bundled(name) for name in bundled)]


def _bundled(name: str) -> dict[str, Any]:
    from l2p.cli.info import count_parameters
    from l2p.files import read_json
    from l2p.teachers import BUNDLED

    folder = BUNDLED / name
    vae, core = (read_json(folder / part / "config.json") for part in ("vae", "transformer"))
    return {
        "name": name,
        "parameters": count_parameters(folder / "transformer") / 1e9,
        "license": "apache-2.0",
        "channels": core["in_channels"],
        "compression": 2 ** (len(vae["block_out_channels"]) - 1),
        "packing": core["all_patch_size"][0],
        "pipeline": read_json(folder / "model_index.json")["_class_name"],
        "stages": ["corpus", "lift", "core"],
    }


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from l2p.console import Console

    table = Table("teacher", "pipeline", "parameters", "latent", "token", "stages", "license")
    for row in rows:
        billions = row["parameters"]
        table.add_row(
            row["name"],
            row["pipeline"],
            f"{billions:.2f} B" if billions >= 0.1 else f"{billions * 1e3:.1f} M",
            f"{row['channels']} x {row['compression']} px",
            f"{row['compression'] * row['packing']} px",
            ", ".join(row["stages"]),
            row["license"],
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(
        "latent: channels x pixels a side of a cell. lift: fitted and measured by `l2p distill`, which warns when it "
        "explains little of\nthe pixels (lift.min_r2). core: a student can keep this teacher's transformer. Read a "
        "license before you publish a student."
    )
