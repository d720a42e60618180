"""What a student, a bundled teacher or a pixel decoder is: sizes, origin, recipe, and its metrics where they lie beside it.
Loads no weights.

Of a preset (tiny, base, large, z-image): what an image costs at four sizes, counted without running it; of a recipe for a
published teacher, what an image of its student costs. Without a NAME: all names that come with l2p."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from l2p.errors import UserError
from l2p.files import read_json
from l2p.students.resolve import resolve_student, student_help

PRESET_NAMES = (
    "tiny",
    "base",
    "large",
    "z-image",
)  # as l2p.students.presets has them; named here to load nothing
EXAMPLES = """\
examples:
  l2p info
  l2p info runs/quickstart/student
  l2p info landscapes-128 --json
  l2p info landscapes-4x
  l2p info base
  l2p info recipes/flux2-klein-1k.yaml
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "student",
        metavar="NAME",
        nargs="?",
        help=f"{student_help()}; a teacher or decoder that comes with l2p, or a folder of one; a recipe of a published "
        f"teacher; or a preset: {', '.join(PRESET_NAMES)}",
    )
    parser.add_argument("--json", action="store_true", help="everything, as JSON")


def run(args: argparse.Namespace) -> None:
    if args.student is None:
        return _print_names(args.json)
    part = _part_folder(args.student)
    if part is not None:
        return _print_part(gather_part(args.student, part), args.json)
    is_preset = args.student in PRESET_NAMES and not Path(args.student).exists()
    is_recipe = args.student.endswith((".yaml", ".yml"))
    facts = (gather_preset if is_preset else gather_recipe if is_recipe else gather)(args.student)
    if args.json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
    elif is_preset or is_recipe:
        _print_counted(facts)
    else:
        _print(facts)


def _print_names(as_json: bool) -> None:
    from l2p.catalog import catalog

    names = {**catalog(), "presets": list(PRESET_NAMES)}
    if as_json:
        print(json.dumps(names, indent=2))
        return
    from rich.table import Table

    from l2p.console import Console

    table = Table("kind", "names", title="l2p info NAME tells more", title_justify="left")
    for kind, found in names.items():
        table.add_row(kind, ", ".join(found) or "none")
    Console(highlight=False).print(table)


def _part_folder(name: str) -> Path | None:
    """Folder of a teacher or a pixel decoder, by its name in the package or as a folder; None for anything else."""
    from l2p.decoders.io import BUNDLED as DECODERS
    from l2p.decoders.io import CLASS_NAME
    from l2p.teachers import BUNDLED

    for folder in (Path(name), BUNDLED / name, DECODERS / name):
        if (folder / "model_index.json").is_file():
            return folder
        if (folder / "config.json").is_file():
            config = read_json(folder / "config.json")
            if isinstance(config, dict) and config.get("class") == CLASS_NAME:
                return folder
        if folder.exists():
            return None
    return None


def gather_part(name: str, folder: Path) -> dict[str, Any]:
    """Kind, size and configuration of a teacher's or a decoder's folder.

    Raises:
        UserError: no weights there, or broken ones.
    """
    from l2p.teachers.installed import read_pipeline_index

    index = folder / "model_index.json"
    config = read_pipeline_index(folder) if index.is_file() else read_json(folder / "config.json")
    kind = "teacher" if index.is_file() else "decoder"
    parts = [p.parent for p in sorted(folder.glob("*/*.safetensors"))] if kind == "teacher" else [folder]
    return {
        "path": name,
        "kind": kind,
        "parameters": {part.name if part != folder else "decoder": count_parameters(part) for part in parts},
        "bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        "config": config,
    }


def _print_part(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    from rich.markup import escape
    from rich.table import Table

    from l2p.console import Console

    config = _mapping(facts["config"])
    shown = {
        k: v
        for k, v in config.items()
        if k in ("scale", "height", "width", "num_steps", "license", "teacher")
    }
    rows = {
        "kind": f"{facts['kind']}, {config.get('_class_name') or config.get('class')}",
        "parameters": ", ".join(
            f"{part} {count / 1e6:,.2f} M" for part, count in facts["parameters"].items()
        ),
        "on disk": f"{facts['bytes'] / 1e6:,.1f} MB",
        **{key: json.dumps(value) if isinstance(value, dict) else str(value) for key, value in shown.items()},
    }
    table = Table(title=escape(facts["path"]), title_justify="left", show_header=False)
    for row, value in rows.items():
        table.add_row(row, escape(value))
    Console(highlight=False).print(table)


def gather_preset(name: str) -> dict[str, Any]:
    """Sizes of a preset and what a picture costs."""
    from l2p import runtime
    from l2p.bench.count import SIDES, count

    runtime.silence_libraries()  # the network is built, though without weights

    return {"preset": name, "dtype": "bf16", "pictures": [count(name, side) for side in SIDES]}


def gather_recipe(path: str) -> dict[str, Any]:
    """What a picture of a recipe's student costs, and how many of its weights train.

    Raises:
        UserError: a mistake in the recipe, or a teacher whose sizes are not known before it is here.
    """
    from l2p import runtime
    from l2p.bench.count import count_spec
    from l2p.recipe import load_recipe
    from l2p.students.build import published_student

    runtime.silence_libraries()
    recipe = load_recipe(path)
    teacher = recipe.teacher
    size = (teacher.height, teacher.width)
    student = published_student(teacher.path, recipe.student, size, teacher.guidance_scale)
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    row = {"side": max(size), **count_spec(student.spec), "trained_parameters": trained}
    return {"recipe": path, "teacher": teacher.path, "dtype": "bf16", "pictures": [row]}


def gather(student: str | Path) -> dict[str, Any]:
    """Everything a student's folder and the run around it say. Raises UserError when it is no student."""
    from l2p.hub.stage import find_metrics
    from l2p.students.io import read_config

    folder = resolve_student(student)
    config = read_config(folder)
    facts = {"path": str(student), "parameters": count_parameters(folder)}
    facts["bytes"] = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    facts["config"] = {key: value for key, value in config.items() if key != "recipe"}
    facts["recipe"] = config.get("recipe")
    facts["metrics"] = find_metrics(folder)
    return facts


def count_parameters(folder: Path) -> int:
    """Numbers in a folder's safetensors files, from their headers. Raises UserError when there are none or one is broken."""
    from safetensors import SafetensorError, safe_open

    files = [path for path in sorted(folder.glob("*.safetensors")) if path.is_file()]
    if not files:
        raise UserError(f"{folder} has no weights (*.safetensors): the folder is incomplete")
    total = 0
    for file in files:
        try:
            with safe_open(file, framework="numpy") as weights:
                total += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is broken or cut short ({error})") from None
    return total


def _print_counted(facts: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from l2p.console import Console

    table = Table(
        *("side", "patch", "parameters", "weights", "TFLOP core", "head", "GB moved core", "head"),
        title=f"{escape(facts.get('preset') or facts['recipe'])}: one picture, bf16, counted",
        title_justify="left",
    )
    for row in facts["pictures"]:
        table.add_row(
            f"{row['side']} px",
            str(row["patch_size"]),
            f"{row['core_parameters'] / 1e6:,.1f} + {row['head_parameters'] / 1e6:,.1f} M",
            f"{row['weight_bytes'] / 1e9:,.2f} GB",
            *(f"{row[f'{part}_flops'] / 1e12:,.2f}" for part in ("core", "head")),
            *(f"{row[f'{part}_bytes_moved'] / 1e9:,.1f}" for part in ("core", "head")),
        )
    console = Console(highlight=False)
    console.print(table)
    if trained := facts["pictures"][0].get("trained_parameters"):
        console.print(f"{trained / 1e6:,.1f} M of the parameters train.")
    console.print("GB moved: inputs and outputs of every operator, run eagerly, the head whole.")


def _mapping(value: Any) -> dict[str, Any]:
    """A section of a config; what is none has nothing to show."""
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float:
    return value if isinstance(value, (int, float)) else 0


def _depth(core: dict[str, Any]) -> str:
    if "class" not in core:  # Z-Image, the first there was
        return f"{core.get('n_layers')} layers of width {core.get('dim')}"
    layers = _number(core.get("num_layers")) + _number(core.get("num_single_layers"))
    width = _number(core.get("num_attention_heads")) * _number(core.get("attention_head_dim"))
    return f"{core['class']}, {layers} layers of width {width}"


def _steps(config: dict[str, Any]) -> str:
    scale = _number(config.get("guidance_scale", 1.0))
    return str(config.get("num_steps")) + (f", guided with {scale:g}" if scale > 1 else "")


def _print(facts: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from l2p.console import Console

    config, recipe = facts["config"], _mapping(facts["recipe"])
    core, head, teacher, source = (_mapping(config.get(key)) for key in ("core", "head", "teacher", "source"))
    depth = _depth(core) if core else "unknown"
    rows = {
        "parameters": f"{facts['parameters'] / 1e6:,.2f} M, {facts['bytes'] / 1e6:,.1f} MB in all",
        "picture": f"{config.get('width')} x {config.get('height')} as trained, patches of {config.get('patch_size')} px",
        "steps": _steps(config),
        "core": depth,
        "head": ", ".join(f"{key} {value}" for key, value in head.items()),
        "teacher": ", ".join(f"{key} {value}" for key, value in teacher.items() if value is not None),
        "source": ", ".join(f"{key} {value}" for key, value in source.items()) or "made here",
        "recipe": f"{recipe.get('name')} (seed {recipe.get('seed')})" if recipe else "not recorded",
        "last stage": str(config.get("stage") or "none"),
    }
    table = Table(title=escape(facts["path"]), title_justify="left", show_header=False)
    for name, value in rows.items():
        table.add_row(name, escape(value))
    console = Console(highlight=False)
    console.print(table)
    methods = _mapping(facts["metrics"])
    figures = ("attribute_accuracy", "frechet", "psnr_to_teacher", "latency_ms")
    if "student" in methods:
        table = Table("method", *(name.replace("_", " ") for name in figures))
        for name in ("teacher", "teacher_one_step", "lift", "student"):
            known = methods.get(name)
            found = [known.get(figure) if isinstance(known, dict) else None for figure in figures]
            numbers = (f"{x:,.3f}" if isinstance(x, (int, float)) else "-" for x in found)
            table.add_row(name.replace("_", " "), *numbers)
        console.print(table)
