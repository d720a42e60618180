"""Train a pixel diffusion decoder: latents, noisy or not, to pictures of one, two, four or eight times the side.

Its stages, each with a checkpoint: a many-step pixel flow, few steps, one step, and all together."""

from __future__ import annotations

import argparse

from l2p.cli.options import check_alone
from l2p.recipe import load_recipe

EXAMPLES = """\
examples:
  l2p train-pid recipes/pid-landscapes.yaml
  l2p train-pid recipes/pid-flux-4x.yaml --tiny
  l2p train-pid recipes/pid-landscapes.yaml name=first-look flow.steps=20 few_step.steps=20 one_step.steps=20
"""
WHEN_STOPPED = "; run the same command again to go on from the last checkpoint"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file such as recipes/pid-landscapes.yaml")
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="changes to the recipe")
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="every stage for two steps on a random pipeline of the teacher's family: about a minute, no download",
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
    from l2p.training import pid

    recipe = load_recipe(args.recipe, args.overrides, schema=pid.PidRecipe)
    runtime.silence_libraries()
    resume = args.resume == "auto"
    if args.tiny:
        from l2p.training.tiny_others import prepare_decoder, shrunk_decoder

        small = shrunk_decoder(recipe)
        prepare_decoder(recipe, small)
        recipe, resume = small, False
    print(f"the decoder is in {pid.run(recipe, resume=resume)}")
