"""Measure a student beside its teacher, on captions and seeds that neither saw; writes metrics.json and report.html.

STUDENT and the other side may be folders of pictures as well. The sets are compared as sets, and one by one those pictures that
belong together: by prompt and seed where both folders have a metadata.jsonl (as `l2p generate` writes), else by equal names.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from l2p.cli.options import Mode, PairCount, check_modes, number_type
from l2p.errors import UserError
from l2p.students.resolve import resolve_student, results_folder, student_help

EXAMPLES = """\
examples:
  l2p evaluate runs/quickstart/student
  l2p evaluate runs/quickstart/student --num-images 1000 --out runs/quickstart/thorough
  l2p evaluate runs/quickstart/student --fail-if "seam_ratio>1.1" --fail-if "attribute_accuracy<0.9"
  l2p evaluate runs/quickstart/student --against photographs/ --json figures.json
  l2p evaluate pictures/ --against others/ --features timm:vit_small_patch14_dinov2.lvd142m

exit code 1: a --fail-if condition holds
"""
WHEN_STOPPED = "; run the same command again, it goes on from here"
PATHS = ("vae", "pid", "l2p")
OWN_PICTURES = Mode("a folder of pictures", ())
STUDENT = Mode("a student", ("device", "dtype"))
TEACHER = Mode("a student beside a teacher", ("paths",))
DECODER = Mode("--paths with pid", ("pid",))
MODES = (OWN_PICTURES, STUDENT, TEACHER, DECODER)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "student",
        metavar="STUDENT",
        help=f"{student_help()}, or a folder of pictures",
    )
    parser.add_argument(
        "--against",
        metavar="TEACHER|FOLDER",
        help="another teacher (folder or Hub name), or a folder of pictures",
    )
    parser.add_argument(
        "--paths",
        default="vae,l2p",
        metavar="LIST",
        help="vae,l2p (default), vae,pid,l2p, or l2p alone: no teacher is run",
    )
    parser.add_argument(
        "--pid",
        metavar="FOLDER",
        default="landscapes-4x",
        help="the pixel diffusion decoder of the path pid (landscapes-4x)",
    )
    parser.add_argument(
        "--prompts",
        metavar="FILE[#COLUMN]",
        help="prompts: .txt (a line each), .jsonl, .json, .csv or .parquet; of a folder of pictures one a picture, in natural "
        "order or by file_name; else as the recipe or the folder's metadata.jsonl says",
    )
    parser.add_argument(
        "--num-images",
        type=number_type(PairCount),
        metavar="N",
        help="pictures measured; else as the recipe says",
    )
    parser.add_argument(
        "--clip", metavar="FOLDER|NAME", help="a CLIP, for CLIP score and CMMD; else as the recipe says"
    )
    parser.add_argument(
        "--features",
        action="append",
        default=[],
        metavar="NETWORK",
        help="Frechet, kernel distance, precision and recall in the space of timm:NAME, timm:NAME=FILE.safetensors, "
        "lpips, encoder or transformer; repeatable; else as the recipe says",
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="where the results go; else evaluation-NAME beside the student, or here for one from the Hub",
    )
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="figures as JSON, to FILE or else to the terminal",
    )
    parser.add_argument(
        "--fail-if", action="append", default=[], metavar="EXPR", help="such as 'seam_ratio>1.1'; repeatable"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--dtype", default="auto", help="auto, bf16, fp16 or fp32")


def run(args: argparse.Namespace) -> int:
    from l2p.evaluation.gate import Condition
    from l2p.picture_folder import holds_pictures

    conditions = [Condition.parse(text) for text in args.fail_if]
    paths = _paths(args.paths)
    folder = Path(args.student).resolve() if holds_pictures(args.student) else resolve_student(args.student)
    out = Path(args.out) if args.out else results_folder(args.student, "evaluation")
    from l2p.locks import locked

    with locked(out, "--out"):
        metrics = _measure(args, folder, out, paths)
    if args.json == "-":
        print(json.dumps(metrics, indent=2))
    else:
        _tell(args, metrics, out)
    failures = [line for condition in conditions if (line := condition.failure(metrics))]
    for line in failures:
        print(f"failed: {line}")
    return int(bool(failures))


def _measure(args: argparse.Namespace, folder: Path, out: Path, paths: tuple[str, ...]) -> dict[str, Any]:
    from l2p.picture_folder import holds_pictures
    from l2p.students.io import read_config

    against = args.against
    if against and Path(against).is_file():
        raise UserError(f"--against is {against}, a file: expected a folder of pictures or a teacher")
    pictures = bool(against) and holds_pictures(against)
    own_pictures = holds_pictures(folder)
    if not own_pictures:
        read_config(folder)
    elif not pictures:
        raise UserError(
            f"{args.student} is a folder of pictures: name the pictures to compare with, --against FOLDER"
        )
    active = {OWN_PICTURES} if own_pictures else {STUDENT} if pictures else {STUDENT, TEACHER}
    check_modes(args, MODES, active | ({DECODER} if "pid" in paths and TEACHER in active else set()))
    from l2p.files import check_outputs

    inputs = [path for path in (folder, against, (args.prompts or "").partition("#")[0]) if path]
    check_outputs([out], inputs)
    if args.json not in (None, "-"):
        from l2p.files import check_writable

        check_outputs([args.json], [*inputs, out / "metrics.json", out / "report.html"], "--json")

        if Path(args.json).is_dir():
            raise UserError(f"--json is {args.json}, a folder: expected a file, such as figures.json")
        check_writable(Path(args.json).parent)
    from l2p import runtime

    runtime.setup()
    runtime.silence_libraries()
    progress = args.json != "-"
    if pictures:
        from l2p.evaluation.pictures import draw_pictures, evaluate_pictures

        drawn = {"folder": folder, "prompts": args.prompts, "num_images": args.num_images}
        if not own_pictures:
            kept = out / "evaluation" / "student"
            count, device, dtype = args.num_images, args.device, args.dtype
            drawn = draw_pictures(folder, kept, count, args.prompts, device, dtype, progress)
        drawn["clip"] = args.clip or drawn.get("clip")
        drawn["features"] = args.features or drawn.get("features", ())
        return evaluate_pictures(**drawn, against=against, out=out, progress=progress)
    from l2p.evaluation.saved import evaluate_folder

    return evaluate_folder(
        folder,
        num_images=args.num_images,
        out=out,
        device=args.device,
        dtype=args.dtype,
        progress=progress,
        against=against,
        prompts=args.prompts,
        paths=paths,
        clip=args.clip,
        features=args.features,
        decoder=args.pid if "pid" in paths else None,
    )


def _paths(text: str) -> tuple[str, ...]:
    chosen = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    for path in chosen:
        if path not in PATHS:
            raise UserError(f"--paths names {path!r}, expected a list of vae, pid and l2p, such as vae,l2p")
    if "pid" in chosen and "vae" not in chosen:
        raise UserError("--paths names pid, which decodes what the teacher draws: add vae")
    if "l2p" not in chosen:
        raise UserError(f"--paths is {text!r}, but a student is to be measured: expected vae,l2p or l2p")
    return chosen


def _tell(args: argparse.Namespace, metrics: dict[str, Any], out: Path) -> None:
    for name, value in metrics["summary"].items():
        print(f"  {name.replace('_', ' '):<24}{'-' if value is None else f'{value:.3f}'}")
    for line in metrics["alarms"]:
        print(f"  {'alarm':<24}{line}")
    for name, values in metrics.get("student", {}).get("features", {}).items():
        told = {key: values.get(key) for key in ("frechet", "frechet_ratio", "kernel", "precision", "recall")}
        seen = ", trained on" if metrics["settings"]["features"][name]["trained_on"] else ""
        line = ", ".join(f"{key} {value:.4g}" for key, value in told.items() if value is not None)
        print(f"  {name}{seen}: {line}")
    if (out / "report.html").is_file():
        print(f"  {'report':<24}{out / 'report.html'}")
    if args.json:
        from l2p.files import write_json

        write_json(args.json, metrics)
        print(f"  {'figures':<24}{args.json}")
