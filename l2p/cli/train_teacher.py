"""Train the bundled latent teacher, a real diffusers ZImagePipeline, on the procedural landscapes."""

from __future__ import annotations

import argparse

from l2p.cli.options import check_alone
from l2p.recipe import load_recipe

EXAMPLES = """\
examples:
  l2p train-teacher recipes/teacher-landscapes.yaml
  l2p train-teacher recipes/teacher-landscapes.yaml output_dir=runs/my-teacher seed=1 --resume
"""
WHEN_STOPPED = "; run the same command again with --resume to go on from the last checkpoint"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file such as recipes/teacher-landscapes.yaml")
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="changes to the recipe")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint, instead of anew"
    )
    parser.add_argument(
        "--pictures-only",
        action="store_true",
        help="draw the pictures into output_dir, on all cores, and stop",
    )


def run(args: argparse.Namespace) -> None:
    check_alone(args, "pictures_only", "resume")
    from l2p import runtime
    from l2p.training import teacher

    recipe = load_recipe(args.recipe, args.overrides, schema=teacher.TeacherRecipe)
    if args.pictures_only:
        print(f"the pictures are in {teacher.draw_pictures(recipe)}")
        return
    runtime.silence_libraries()
    print(f"the teacher is in {teacher.run(recipe, resume=args.resume)}")
