"""`make gpu-proof`: what only a GPU can show, in under 8 minutes; each section in a process of its own, under its own limit.

`python -m l2p.bench.gpu_proof` runs the sections of :mod:`l2p.bench.gpu_sections` and the commands `l2p bench`, `distill` and
`generate`, without network. One that fails, runs out of time or does not fit the card's memory is a row that says so. The
figures go to `OUT/CARD.json` and, as the table that is printed last, to `OUT/CARD.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LEAST = 15  # seconds that a section must have left to be begun


@dataclass(frozen=True)
class Section:
    """One process: its name, its limit in seconds, and what it runs."""

    name: str
    limit: float
    command: list[str]


def sections(device: str, small: bool, work: Path) -> list[Section]:
    """All of them, the most telling first.

    Args:
        small: sizes for a dry run on a CPU.
        work: folder of what they write.
    """
    own = [sys.executable, "-m", "l2p.bench.gpu_sections", "--device", device, "--work", str(work)]
    own += ["--small"] if small else []
    l2p = [sys.executable, "-m", "l2p"]
    preset, side = ("tiny", "256") if small else ("base", "4096")
    rounds = ["--rounds", "1" if small else "5", "--warm-up", "0" if small else "2"]
    bench = [*l2p, "bench", "--preset", preset, "--sizes", side, "--device", device]
    steps = "2" if small else "20"
    overrides = [
        "name=gpu", f"output_dir={work / 'run'}", f"device={device}", f"corpus.num_pairs={16 if small else 256}",
        f"lift.num_images={16 if small else 64}", f"one_step.steps={steps}", "one_step.preview_every=1000",
        f"match.steps={2 if small else 6}", "match.preview_every=1000", "evaluation.num_images=16",
        "evaluation.batch_size=16", "evaluation.peak_memory=false", "evaluation.latency_runs=3",
    ]  # fmt: skip
    if small:
        overrides += ["one_step.batch_size=4", "match.batch_size=4", "evaluation.preview_images=2"]

    def timed(name: str, limit: float, paths: str, *options: str) -> Section:
        return Section(
            name, limit, [*bench, *options, "--paths", paths, "--json", str(work / f"{name}.json")]
        )

    graphs = [] if device == "cpu" else ["--cuda-graphs"]
    return [
        Section("env", 40, [*own, "env"]),
        Section("correct", 100, [*own, "correct"]),
        Section("kernels", 70, [*own, "kernels"]),
        Section("step", 60, [*own, "step"]),
        Section("graphs", 70, [*own, "graphs"]),
        timed("bench", 45, "l2p", *rounds, "--time-limit", "40"),
        timed("bench-graphs", 45, "l2p", *rounds, *graphs, "--time-limit", "40"),
        timed("bench-compiled", 75, "l2p", *rounds, *graphs, "--compile", "--time-limit", "70"),
        Section("distill", 80, [*l2p, "distill", "quickstart", *overrides]),
        Section("save", 40, [*own, "save"]),
        Section(
            "generate",
            50,
            [
                *l2p, "generate", str(work / "student"), "a red house by a lake", "a green hill at dawn", "--seed", "1",
                "--device", device, "--out", str(work / "pictures"), "--json",
            ],
        ),
        timed("bench-others", 90, "taesd,vae-tiled,l2p-unet,pid", "--rounds", "1", "--warm-up", "1", "--time-limit", "30"),
    ]  # fmt: skip


def run(
    todo: Sequence[Section], work: Path, budget: float, environment: dict[str, str], say=print
) -> dict[str, dict[str, Any]]:
    """Status and seconds of each section; its output is in ``work/NAME.log``."""
    started, done = time.monotonic(), {}
    for section in todo:
        limit = min(section.limit, budget - (time.monotonic() - started))
        if limit < min(LEAST, section.limit):
            done[section.name] = {"status": "skipped: no time left", "seconds": 0.0}
            continue
        say(f"{section.name} (at most {limit:.0f} s)")
        began = time.monotonic()
        with open(work / f"{section.name}.log", "w") as log:
            process = subprocess.Popen(
                section.command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
            try:
                code = process.wait(limit)
                status = "ok" if code == 0 else f"failed with code {code}"
            except subprocess.TimeoutExpired:
                status = f"stopped after {limit:.0f} s"
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)  # its own session: what it started goes as well
                    process.wait()
        done[section.name] = {"status": status, "seconds": round(time.monotonic() - began, 1)}
        say(f"{section.name}: {status}, {done[section.name]['seconds']} s")
    return done


def gather(work: Path, done: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Everything that was found: a section's own figures, a command's JSON, or the last lines of what failed."""
    found: dict[str, Any] = {"sections": done}
    for name, row in done.items():
        path, log = work / f"{name}.json", work / f"{name}.log"
        if path.is_file():
            found[name] = json.loads(path.read_text())
        if row["status"] != "ok" and log.is_file():
            row["last_lines"] = log.read_text(errors="replace").splitlines()[-3:]
    text = (work / "generate.log").read_text() if (work / "generate.log").is_file() else ""
    seconds = re.findall(r'"seconds": ([0-9.]+)', text)
    if seconds:
        found["generate"] = {"seconds_a_picture": [float(s) for s in seconds]}
    logs = work / "run" / "logs"
    found["training"] = {path.stem: step_ms for path in logs.glob("*.csv") if (step_ms := _step_ms(path))}
    return found


def _step_ms(path: Path) -> float | None:
    """Median milliseconds of a training step, from its log; the first ones warm up."""
    import csv
    import statistics

    with open(path, newline="") as file:
        at = [float(row["seconds"]) for row in csv.DictReader(file)]
    steps = [after - before for before, after in zip(at, at[1:])]  # noqa: B905
    return round(1e3 * statistics.median(steps[len(steps) // 3 :]), 1) if len(steps) > 2 else None


def table(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Rows of what, figure, and per cent of its floor (or what else there is to say)."""
    env, rows = found.get("env", {}), []
    card = env.get("card", {})
    rows.append(
        ("card", card.get("name", "none"), f"{card.get('gib', '-')} GiB, sm {card.get('capability', '-')}")
    )
    for name, value in env.get("ceilings", {}).items():
        rows.append((f"ceiling: {name}", str(value), ""))
    for name in ("correct", "kernels", "step", "graphs"):
        for key, value in found.get(name, {}).items():
            if isinstance(value, dict) and "figure" in value:
                share = f"{100 * value['of_floor']:.0f} % of the floor" if value.get("of_floor") else ""
                rows.append((f"{name}: {key}", value["figure"], share or value.get("note", "")))
    for name, part in found.items():
        for row in part.get("rows", ()) if name.startswith("bench") else ():
            took = row["seconds_median"]
            memory = f"{(row['peak_memory_bytes'] or 0) / 1e9:.1f} GB"
            label = f"{name}: {row['path']} {row['height']} px"
            rows.append((label, f"{1e3 * took:.1f} ms" if took else row["status"][:60], memory))
    for stage, milliseconds in found.get("training", {}).items():
        rows.append((f"training step: {stage}", f"{milliseconds} ms", ""))
    for seconds in found.get("generate", {}).get("seconds_a_picture", ()):
        rows.append(("l2p generate, a picture", f"{seconds:.2f} s", "to 8 bits, without the PNG"))
    rows += [(f"section {n}", r["status"], f"{r['seconds']} s") for n, r in found["sections"].items()]
    return rows


def report(found: dict[str, Any], out: Path) -> tuple[Path, str]:
    """Writes `CARD.json` and `CARD.md`; returns the latter's path and the table as text."""
    from l2p.files import write_json, write_text

    out.mkdir(parents=True, exist_ok=True)
    card = found.get("env", {}).get("card", {}).get("name") or "cpu-dry-run"
    stem = re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")
    rows = table(found)
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    versions = ", ".join(f"{k} {v}" for k, v in found.get("env", {}).get("versions", {}).items())
    body = ["| what | figure | |", "| --- | --- | --- |", *(f"| {' | '.join(row)} |" for row in rows)]
    write_json(out / f"{stem}.json", found)
    write_text(
        out / f"{stem}.md", f"# {card}\n\nBy `make gpu-proof`; {versions}.\n\n" + "\n".join(body) + "\n"
    )
    return out / f"{stem}.md", "\n".join(lines)


def environment(work: Path, wheels: Path | None) -> dict[str, str]:
    """Of the sections: offline, caches in `work`, and the wheels of a folder first on the path."""
    root = Path(__file__).parents[2]
    paths = [str(root), str(root / "kernels"), os.environ.get("PYTHONPATH", "")]
    if wheels is not None:
        site = work / "site"
        files = [str(path) for path in sorted(wheels.glob("*.whl"))]
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-index",
            "--no-deps",
            "--target",
            str(site),
            *files,
        ]
        if files and subprocess.run(pip).returncode == 0:
            paths.insert(0, str(site))
        else:
            print(f"no wheel of {wheels} was installed: going on without", file=sys.stderr)
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRITON_CACHE_DIR": str(work / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m l2p.bench.gpu_proof", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu for a dry run (cuda)")
    parser.add_argument("--small", action="store_true", help="tiny sizes")
    parser.add_argument("--only", default="", help="names of sections, with commas between")
    parser.add_argument("--budget", type=float, default=470, metavar="SECONDS", help="of all sections (470)")
    parser.add_argument("--out", type=Path, default=Path("docs/gpu"), metavar="FOLDER", help="(docs/gpu)")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="packages that this Python lacks")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="l2p-gpu-") as folder:
        work = Path(folder)
        todo = sections(options.device, options.small, work)
        names = [section.name for section in todo]
        wanted = [name for name in options.only.split(",") if name] or names
        if unknown := set(wanted) - set(names):
            parser.error(f"no section {', '.join(sorted(unknown))}, expected some of {', '.join(names)}")
        todo = [section for section in todo if section.name in wanted]
        done = run(todo, work, options.budget, environment(work, options.wheels))
        path, text = report(gather(work, done), options.out)
    print(text)
    print(f"written to {path} and {path.with_suffix('.json')}")
    return int(all(row["status"] != "ok" for row in done.values()))


if __name__ == "__main__":
    sys.exit(main())
