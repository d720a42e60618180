"""Grow a student to a larger patch and resolution, and train its detail on true renders of `landscapes`.

The folder it leaves is a student like any other: `l2p generate`, `evaluate` and `push` take it."""

from __future__ import annotations

import argparse

from l2p.cli.options import check_alone
from l2p.recipe import load_recipe

EXAMPLES = """\
examples:
  l2p grow recipes/landscapes-512.yaml
  l2p grow recipes/landscapes-512.yaml --tiny
  l2p grow recipes/landscapes-512.yaml student=runs/my-run/student factor=2 "pictures.sizes=[[256, 256]]"
"""
WHEN_STOPPED = "; run the same command again to go on from the last checkpoint"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file such as recipes/landscapes-512.yaml")
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="changes to the recipe")
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="two steps on small pictures and a random student of the teacher's family: about a minute, no download",
    )
    parser.add_argument(
        "--resume",
        choices=("auto", "never"),
        default="auto",
        help="auto: go on from the checkpoint in the folder; never: anew",
    )


def run(args: argparse.Namespace) -> None:
    check_alone(args, "tiny", "resume")
    from l2p import runtime
    from l2p.training import grow

    recipe = load_recipe(args.recipe, args.overrides, schema=grow.GrowRecipe)
    runtime.silence_libraries()
    resume = args.resume == "auto"
    if args.tiny:
        from l2p.training.tiny_others import prepare_growth, shrunk_growth

        small = shrunk_growth(recipe)
        prepare_growth(recipe, small)
        recipe, resume = small, False
    print(f"the grown student is in {grow.run(recipe, resume=resume)}")
