"""Draw pictures with a student, one PNG a picture or all in one grid."""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import time
from pathlib import Path
from typing import Any

from l2p.errors import UserError
from l2p.students.named import resolve_student, student_help

EXAMPLES = """\
examples:
  l2p generate runs/quickstart/student "a red house by a lake at dusk"
  l2p generate runs/quickstart/student "snowy mountains at night" --seed 7 --num-images 4 --grid --out night.png
  l2p generate runs/quickstart/student --prompts-file prompts.txt --out pictures --json
  l2p generate runs/landscapes-512/student "a river at dawn" --height 4096 --width 4096 --memory-budget 1GB
  l2p generate runs/quickstart/student "a lake at dusk" --lora watercolor.safetensors:0.8
"""
WHEN_STOPPED = "; the pictures written so far are whole"

SIDE = 8  # pixels; a side is a multiple of it
MAX_SIDE = 8192  # twice 4K
PIXELS_AT_ONCE = 8 * 1024**2  # bounds the memory of a batch


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "student",
        metavar="STUDENT",
        help=student_help(),
    )
    parser.add_argument("prompts", metavar="PROMPT", nargs="*", default=[], help="what to draw")
    parser.add_argument(
        "--prompts-file",
        metavar="FILE[#COLUMN]",
        help="prompts: .txt (a line each), .jsonl, .json, .csv or .parquet",
    )
    parser.add_argument(
        "--seed", type=int, help="of each prompt's first picture, the others get the next; else random"
    )
    parser.add_argument("--num-images", type=int, default=1, metavar="N", help="pictures of each prompt (1)")
    parser.add_argument(
        "--height", type=int, help=f"pixels, a multiple of {SIDE} up to {MAX_SIDE}; else as trained"
    )
    parser.add_argument("--width", type=int, help="likewise")
    parser.add_argument("--steps", type=int, help="else what the student was trained for")
    parser.add_argument(
        "--guidance-scale",
        type=float,
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
        "--out", metavar="FILE|FOLDER", default="pictures", help="a .png for one picture, or a folder"
    )
    parser.add_argument("--grid", action="store_true", help="all pictures in one, a row a prompt")
    parser.add_argument(
        "--json", action="store_true", help="print path, prompt, seed, size and seconds as JSON"
    )
    parser.add_argument(
        "--memory-budget",
        metavar="SIZE",
        help="what drawing may take beyond weights and picture, such as 1.5GB (2GB); it changes no picture",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile the blocks: for many pictures, the first takes long",
    )
    parser.add_argument(
        "--cuda-graphs",
        action="store_true",
        help="launch a one-step student's step in one call: for many pictures of one size and one length of prompt",
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
    _check_numbers(args)
    student = resolve_student(args.student)  # a wrong one is found before anything is made or loaded
    folder, file = _check_out(args.out, len(prompts) * args.num_images, args.grid)
    import l2p
    from l2p import runtime
    from l2p.images import make_grid, save_png
    from l2p.students.external_lora import parse_lora
    from l2p.students.painting import BUDGET

    budget = runtime.parse_bytes(args.memory_budget) if args.memory_budget else BUDGET
    runtime.setup()
    runtime.keep_freed_memory()
    runtime.hush_loaders()
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
    seed = secrets.randbelow(2**31) if args.seed is None else args.seed
    tasks = [(row, prompt, seed + k) for row, prompt in enumerate(prompts) for k in range(args.num_images)]
    height, width = pipeline.size(args.height, args.width)
    at_once = max(1, min(8, PIXELS_AT_ONCE // (height * width)))
    drawn, pictures = [], []
    for start in range(0, len(tasks), at_once):
        batch = tasks[start : start + at_once]
        started = time.perf_counter()
        _, texts, seeds = zip(*batch, strict=True)
        images = pipeline.paint(texts, seeds, height, width, args.steps, budget, args.guidance_scale)
        seconds = (time.perf_counter() - started) / len(batch)
        for (row, prompt, number), image in zip(batch, images, strict=True):
            path = folder / (file or ("grid.png" if args.grid else _name(prompt, row, len(prompts), number)))
            if args.grid:
                pictures.append(image)
            else:
                save_png(image, path)
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
    prompts = list(args.prompts)
    if args.prompts_file:
        from l2p.corpus.sources import read_texts

        prompts += read_texts(args.prompts_file)
    if not prompts:
        raise UserError(
            'nothing to draw: give a prompt, as in l2p generate STUDENT "a red house", or --prompts-file'
        )
    return prompts


def _check_numbers(args: argparse.Namespace) -> None:
    for name in ("height", "width"):
        value = getattr(args, name)
        if value is not None and (value < SIDE or value > MAX_SIDE or value % SIDE):
            near = min(max(SIDE, round(value / SIDE) * SIDE), MAX_SIDE)
            raise UserError(
                f"--{name} is {value}, expected a multiple of {SIDE} from {SIDE} to {MAX_SIDE}: try {near}"
            )
    for name, low, high in (("num_images", 1, 10_000), ("steps", 1, 1000), ("seed", 0, 2**63 - 10_001)):
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            raise UserError(f"--{name.replace('_', '-')} is {value}, expected {low} to {high}")
    if args.guidance_scale is not None and not 1 <= args.guidance_scale <= 1000:
        raise UserError(f"--guidance-scale is {args.guidance_scale}, expected 1 (none) to 1000")


def _check_out(out: str, count: int, grid: bool) -> tuple[Path, str | None]:
    """The folder to write to, proven writable, and the file's name if it was given. Raises UserError."""
    from l2p.files import check_writable

    path = Path(out)
    if path.suffix and not path.is_dir():
        if path.suffix.lower() != ".png":
            raise UserError(f"--out is {out}, expected a file that ends in .png, or a folder")
        if count > 1 and not grid:
            raise UserError(f"--out is one file for {count} pictures: give a folder, or --grid for one sheet")
        check_writable(path.parent)
        if path.exists() and not os.access(path, os.W_OK):
            raise UserError(f"cannot write to {path}: permission denied")
        return path.parent, path.name
    check_writable(path)
    return path, None


def _name(prompt: str, row: int, rows: int, seed: int) -> str:
    slug = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-_")[:48].rstrip("-") or "picture"
    number = f"{row:0{len(str(rows - 1))}d}-" if rows > 1 else ""
    return f"{number}{slug}-seed{seed}.png"


def _line(entry: dict[str, Any]) -> str:
    size = f"{entry['width']} x {entry['height']}"
    return f"{entry['path']}  seed {entry['seed']}  {size}  {entry['seconds']:.2f} s"
