"""Draw pictures with a student, one PNG a picture or all in one grid."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import time
from pathlib import Path
from typing import Any

from l2p.cli.options import (
    MAX_SIDE,
    SIDE,
    Guidance,
    PictureCount,
    PictureSeed,
    PictureSide,
    number_type,
    text_type,
)
from l2p.config import SamplingSteps
from l2p.errors import UserError
from l2p.students.resolve import resolve_student, student_help

EXAMPLES = """\
examples:
  l2p generate runs/quickstart/student "a red house by a lake at dusk"
  l2p generate runs/quickstart/student "snowy mountains at night" --seed 7 --num-images 4 --grid --out night.png
  l2p generate runs/quickstart/student --prompts-file prompts.txt --out pictures --json
  l2p generate runs/landscapes-512/student "a river at dawn" --memory-budget 1GB
  l2p generate runs/quickstart/student "a lake at dusk" --lora watercolor.safetensors:0.8
"""
WHEN_STOPPED = "; the pictures written so far are whole"

PIXELS_AT_ONCE = 8 * 1024**2  # bounds the memory of a batch


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "student",
        metavar="STUDENT",
        help=student_help(),
    )
    parser.add_argument(
        "prompts", metavar="PROMPT", nargs="*", default=[], type=text_type, help="what to draw"
    )
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="a prompt that looks like a path; repeatable",
    )
    parser.add_argument(
        "--prompts-file",
        metavar="FILE[#COLUMN]",
        help="prompts: .txt (a line each), .jsonl, .json, .csv or .parquet",
    )
    parser.add_argument(
        "--seed",
        type=number_type(PictureSeed),
        help="of each prompt's first picture, the others get the next; else random",
    )
    parser.add_argument(
        "--num-images",
        type=number_type(PictureCount),
        default=1,
        metavar="N",
        help="pictures of each prompt (1)",
    )
    parser.add_argument(
        "--height",
        type=number_type(PictureSide),
        help=f"pixels, a multiple of {SIDE} up to {MAX_SIDE}; else as trained",
    )
    parser.add_argument("--width", type=number_type(PictureSide), help="likewise")
    parser.add_argument(
        "--steps",
        type=number_type(SamplingSteps),
        help="else what the student was trained for; others bring a warning",
    )
    parser.add_argument(
        "--guidance-scale",
        type=number_type(Guidance),
        metavar="W",
        help="of classifier-free guidance, two passes a step; else the student's own (1, none, for few steps)",
    )
    parser.add_argument(
        "--lora",
        metavar="SOURCE[:WEIGHT]",
        action="append",
        default=[],
        help="LoRA of the teacher's transformer: a .safetensors file, peft's folder, or USER/NAME on the Hub; may be repeated",
    )
    parser.add_argument(
        "--out",
        metavar="FILE|FOLDER",
        default="pictures",
        help="a .png for one picture, which is replaced if it is there, or a folder (pictures)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace pictures of equal names in the folder; else nothing is drawn where one is there",
    )
    parser.add_argument("--grid", action="store_true", help="all pictures in one, a row a prompt")
    parser.add_argument(
        "--json", action="store_true", help="print path, prompt, seed, size and seconds as JSON"
    )
    parser.add_argument(
        "--memory-budget",
        metavar="SIZE",
        help="what drawing may take beyond weights and picture, such as 1.5GB (2GB; on a GPU most of what is free); it changes no picture",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile the blocks: for many pictures, the first takes long",
    )
    parser.add_argument(
        "--cuda-graphs",
        action="store_true",
        help="launch a one-step student's step in one call: for many pictures of one size",
    )
    parser.add_argument(
        "--noise-generator",
        choices=("philox", "mt19937"),
        help="what makes the noise of a seed; else the one that the student was trained with",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--dtype", default="auto", help="auto, bf16, fp16 or fp32")


def run(args: argparse.Namespace) -> None:
    prompts = _prompts(args)
    student = resolve_student(args.student)  # a wrong one is found before anything is made or loaded
    seed = secrets.randbelow(2**31) if args.seed is None else args.seed
    tasks = [(prompt, seed + k) for prompt in prompts for k in range(args.num_images)]
    folder, names = _check_out(args, tasks)
    import l2p
    from l2p import runtime
    from l2p.images import make_grid, save_png
    from l2p.picture_manifest import add_to_manifest
    from l2p.students.external_lora import parse_lora

    budget = runtime.parse_bytes(args.memory_budget) if args.memory_budget else None
    runtime.setup()
    runtime.keep_freed_memory()
    runtime.silence_libraries()
    pipeline = l2p.load(student, device=args.device, dtype=args.dtype)
    for source, weight in map(parse_lora, args.lora):
        pipeline.load_lora(source, weight)
    if args.noise_generator is not None:
        pipeline.noise_generator = args.noise_generator
    if args.compile:
        runtime.check_compiler(pipeline.device)
        pipeline.student.compile_blocks()
    if args.cuda_graphs:
        pipeline.use_cuda_graphs()
    pipeline.warn_of(prompts, args.steps, args.guidance_scale, args.height, args.width)
    height, width = pipeline.size(args.height, args.width)
    at_once = max(1, min(8, PIXELS_AT_ONCE // (height * width)))
    drawn, pictures = [], []
    for start in range(0, len(tasks), at_once):
        batch = tasks[start : start + at_once]
        started = time.perf_counter()
        texts, seeds = zip(*batch, strict=True)
        images = pipeline.generate_arrays(
            texts, seeds, height, width, args.steps, budget, args.guidance_scale
        )
        seconds = (time.perf_counter() - started) / len(batch)
        for (prompt, number), image, name in zip(batch, images, names[start:], strict=False):
            path = folder / name
            if args.grid:
                pictures.append(image)
            else:
                save_png(image, path)
                if path != Path(args.out):  # a folder: it says what its pictures show
                    add_to_manifest(folder, {"file_name": name, "prompt": prompt, "seed": number})
            entry = {
                "path": str(path),
                "prompt": prompt,
                "seed": number,
                "height": height,
                "width": width,
            }
            drawn.append({**entry, "seconds": round(seconds, 4)})
            if not (args.json or args.grid):
                print(_line(drawn[-1]), flush=True)
    if args.grid:
        save_png(
            make_grid(pictures, columns=args.num_images if args.num_images > 1 else min(8, len(pictures))),
            path,
        )
    if args.json:
        print(json.dumps(drawn, indent=2, ensure_ascii=False))
    elif args.grid:
        print(f"{path}  {len(drawn)} pictures  seeds from {seed}  {drawn[-1]['seconds']:.2f} s each")


def _prompts(args: argparse.Namespace) -> list[str]:
    from l2p.files import names_input, no_such

    for text in args.prompts:
        if os.path.isfile(text) or os.path.isfile(text.rpartition("#")[0]):
            raise UserError(
                f"{text} is a file: --prompts-file {text} draws the prompts in it, --prompt {text!r} these words"
            )
        if os.path.isdir(text):
            raise UserError(f"{text} is a folder here: --prompt {text!r} draws these words")
        if names_input(text):
            raise no_such(text, f"--prompt {text!r} draws these words")
    prompts = [*args.prompts, *args.prompt]
    if args.prompts_file:
        from l2p.corpus.sources import read_texts

        prompts += read_texts(args.prompts_file)
    if not prompts:
        raise UserError(
            'nothing to draw: give a prompt, as in l2p generate STUDENT "a red house", or --prompts-file'
        )
    if any("\ud800" <= sign <= "\udfff" for prompt in prompts for sign in prompt):
        raise UserError("a prompt holds bytes that are no UTF-8: see that the terminal speaks UTF-8")
    return prompts


def _check_out(args: argparse.Namespace, tasks: list[tuple[str, int]]) -> tuple[Path, list[str]]:
    """The folder to write to, proven writable, and the file of each picture in it. Raises UserError."""
    from l2p.files import check_writable
    from l2p.names import prompt_names

    path = Path(args.out)
    if path.suffix and not path.is_dir():
        if path.suffix.lower() != ".png":
            raise UserError(f"--out is {args.out}, expected a file that ends in .png, or a folder")
        if len(tasks) > 1 and not args.grid:
            raise UserError(
                f"--out is one file for {len(tasks)} pictures: give a folder, or --grid for one sheet"
            )
        folder, names = path.parent, [path.name] * len(tasks)
    elif args.grid:
        folder, names = path, ["grid.png"] * len(tasks)
    else:
        folder, names = path, prompt_names(*zip(*tasks, strict=True))
    check_writable(folder)
    there = [folder / name for name in dict.fromkeys(names) if (folder / name).exists()]
    if there and not args.overwrite and folder == path:
        raise UserError(
            f"{there[0]}{f' and {len(there) - 1} more are' if there[1:] else ' is'} there already: choose another --out, or "
            "--overwrite"
        )
    for file in there:
        if not os.access(file, os.W_OK):
            raise UserError(f"cannot write to {file}: permission denied")
    return folder, names


def _line(entry: dict[str, Any]) -> str:
    size = f"{entry['width']} x {entry['height']}"
    return f"{entry['path']}  seed {entry['seed']}  {size}  {entry['seconds']:.2f} s"
