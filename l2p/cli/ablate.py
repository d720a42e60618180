"""Run a recipe once for each row of an ablation, and write one table of what came out.

Rows that are done are kept, so the same command goes on where an earlier one stopped."""

from __future__ import annotations

import argparse
from pathlib import Path

from l2p.cli.options import number_type
from l2p.config import Seed
from l2p.recipe import load_recipe

EXAMPLES = """\
examples:
  l2p ablate recipes/ablation.yaml --dry-run
  l2p ablate recipes/ablation.yaml
  l2p ablate recipes/ablation.yaml --rows coupled uncoupled --seeds 0 --out runs/coupling
  l2p ablate recipes/ablation.yaml --set one_step.steps=20 evaluation.num_images=32 --out runs/look
"""
WHEN_STOPPED = "; what is done is kept: run the same command again to go on from here"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file such as recipes/ablation.yaml")
    parser.add_argument("--rows", nargs="+", default=[], metavar="ROW", help="only these; else all")
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=number_type(Seed),
        default=[],
        metavar="N",
        help="of these rows only these seeds; else all",
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="key=value", help="changes to the base recipe in every row"
    )
    parser.add_argument("--out", metavar="FOLDER", help="else the recipe's output_dir")
    parser.add_argument("--dry-run", action="store_true", help="check every row and print the plan")


def run(args: argparse.Namespace) -> None:
    from l2p.training import ablation

    config = load_recipe(
        args.recipe, [f"output_dir={args.out}"] if args.out else [], schema=ablation.AblationRecipe
    )
    tasks = ablation.plan(config, Path(args.recipe), args.set, args.rows, args.seeds)
    if args.dry_run:
        for task in tasks:
            about = config.rows[task.row].about
            print(f"{task.row:<20} seed {task.seed}  {task.recipe.output_dir}  {about}")
        return
    from l2p import runtime

    runtime.silence_libraries()
    out = ablation.run(tasks, config)
    print((out / "table.md").read_text(), end="")
    print(f"\nall rows: {out / 'results.csv'}")
