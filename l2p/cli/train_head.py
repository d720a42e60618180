"""Teach a patch head to decode the latents of a teacher: students that start with it have less to learn."""

from __future__ import annotations

import argparse

from l2p.recipe import load_recipe

EXAMPLES = """\
examples:
  l2p train-head recipes/head-landscapes.yaml
  l2p train-head recipes/head-landscapes.yaml output_dir=runs/my-head seed=1 --resume
"""
WHEN_STOPPED = "; run the same command again with --resume to go on from the last checkpoint"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file such as recipes/head-landscapes.yaml")
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="changes to the recipe")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint, instead of anew"
    )


def run(args: argparse.Namespace) -> None:
    from l2p import runtime
    from l2p.training import head

    recipe = load_recipe(args.recipe, args.overrides, schema=head.HeadRecipe)
    runtime.silence_libraries()
    print(f"the head is in {head.run(recipe, resume=args.resume)}")
