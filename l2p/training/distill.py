"""`run(recipe)`: a latent teacher goes in, a one-step pixel student and its report come out.

Read top to bottom, this is the whole of it: lift -> corpus -> transfer -> one_step -> match -> student -> evaluation.
Each stage that is done left a marker and is skipped; the one under way goes on from its checkpoint.
"""

from __future__ import annotations

import errno
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from l2p import runtime
from l2p.corpus import check_solver, prompts_for
from l2p.errors import UserError
from l2p.evaluation.evaluate import EVALUATION_SEEDS
from l2p.files import atomic_path, read_json, write_text
from l2p.objectives import check_combinations, check_objectives
from l2p.recipe import Recipe
from l2p.students.lora import check_peft
from l2p.training import stages
from l2p.training.advice import advised
from l2p.training.callbacks import load_checkpoint
from l2p.training.fit import check_loggers
from l2p.training.progress import CONSOLE
from l2p.training.run_folder import STAGES, RunFolder
from l2p.training.stages import Run

TRAINING = ("transfer", "one_step", "match")
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


def run(recipe: Recipe, resume: str = "auto", progress: bool = True) -> dict[str, Any]:
    """Distil as the recipe says, from wherever an earlier run of it stopped.

    Args:
        resume: "auto" goes on where the folder stands; "never" removes what earlier runs left and starts anew;
            a path goes on from that checkpoint and redoes what came after it.
        progress: bars and a line a stage on stderr; warnings are printed in any case.

    Returns:
        output_dir, student and report (paths), metrics, stages (name -> summary), warnings, seconds.

    Raises:
        UserError: a mistake in the recipe, a folder in use or made with other settings, a training that diverged, a
            full disk, memory that ran out.
        KeyboardInterrupt: Ctrl-C; what is done is kept, and a rerun goes on from there.
    """
    check(recipe)
    for source in (recipe.corpus.prompts, recipe.evaluation.prompts):
        if source is not None:  # before a teacher of many gigabytes is fetched
            prompts_for(source, range(1))
    folder = RunFolder(recipe.output_dir, asdict(recipe))
    runtime.setup(recipe.threads, recipe.seed)
    device = runtime.pick_device(recipe.device)
    context = Run(recipe, folder, device, runtime.pick_dtype(recipe.dtype, device), progress)
    try:
        with folder.locked():
            return _run(context, resume)
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise UserError(
            f"no space left for {folder.path}: free some and run again, it goes on from here"
        ) from error


def check(recipe: Recipe) -> None:
    """Find what can be found wrong without loading anything. Raises UserError."""
    for name in TRAINING:
        config = getattr(recipe, name)
        if config.enabled:
            try:
                check_combinations(config, recipe)
            except UserError as error:
                raise UserError(f"{name}: {error}") from None
    check_loggers(recipe.logging)
    if recipe.student.lora is not None:
        check_peft()
    check_solver(recipe.corpus, recipe.teacher.num_inference_steps)
    if recipe.seed + recipe.corpus.num_pairs > EVALUATION_SEEDS:
        raise UserError(
            f"seed={recipe.seed} with {recipe.corpus.num_pairs} pairs reaches into the evaluation's seeds, from "
            f"{EVALUATION_SEEDS} on: the student would be judged on what it was trained on; set a smaller seed"
        )


def plan(recipe: Recipe) -> list[dict[str, Any]]:
    """What `run` would do, without doing it: a row a stage with `stage`, `state` (done, started, new, off), `work`."""
    check(recipe)
    folder = RunFolder(recipe.output_dir, asdict(recipe))
    work = {
        "lift": f"fit on {recipe.lift.num_images} pictures",
        "corpus": f"{recipe.corpus.num_pairs} pairs of {recipe.corpus.num_inference_steps} teacher steps",
        "student": "write the averaged student",
        "evaluation": f"{recipe.evaluation.num_images} pictures of each path",
    }
    rows = []
    for stage in STAGES:
        config = getattr(recipe, stage, None)
        if stage in TRAINING:
            terms = " + ".join(check_objectives(config.objectives)) if config.enabled else ""
            work[stage] = f"{config.steps} steps of {config.batch_size} pictures, {terms}"
        started = folder.checkpoint(stage).is_file()
        state = "done" if folder.summary(stage) else "started" if started else "new"
        rows.append(
            {"stage": stage, "state": state if _enabled(recipe, stage) else "off", "work": work[stage]}
        )
    return rows


def _run(context: Run, resume: str) -> dict[str, Any]:
    recipe, folder = context.recipe, context.folder
    started_at = time.monotonic()
    if resume == "never":
        folder.clear()
    elif resume != "auto":
        _go_back_to(Path(resume), folder, recipe)
    enabled = [stage for stage in STAGES if _enabled(recipe, stage)]
    summaries = {stage: folder.summary(stage) for stage in enabled}
    _save_recipe(folder)

    previous: str | None = None
    for stage in enabled:
        if summaries[stage] is not None:
            _tell(context, f"{stage}: done before, {_in_words(summaries[stage])}")
        else:
            started = time.monotonic()
            figures, warnings = _work(context, stage, previous)
            seconds = max(time.monotonic() - started, figures.get("seconds", 0.0))
            summaries[stage] = folder.finish(stage, seconds, figures, warnings)
            _tell(context, f"{stage}: {_in_words(summaries[stage])}")
            for warning in warnings:
                CONSOLE.print(f"warning: {warning}", style="yellow", highlight=False, soft_wrap=True)
        if stage in TRAINING:
            previous = stage
    return {
        "output_dir": str(folder.path),
        "student": str(folder.path / "student"),
        "report": str(folder.path / "report.html"),
        "metrics": read_json(folder.path / "metrics.json"),
        "stages": summaries,
        "warnings": [warning for summary in summaries.values() for warning in summary["warnings"]],
        "seconds": round(time.monotonic() - started_at, 1),
    }


def _go_back_to(checkpoint: Path, folder: RunFolder, recipe: Recipe) -> None:
    """Make a checkpoint the present one of its stage, and forget that stage's end and all that came after."""
    tag = load_checkpoint(checkpoint)["l2p"]
    stage = tag["stage"]
    if not _enabled(recipe, stage):
        raise UserError(
            f"{checkpoint} is of the {stage} stage, which this recipe turns off ({stage}.enabled=false)"
        )
    folder.check_settings(stage, tag["settings"])
    folder.forget_from(stage)
    for later in TRAINING[TRAINING.index(stage) + 1 :]:
        folder.checkpoint(later).unlink(missing_ok=True)
    if not folder.checkpoint(stage).exists() or not checkpoint.samefile(folder.checkpoint(stage)):
        with atomic_path(folder.checkpoint(stage)) as partial:
            shutil.copyfile(checkpoint, partial)


@advised
def _work(context: Run, stage: str, previous: str | None) -> tuple[dict[str, Any], list[str]]:
    """Do one stage, from its checkpoint where it has one; `previous` is the training stage before it."""
    if stage in TRAINING:
        checkpoint = context.folder.checkpoint(stage)
        return stages.train(context, stage, previous, checkpoint if checkpoint.is_file() else None)
    if stage == "student":
        return stages.write_the_student(context, previous)
    return {
        "lift": stages.fit_the_lift,
        "corpus": stages.draw_the_corpus,
        "evaluation": stages.evaluate_the_student,
    }[stage](context)


def _enabled(recipe: Recipe, stage: str) -> bool:
    return stage not in TRAINING or getattr(recipe, stage).enabled


def _save_recipe(folder: RunFolder) -> None:
    from omegaconf import OmegaConf

    write_text(folder.path / "recipe.yaml", OmegaConf.to_yaml(OmegaConf.create(folder.recipe)))


def _in_words(summary: dict[str, Any]) -> str:
    """A stage's summary in half a line."""
    figures, seconds = summary["figures"], f"{summary['seconds']:.0f} s"
    if summary["stage"] == "lift":
        bounds = f"least squares {figures['r2_lstsq']:.3f}, PCA {figures['r2_pca']:.3f}"
        return f"explains {figures['r2']:.3f} of the pixels ({bounds}), {seconds}"
    if summary["stage"] == "corpus":
        return f"{figures['num_pairs']} pairs, {seconds}"
    if summary["stage"] in TRAINING:
        return f"{figures['psnr_before']:.1f} -> {figures['psnr']:.1f} dB to the teacher on held-out pairs, {seconds}"
    return seconds


def _tell(context: Run, line: str) -> None:
    if context.progress:
        CONSOLE.print(line, highlight=False, soft_wrap=True)
