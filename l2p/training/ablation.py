"""An ablation: the same recipe run a row at a time with one thing changed, and one table of what came out.

Each row is a run of `l2p distill` in a folder of its own, so whatever stopped goes on with the same command. All rows
share the teacher's evaluation pictures, and those of one seed the corpus and whatever stages are the same for them; every
row has the base recipe's budget unless it says otherwise. Processes that run different rows share one table.
"""

from __future__ import annotations

import csv
import io
import re
import statistics
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from l2p import distributed
from l2p.config import Seed, Text, config, shown
from l2p.errors import UserError
from l2p.files import check_writable, write_text
from l2p.locks import InUse, locked
from l2p.recipe import REQUIRED, Recipe, check_trust, load_recipe
from l2p.training import distill
from l2p.training.engine.progress import CONSOLE
from l2p.training.run_folder import RunFolder

# What a table shows: column -> (key in a method's figures, digits).
FIGURES = {
    "frechet": ("frechet", 2),
    "encoder": ("frechet_encoder", 3),
    "frechet_to_teacher": ("frechet_to_teacher", 2),
    "kernel": ("kernel", 3),
    "attributes": ("attribute_accuracy", 4),
    "recall": ("recall", 3),
    "psnr": ("psnr_to_teacher", 2),
    "detail": ("detail_ratio", 3),
    "seam": ("seam_ratio", 3),
}
COLUMNS = ("row", "seed", *FIGURES, "latency_ms", "training_seconds", "steps", "pairs", "error")
SHARED = ("lift", "transfer", "one_step", "match")
TABLE_LOCK, TABLE_SECONDS = ".table.lock", 300.0
RETRY_SECONDS = 5.0
ROW = re.compile(r"\w[\w.+=-]{0,99}")
BASELINES = ("real", "vae", "teacher", "teacher_one_step", "lift")


@config
class Row:
    """What one row changes, on which seeds, and what it is there to show."""

    overrides: list[str] = field(default_factory=list)
    seeds: Annotated[list[Seed], Field(min_length=1)] = field(default_factory=lambda: [0])
    about: str = ""


@config
class AblationRecipe:
    """Everything `l2p ablate` needs to know."""

    name: Text = REQUIRED
    output_dir: Text = "runs/${name}"
    recipe: Text = REQUIRED
    overrides: list[str] = field(default_factory=list)
    rows: dict[str, Row] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """One run of one row."""

    row: str
    seed: int
    recipe: Recipe


def plan(
    config: AblationRecipe,
    path: Path,
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> list[Task]:
    """All runs in their order, each proven to be possible as far as that is known before anything is loaded.

    Args:
        path: of the ablation's file, beside which the base recipe lies.
        overrides: of every row, after the row's own.
        only: rows to take; all if empty.
        seeds: of each row's those to take; all if empty.

    Raises:
        UserError: no rows, an unknown one, seeds that no row has, or a mistake in one, by its name.
    """
    if not config.rows:
        raise UserError(f"{path}: rows is empty, expected a name and its overrides for each")
    for name in config.rows:
        if not ROW.fullmatch(name):  # it becomes the name of a folder
            raise UserError(
                f"{path}: a row is called {shown(name)}, expected a plain name of letters, digits and . _ + = -"
            )
    for name in only:
        if name not in config.rows:
            raise UserError(f"{path} has no row {name!r}: expected some of {', '.join(config.rows)}")
    base, out, tasks = path.parent / config.recipe, Path(config.output_dir), []
    for name, row in config.rows.items():
        for seed in row.seeds if not only or name in only else ():
            shared = [f"name={name}-{seed}", f"output_dir={out / name}-{seed}", f"seed={seed}"]
            shared += [f"corpus.path={out}/corpus-{seed}", f"evaluation.cache={out}/teacher"]
            try:
                recipe = load_recipe(base, [*shared, *config.overrides, *row.overrides, *overrides])
                check_trust(recipe, overrides)
                distill.check(recipe)
            except UserError as error:
                raise UserError(f"{path}: row {name}: {error}") from None
            if not seeds or seed in seeds:
                tasks.append(Task(name, seed, recipe))
    if not tasks:
        raise UserError(f"{path}: none of these rows has the seeds {', '.join(map(str, seeds))}")
    return tasks


def run(tasks: Sequence[Task], config: AblationRecipe, progress: bool = True) -> Path:
    """Run what is not done yet, and write ``results.csv`` and ``table.md`` after each run; returns the folder.

    A run that fails as a user's mistake would (a loss that is not finite, above all) becomes a row that says so. A run
    whose folder or corpus another process holds comes later, when that one has left it.

    Raises:
        UserError: several processes launched together; a folder that cannot be written.
        KeyboardInterrupt: Ctrl-C; what is done is kept.
    """
    if distributed.place().size > 1:
        raise UserError(
            "an ablation runs its rows one after the other in one process: start it without torchrun or srun; "
            "several `l2p ablate` commands may share one table"
        )
    out = Path(config.output_dir)
    check_writable(out)
    waiting, refused, announced = deque(enumerate(tasks)), 0, set()
    while waiting:
        number, task = waiting.popleft()
        if progress and number not in announced:
            CONSOLE.print(
                f"[{number + 1}/{len(tasks)}] {task.row}, seed {task.seed}", highlight=False, markup=False
            )
        try:
            rows = _rows(task, out, progress)
        except InUse as error:
            if number not in announced:
                CONSOLE.print(f"{task.row} waits: {error.who}", highlight=False, markup=False)
            announced.add(number)
            waiting.append((number, task))
            refused += 1
            if refused >= len(waiting):  # nothing else to do
                time.sleep(RETRY_SECONDS)
                refused = 0
            continue
        refused = 0
        _add(out, rows, config)
    return out


def _rows(task: Task, out: Path, progress: bool) -> list[dict[str, str]]:
    """Do one run; the rows that it adds. Raises InUse where another process has what it needs."""
    try:
        _share(task, out)
        result = distill.run(task.recipe, progress=progress)
    except InUse:
        raise
    except UserError as error:
        CONSOLE.print(f"{task.row} failed: {error}", style="yellow", highlight=False, markup=False)
        return [dict.fromkeys(COLUMNS, "") | {"row": task.row, "seed": str(task.seed), "error": str(error)}]
    return [*_baselines(task, result["metrics"]), _row(task, result)]


def _add(out: Path, rows: Sequence[dict[str, str]], config: AblationRecipe) -> None:
    """Add rows to the table that is there, in place of those of the same name and seed."""
    with locked(
        out, "output_dir", TABLE_LOCK, wait=TABLE_SECONDS
    ):  # read, changed and written by one at a time
        found = {(row["row"], row["seed"]): row for row in [*read_results(out / "results.csv"), *rows]}
        _write(out, found.values(), config)


def _share(task: Task, out: Path) -> None:
    """Take the first stages over from runs of other rows that had the same, so that none is trained twice."""
    own = RunFolder(task.recipe.output_dir, asdict(task.recipe), distill.inputs_of(task.recipe))
    others = [RunFolder(path.parent, {}) for path in sorted(out.glob(f"*-{task.seed}/recipe.yaml"))]
    with own.locked():
        own.claim()
        for stage in SHARED:
            for other in others:
                if other.path != own.path and own.take_over(stage, other):
                    break


def _row(task: Task, result: Mapping[str, Any]) -> dict[str, str]:
    stages = [summary for name, summary in result["stages"].items() if name in distill.TRAINING]
    seconds = sum(summary["figures"]["seconds"] for summary in stages)
    row = _figures(task.row, task.seed, result["metrics"]["student"])
    row |= {"training_seconds": f"{seconds:.0f}", "steps": str(sum(s["figures"]["steps"] for s in stages))}
    return row | {"pairs": str(task.recipe.corpus.num_pairs)}


def _baselines(task: Task, metrics: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """The rows that are the same for every row of a seed: the floor, the ceiling, and the start."""
    for method in BASELINES:
        if method in metrics:
            yield _figures(f"({method})", task.seed, metrics[method])


def _figures(row: str, seed: int, method: Mapping[str, Any]) -> dict[str, str]:
    shown = {column: _shown(method.get(key), digits) for column, (key, digits) in FIGURES.items()}
    latency = _shown(method.get("latency_ms"), 1)
    return dict.fromkeys(COLUMNS, "") | {"row": row, "seed": str(seed), "latency_ms": latency, **shown}


def _shown(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def read_results(path: Path) -> list[dict[str, str]]:
    """Rows of a ``results.csv``; [] where there is none, or one of other columns."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:  # texts may hold any line's end
        rows = list(csv.DictReader(file))
    return rows if rows and tuple(rows[0]) == COLUMNS else []


def _write(out: Path, rows: Any, config: AblationRecipe) -> None:
    order = {name: i for i, name in enumerate([*(f"({p})" for p in BASELINES), *config.rows])}
    rows = sorted(rows, key=lambda row: (order.get(row["row"], len(order)), int(row["seed"])))
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(out / "results.csv", text.getvalue())
    write_text(out / "table.md", table(rows, {name: row.about for name, row in config.rows.items()}))


def table(rows: Sequence[Mapping[str, str]], about: Mapping[str, str]) -> str:
    """A Markdown table, a line a row: the mean over seeds, and their spread (largest less smallest) where there are several."""
    columns = [*FIGURES, "latency_ms", "training_seconds"]
    lines = [f"| row | seeds | {' | '.join(c.replace('_', ' ') for c in columns)} |"]
    lines.append("| --- | " + "--- | " * (len(columns) + 1))
    for name in dict.fromkeys(row["row"] for row in rows):
        same = [row for row in rows if row["row"] == name]
        cells = [_cell([row[column] for row in same if row[column]]) for column in columns]
        failed = next((row["error"] for row in same if row["error"]), "")
        title = f"{name}: {about[name]}" if about.get(name) else name
        if failed:
            title += f" (failed: {failed})"
        lines.append(f"| {title.replace('|', '/')} | {len(same)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[str]) -> str:
    if not values:
        return "-"
    digits = len(values[0].partition(".")[2])
    mean = f"{statistics.fmean(map(float, values)):.{digits}f}"
    spread = max(map(float, values)) - min(map(float, values))
    return mean if len(values) == 1 else f"{mean} ({spread:.{digits}f})"
