"""Time and peak memory of one picture, prompt to 8 bits, of several paths side by side.

Each path runs in a process of its own with random weights of a preset's sizes; the paths take turns in every round. A
path that runs out of memory or time is a row that says so."""

from __future__ import annotations

import argparse
from typing import Any

from l2p.cli.options import Mode, Seconds, StepsOrNone, check_modes, number_type
from l2p.config import BatchSize, Count, CountOrZero, SamplingSteps, Threads
from l2p.errors import UserError

EXAMPLES = """\
examples:
  l2p bench --preset tiny --sizes 256,512 --paths l2p,l2p-unet
  l2p bench --preset base --sizes 1024,2048,4096 --json bench.json --plot bench.png
  l2p bench --preset base --sizes 4096 --count
  l2p bench --preset base --paths vae-tiled --teacher-steps 0 --sizes 4096 --rounds 1 --time-limit 1200
"""
PATH_NAMES = (
    "l2p",
    "l2p-unet",
    "l2p-multistep",
    "vae",
    "vae-tiled",
    "taesd",
    "vae+lanczos",
    "pid",
    "l2p-pid",
)  # as bench.paths


STUDENTS = ("l2p", "l2p-unet", "l2p-multistep")  # of PATH_NAMES
BUDGETED = Mode("a path of l2p's own networks", ("memory_budget",))
ONE_STEP = Mode("a path of one step", ("cuda_graphs",))
MANY_STEPS = Mode("--paths with l2p-multistep", ("student_steps",))
LATENT = Mode("a path in latents", ("teacher_steps",))
TIMED = Mode(
    "timing",
    ("paths", "rounds", "warm_up", "batch", "time_limit", "threads", "device", "dtype", "compile", "plot"),
)  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", default="base", help="sizes of the networks: tiny, base or large (base)")
    parser.add_argument(
        "--paths", default="l2p,l2p-unet,vae-tiled,taesd", help=f"of {', '.join(PATH_NAMES)} (some of them)"
    )
    parser.add_argument(
        "--sizes", default="1024,2048", help="sides in pixels, or HEIGHTxWIDTH, multiples of 8 (1024,2048)"
    )
    parser.add_argument("--rounds", type=number_type(Count), default=5, help="timed pictures a path (5)")
    parser.add_argument(
        "--warm-up", type=number_type(CountOrZero), default=1, metavar="N", help="untimed pictures before (1)"
    )
    parser.add_argument("--batch", type=number_type(BatchSize), default=1, help="pictures at once (1)")
    parser.add_argument(
        "--teacher-steps",
        type=number_type(StepsOrNone),
        default=8,
        metavar="N",
        help="of the latent paths; 0: decoder alone (8)",
    )
    parser.add_argument(
        "--student-steps",
        type=number_type(SamplingSteps),
        default=30,
        metavar="N",
        help="of l2p-multistep (30)",
    )
    parser.add_argument(
        "--memory-budget",
        metavar="SIZE",
        help="of our student's painting (2GB; on a GPU most of what is free)",
    )
    parser.add_argument(
        "--time-limit",
        type=number_type(Seconds),
        default=600,
        metavar="SECONDS",
        help="for one picture (600)",
    )
    parser.add_argument("--threads", type=number_type(Threads), help="of each process; else all usable cores")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="auto", help="auto, bf16, fp16 or fp32")
    parser.add_argument("--compile", action="store_true", help="torch.compile the repeated blocks")
    parser.add_argument(
        "--cuda-graphs", action="store_true", help="our student's step in one launch, of one-step paths"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write everything as JSON: machine, settings and `rows`"
    )
    parser.add_argument(
        "--count",
        action="store_true",
        help="time nothing: launches, bytes and copies of our student's step on a GPU, counted on any machine",
    )
    parser.add_argument("--plot", metavar="FILE", help="draw time and memory over size, .png, .svg or .pdf")


def run(args: argparse.Namespace) -> None:
    paths, sizes = _paths(args.paths), _sizes(args.sizes)
    modes = [BUDGETED, ONE_STEP, MANY_STEPS, LATENT, TIMED]
    if args.count:
        check_modes(args, modes, [])
        return _count(args.preset, sizes, args.json)
    if args.plot and not args.plot.lower().endswith((".png", ".svg", ".pdf")):
        raise UserError(f"--plot is {args.plot}, expected a file that ends in .png, .svg or .pdf")
    if args.plot and args.plot == args.json:
        raise UserError(f"--plot and --json are both {args.plot}: give them files of their own")
    ours = {*STUDENTS} & {*paths}
    uses = {
        BUDGETED: bool(ours) or "l2p-pid" in paths,
        ONE_STEP: bool(ours - {"l2p-multistep"}),
        MANY_STEPS: "l2p-multistep" in paths,
        LATENT: bool({*paths} - {*STUDENTS}),
    }
    check_modes(args, modes, [TIMED, *(mode for mode, used in uses.items() if used)])
    import sys

    from l2p import runtime
    from l2p.bench.paths import Job
    from l2p.bench.run import bench
    from l2p.files import write_json
    from l2p.students.graphs import check_cuda_graphs
    from l2p.students.presets import find_preset

    if find_preset(args.preset).counting_only:
        raise UserError(
            f"the preset {args.preset} is for counting (`l2p info {args.preset}`): take base or large"
        )
    device = runtime.pick_device(args.device)
    dtype = runtime.pick_dtype(args.dtype, device)
    if args.cuda_graphs:
        check_cuda_graphs(device)
    common = {
        "preset": args.preset,
        "batch": args.batch,
        "device": str(device),
        "dtype": next(name for name, kind in runtime.DTYPES.items() if kind == dtype),
        "compile": args.compile,
        "cuda_graphs": args.cuda_graphs,
        "teacher_steps": args.teacher_steps,
        "student_steps": args.student_steps,
        "memory_budget": args.memory_budget and runtime.parse_bytes(args.memory_budget),
    }
    jobs = [Job(path=path, height=h, width=w, **common) for h, w in sizes for path in paths]
    rows = bench(
        jobs,
        args.rounds,
        args.time_limit,
        args.threads,
        args.warm_up,
        lambda line: print(line, file=sys.stderr),
    )
    facts = {
        "machine": _machine(device, args.threads),
        "settings": {**common, "rounds": args.rounds, "warm_up": args.warm_up},
        "rows": rows,
    }
    if args.json:
        write_json(args.json, facts)
    if args.plot:
        from l2p.bench.plot import plot

        plot(rows, args.plot, f"preset {args.preset}, {common['dtype']}, {facts['machine']['device']}")
    _print(facts)


def _count(preset: str, sizes: list[tuple[int, int]], json_file: str | None) -> None:
    from rich.table import Table

    from l2p import runtime
    from l2p.bench.step_count import count_step
    from l2p.console import Console
    from l2p.files import write_json

    runtime.silence_libraries()
    rows = []
    for height, width in sizes:
        counts, copied = count_step(preset, height, width)
        parts = {name: {"launches": c.total, "bytes_moved": c.moved} for name, c in counts.items()}
        to_host = [size.numel() for size in copied] + counts["whole"].to_host
        row = {"preset": preset, "height": height, "width": width, "dtype": "bf16", **parts}
        row |= {"bytes_to_host": sum(to_host), "bytes_to_device": sum(counts["whole"].to_device)}
        row["waits"] = counts["whole"].waits
        rows.append(row)
        table = Table(
            "part", "launches", "GB moved", title=f"{preset}, {height} x {width}, bf16: counts, not timings"
        )
        for name, part in parts.items():
            table.add_row(name, str(part["launches"]), f"{part['bytes_moved'] / 1e9:.2f}")
        table.caption = (
            f"{sum(to_host) / 1e6:.1f} MB to the host in {len(to_host)} copy, {row['bytes_to_device']} bytes from it, "
            f"{len(row['waits'])} waits besides"
        )
        Console(highlight=False, soft_wrap=True).print(table)
    if json_file:
        write_json(json_file, {"rows": rows})


def _paths(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in PATH_NAMES:
            raise UserError(f"no path {name!r}, expected some of {', '.join(PATH_NAMES)}")
    if not names:
        raise UserError(f"--paths names nothing, expected some of {', '.join(PATH_NAMES)}")
    return list(dict.fromkeys(names))


def _sizes(text: str) -> list[tuple[int, int]]:
    sizes = []
    for part in text.split(","):
        sides = part.strip().split("x")
        numbers = [int(side) for side in sides if side.isdecimal()]
        if len(numbers) != len(sides) or len(sides) > 2 or any(n < 64 or n % 8 for n in numbers):
            raise UserError(
                f"size {part!r} is not understood, expected multiples of 8 from 64, as 1024 or 512x768"
            )
        sizes.append((numbers[0], numbers[-1]))
    return list(dict.fromkeys(sizes))


def _machine(device: Any, threads: int | None) -> dict[str, Any]:
    import platform

    import torch

    from l2p import __version__
    from l2p.runtime import device_name, usable_cores

    return {
        "device": device_name(device),
        "threads": threads or usable_cores(),
        "torch": torch.__version__,
        "l2p": __version__,
        "system": platform.platform(),
    }


def _print(facts: dict[str, Any]) -> None:
    from rich.table import Table

    from l2p.console import Console

    machine, rows = facts["machine"], facts["rows"]
    title = f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}"
    table = Table("path", "size", "steps", "median", "p20 - p80", "peak memory", "components", title=title)
    for row in rows:
        ok = row["status"] == "ok"
        parts = ", ".join(f"{label} {seconds:.2f}" for label, seconds in row["components"].items())
        memory = row["peak_memory_bytes"]
        table.add_row(
            row["path"],
            f"{row['height']} x {row['width']}",
            str(row["steps"] if row["steps"] is not None else "-"),
            f"{row['seconds_median']:.3f} s" if ok else row["status"],
            f"{row['seconds_p20']:.3f} - {row['seconds_p80']:.3f}" if ok else "-",
            f"{memory / 1e9:.2f} GB" if memory else "-",
            parts or "-",
        )
    Console(highlight=False, soft_wrap=True).print(table)
