"""The recipes that come with l2p: list them, or copy one to change it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from l2p.shipped_recipes import copy_recipe, shipped_recipes

EXAMPLES = """\
examples:
  l2p recipes
  l2p recipes copy quickstart my-recipe.yaml
  l2p distill quickstart --dry-run
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", choices=("list", "copy"), default="list", help="default: list")
    parser.add_argument("name", nargs="?", metavar="NAME", help="of the recipe to copy")
    parser.add_argument(
        "target", nargs="?", metavar="FILE", help="file or folder to copy to; default: NAME.yaml"
    )
    parser.add_argument("--json", action="store_true", help="names and summaries as JSON")


def run(args: argparse.Namespace) -> None:
    from l2p.errors import UserError

    if args.action == "copy":
        if args.name is None:
            raise UserError("name the recipe to copy: l2p recipes lists them")
        if args.json:
            raise UserError("--json goes with the list, not with copy")
        print(copy_recipe(args.name, Path(args.target or f"{args.name}.yaml")))
        return
    if args.name is not None:
        raise UserError(
            f"l2p recipes list takes no name, got {args.name!r}: use l2p recipes copy {args.name}"
        )
    recipes = shipped_recipes()
    if args.json:
        print(json.dumps(recipes, indent=2, ensure_ascii=False))
        return
    from rich.markup import escape
    from rich.table import Table

    from l2p.console import Console

    table = Table("recipe", "command", "what it makes")
    table.columns[0].no_wrap = table.columns[1].no_wrap = True
    for name, header in recipes.items():
        table.add_row(name, f"l2p {header['command']}", escape(header["summary"]))
    Console(highlight=False).print(table)
