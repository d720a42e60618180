"""Distil a latent teacher into a pixel student, as a recipe says.

Stages: lift, corpus, transfer, one_step, match, student, evaluation. Each is kept when it is done, so the same
command goes on where an earlier one stopped."""

from __future__ import annotations

import argparse
from typing import Any

from l2p.cli.options import check_alone
from l2p.recipe import Recipe, load_recipe

EXAMPLES = """\
examples:
  l2p distill recipes/quickstart.yaml
  l2p distill recipes/quickstart.yaml --dry-run
  l2p distill recipes/quickstart.yaml name=longer one_step.steps=2000 one_step.objectives.pairs.latent=1
  l2p distill recipes/quickstart.yaml --resume never
  l2p distill recipes/z-image-turbo-1k.yaml --tiny
  torchrun --nproc-per-node 8 --no-python l2p distill recipes/z-image-turbo-1k.yaml parallel.strategy=fsdp
"""
WHEN_STOPPED = "; what is done is kept: run the same command again to go on from here"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file; recipes/ has some, every knob explained")
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", default=[], help="changes to the recipe, such as seed=3"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, and do nothing")
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="every stage for two steps on a random pipeline of the teacher's family: about a minute, no download",
    )
    parser.add_argument(
        "--resume",
        metavar="auto|never|STAGE|PATH",
        default="auto",
        help="auto: go on where the run's folder stands; never: start anew; STAGE: redo it and what follows; PATH: go on "
        "from that checkpoint",
    )


def run(args: argparse.Namespace) -> None:
    check_alone(args, "dry_run", "resume")
    recipe = load_recipe(args.recipe, args.overrides)
    if args.tiny:
        return _run_tiny(recipe, args)
    if args.dry_run:
        return _print_plan(recipe)
    from l2p import distributed, runtime
    from l2p.training import distill

    runtime.silence_libraries()
    result = distill.run(recipe, resume=args.resume)
    if distributed.place().rank == 0:
        _print_result(result)


def _run_tiny(recipe: Recipe, args: argparse.Namespace) -> None:
    from l2p import distributed, runtime
    from l2p.training import distill
    from l2p.training.tiny import prepare, shrunk

    small = shrunk(recipe)
    if args.dry_run:
        return _print_plan(small)
    runtime.silence_libraries()
    here = distributed.place()
    device = runtime.pick_device(small.device, here.local_rank if here.size > 1 else None)
    with distributed.process_group(device, small.parallel.timeout_minutes):
        distributed.run_on_rank0(lambda: prepare(recipe, small))
        result = distill.run(small, resume="never" if args.resume == "auto" else args.resume)
    if here.rank > 0:
        return
    _print_result(result)
    print(
        f"the way is open: every stage of {recipe.name} ran on random weights, so pictures and figures say nothing"
    )


def _print_plan(recipe: Recipe) -> None:
    from dataclasses import asdict

    from omegaconf import OmegaConf
    from rich.table import Table

    from l2p.console import Console
    from l2p.training import distill

    rows = distill.plan(recipe)
    console = Console(highlight=False)
    console.print(OmegaConf.to_yaml(OmegaConf.create(asdict(recipe))), markup=False, soft_wrap=True)
    table = Table(
        "stage", "state", "work", title=f"{recipe.name} -> {recipe.output_dir}", title_justify="left"
    )
    for row in rows:
        table.add_row(row["stage"], row["state"], "" if row["state"] == "off" else row["work"])
    console.print(table)
    console.print(f"parameters: {_parameters(recipe)}", markup=False)


def _parameters(recipe: Recipe) -> str:
    """Parameters of the teacher's transformer, which becomes the student's core; read without its weights."""
    from pathlib import Path

    from l2p.teachers import BUNDLED, published_as

    folders = [BUNDLED / recipe.teacher.path, Path(recipe.teacher.path)]
    folder = next((f for f in folders if (f / "model_index.json").is_file()), None)
    if folder is None:
        if found := published_as(recipe.teacher.path):
            return f"{found[1].parameters:.1f} B in the teacher's network"
        return f"not known before {recipe.teacher.path} is here"
    from l2p.cli.info import count_parameters

    return f"{count_parameters(folder / 'transformer') / 1e6:,.1f} M in the teacher's transformer"


def _print_result(result: dict[str, Any]) -> None:
    from pathlib import Path

    from l2p.console import Console

    console = Console(highlight=False, soft_wrap=True)
    places = {name: result[name] for name in ("report", "student")}
    places["metrics"] = str(Path(result["output_dir"]) / "metrics.json")
    console.print(f"\ndone in {result['seconds'] / 60:.1f} minutes", markup=False)
    for name, place in places.items():
        console.print(f"  {name:<8} {place}", markup=False)
    console.print(
        f'  draw     l2p generate {result["student"]} "a red house by a lake at dusk"', markup=False
    )
