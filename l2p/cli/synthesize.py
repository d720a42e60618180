"""Draw the corpus of a recipe: prompts, filtered and counted, and the teacher's pictures of them in WebDataset shards.

RECIPE is one for `l2p distill`, which takes the corpus over by corpus.path or finds it in the same output_dir. What is
drawn is kept, so the same command goes on where an earlier one stopped. Under torchrun every process draws a share."""

from __future__ import annotations

import argparse
import json
from typing import Any

from l2p.cli.options import Mode, check_alone, check_modes
from l2p.recipe import load_recipe

EXAMPLES = """\
examples:
  l2p synthesize recipes/corpus-landscapes.yaml --dry-run
  l2p synthesize recipes/corpus-landscapes.yaml
  l2p synthesize recipes/corpus-landscapes.yaml --prompts-only
  l2p synthesize recipes/corpus-landscapes.yaml --check
  torchrun --nproc-per-node 8 --no-python l2p synthesize recipes/corpus-landscapes.yaml
  l2p synthesize --print-taxonomy > mine.yaml
"""
WHEN_STOPPED = "; whole shards are kept: run the same command again to go on from here"


RECIPE = Mode("a recipe", ("recipe", "overrides", "dry_run", "prompts_only", "check", "json"))


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", metavar="RECIPE", nargs="?", help="YAML file; its corpus section says what to draw"
    )
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", default=[], help="changes to the recipe, such as seed=3"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, and do nothing")
    parser.add_argument(
        "--prompts-only", action="store_true", help="gather and filter the prompts, draw nothing"
    )
    parser.add_argument(
        "--check", action="store_true", help="compare every shard with the manifest's hash, draw nothing"
    )
    parser.add_argument("--json", action="store_true", help="what was done, as JSON")
    parser.add_argument(
        "--print-taxonomy", action="store_true", help="the built-in taxonomy of prompts, to be edited"
    )


def run(args: argparse.Namespace) -> None:
    check_alone(args, "dry_run", "prompts_only", "check")
    check_modes(args, (RECIPE,), () if args.print_taxonomy else (RECIPE,))
    if args.print_taxonomy:
        from l2p.corpus.taxonomy import BUILT_IN

        print(BUILT_IN.read_text(encoding="utf-8"), end="")
        return
    if args.recipe is None:
        from l2p.errors import UserError

        raise UserError("the following arguments are required: RECIPE (see l2p synthesize --help)")
    recipe = load_recipe(args.recipe, args.overrides)
    from l2p import runtime
    from l2p.training import synthesize

    share = synthesize.share_of_the_environment()
    if args.dry_run:
        return _print_plan(synthesize.plan(recipe, share[1]), args.json)
    if args.check:
        return _print_check(synthesize.verified(recipe), args.json)
    runtime.silence_libraries()
    done = synthesize.run(recipe, share=share, prompts_only=args.prompts_only)
    print(json.dumps(done, indent=2, ensure_ascii=False)) if args.json else _print(done, share)


def _print_plan(rows: list[dict[str, str]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    from rich.table import Table

    from l2p.console import Console

    table = Table("step", "state", "work")
    for row in rows:
        table.add_row(row["step"], row["state"], "" if row["state"] == "off" else row["work"])
    Console(highlight=False).print(table)


def _print_check(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        print(
            f"{found['folder']} is whole: {found['pictures']} pictures, none twice, in {found['shards']} shards, "
            f"{found['bytes'] / 1e6:.1f} MB, every hash as written"
        )


def _print(done: dict[str, Any], share: tuple[int, int]) -> None:
    if done["prompts"]:
        print(f"prompts   {done['prompts']['kept']} kept")
        for reason, found in done["prompts"]["dropped"].items():
            example = found["examples"][0]
            print(
                f"          {found['count']} dropped, {reason}: {example['prompt'][:60]!r} ({example['detail'][:60]})"
            )
    if done["shards"]:
        dropped = f", {done['dropped_by_scorer']} dropped by the scorer" if done["dropped_by_scorer"] else ""
        print(
            f"pictures  {done['pictures']} of {done['wanted']}{dropped}, {done['bytes'] / 1e6:.1f} MB in {done['shards']} shards"
        )
    if done["grid"]:
        print(f"look      {done['grid']}")
    who = f"process {share[0]} of {share[1]}: " if share[1] > 1 else ""
    state = "complete" if done["complete"] else "not complete"
    print(f"{who}{done['folder']} is {state}, {done['seconds']:.0f} s")
