"""Train the judge: the classifier of real renders whose features and attributes the evaluation uses."""

from __future__ import annotations

import argparse

from l2p.recipe import load_recipe

EXAMPLES = """\
examples:
  l2p train-judge recipes/judge-landscapes.yaml
  l2p train-judge recipes/judge-landscapes.yaml epochs=2 num_images=4000
"""
WHEN_STOPPED = "; run the same command again with --resume to go on from the last checkpoint"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file such as recipes/judge-landscapes.yaml")
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="changes to the recipe")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint, instead of anew"
    )


def run(args: argparse.Namespace) -> None:
    from l2p.training import judge

    recipe = load_recipe(args.recipe, args.overrides, schema=judge.JudgeRecipe)
    print(f"the judge is in {judge.train(recipe, resume=args.resume)}")
