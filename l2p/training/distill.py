"""`run(recipe)`: a latent teacher goes in, a one-step pixel student and its report come out.

Read top to bottom, this is the whole of it: lift -> corpus -> transfer -> one_step -> match -> student -> evaluation.
Each stage that is done left a marker and is skipped; the one under way goes on from its checkpoint.
"""

from __future__ import annotations

import errno
import shutil
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from l2p import distributed, runtime
from l2p.artifacts import hash_file, hash_model
from l2p.corpus import check_solver, prompts_for
from l2p.corpus.prompts import fingerprint as prompts_fingerprint
from l2p.errors import UserError, warn
from l2p.evaluation.clip import check_clip
from l2p.files import atomic_path, check_could_write, read_json, remove, write_text
from l2p.hub.client import HubName, cached_commit
from l2p.objectives import check_combinations, check_objectives
from l2p.recipe import Recipe
from l2p.seeds import SEEDS, check_seeds
from l2p.students.lora import check_peft
from l2p.teachers import hub_name, is_local_teacher, teacher_sha256
from l2p.training.advice import advised
from l2p.training.data import shares_of
from l2p.training.engine.loggers import check_loggers
from l2p.training.engine.progress import CONSOLE
from l2p.training.engine.sharded import load_checkpoint
from l2p.training.preflight import check_build
from l2p.training.run_folder import TINY, RunFolder
from l2p.training.stages import STAGES, TRAINING, Run

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


def run(recipe: Recipe, resume: str = "auto", progress: bool = True) -> dict[str, Any]:
    """Distil as the recipe says, from wherever an earlier run of it stopped.

    Of several processes (see `l2p.distributed`) all train, and the first does the rest while the others wait.

    Args:
        resume: "auto" goes on where the folder stands; "never" removes what earlier runs left and starts anew; the name
            of a stage redoes it and what came after it; a path goes on from that checkpoint and redoes what came after.
        progress: bars and a line a stage on stderr; warnings are printed in any case.

    Returns:
        output_dir, student and report (paths), metrics, stages (name -> summary), warnings, seconds.

    Raises:
        UserError: a mistake in the recipe, a folder in use or made with other settings, a training that diverged, a
            full disk, memory that ran out.
        KeyboardInterrupt: Ctrl-C; what is done is kept, and a rerun goes on from there.
    """
    check(recipe)
    check_build(recipe)
    for source in (recipe.corpus.prompts, recipe.evaluation.prompts):
        if source is not None:  # before a teacher of many gigabytes is fetched
            prompts_for(source, range(1))
    folder = RunFolder(recipe.output_dir, asdict(recipe), inputs_of(recipe))
    here = distributed.place()
    runtime.setup(
        recipe.threads or (None if here.size == 1 else runtime.threads_of(here.local_size)), recipe.seed
    )
    device = runtime.pick_device(recipe.device, here.local_rank if here.size > 1 else None)
    dtype = runtime.pick_dtype(recipe.dtype, device)
    if here.size > 1 and recipe.parallel.strategy == "fsdp" and dtype == torch.float16:
        raise UserError("parallel.strategy=fsdp has no loss scale for fp16: set dtype to bf16 or fp32")
    context = Run(recipe, folder, device, dtype, progress and here.rank == 0)
    try:
        with distributed.process_group(device, recipe.parallel.timeout_minutes):
            with folder.locked() if here.rank == 0 else nullcontext():
                return _run(context, resume)
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise UserError(
            f"no space left for {folder.path}: free some and run again, it goes on from here"
        ) from error


def check(recipe: Recipe) -> None:
    """Find what can be found wrong without loading anything. Raises UserError."""
    check_stages(recipe)
    check_could_write(recipe.output_dir)
    teacher = recipe.teacher.path
    if (
        not is_local_teacher(teacher) and Path(teacher) != Path(recipe.output_dir) / TINY[0]
    ):  # still to be written
        try:
            hub_name(teacher)
        except UserError as error:
            raise UserError(f"teacher.path: {error}") from None
    check_loggers(recipe.logging)
    if recipe.student.lora is not None:
        check_peft()
    if recipe.evaluation.clip is not None:
        check_clip(recipe.evaluation.clip)
    if recipe.evaluation.prompts is not None and not recipe.evaluation.prompts.startswith("hub:"):
        prompts_for(recipe.evaluation.prompts, range(1))


def check_stages(recipe: Recipe) -> None:
    """What of `check` asks nothing of this machine: a plan is made where the run's packages need not be."""
    for name in TRAINING:
        config = STAGES[name].config(recipe)
        if config.enabled:
            try:
                check_combinations(config, recipe)
                shares_of(config.batch_size, config.accumulate)
            except UserError as error:
                raise UserError(f"{name}: {error}") from None
    check_solver(recipe.corpus, recipe.teacher.num_inference_steps)
    check_seeds("corpus", recipe.seed, recipe.corpus.num_pairs, "seed")
    first = SEEDS["evaluation"].start + recipe.evaluation.seed
    check_seeds("evaluation", first, recipe.evaluation.num_images, "evaluation.seed")


def plan(recipe: Recipe) -> list[dict[str, Any]]:
    """What `run` would do, without doing it: a row a stage with `stage`, `state` (done, started, new, off), `work`."""
    check(recipe)
    check_build(recipe)
    if not recipe.corpus.prompts.startswith("hub:") and not _is_readable(recipe.corpus.prompts):
        warn(
            f"corpus.prompts={recipe.corpus.prompts} cannot be read yet, a run needs it"
        )  # a recipe may be looked at before
    folder = RunFolder(recipe.output_dir, asdict(recipe), inputs_of(recipe, fetch=False))
    folder.check_ours()
    folder.pinned_teacher(recipe.teacher.path, recipe.teacher.revision, fetch=False)
    work = {
        "lift": f"fit on {recipe.lift.num_images} pictures",
        "corpus": f"{recipe.corpus.num_pairs} pairs of {recipe.corpus.num_inference_steps} teacher steps",
        "student": "write the averaged student",
        "evaluation": f"{recipe.evaluation.num_images} pictures of each path",
    }
    rows = []
    done = folder.done(
        [name for name, stage in STAGES.items() if stage.enabled(recipe)], TRAINING, ("student",)
    )
    for stage in STAGES:
        if stage in TRAINING:
            config = STAGES[stage].config(recipe)
            terms = " + ".join(check_objectives(config.objectives)) if config.enabled else ""
            work[stage] = f"{config.steps} steps of {config.batch_size} pictures, {terms}"
        started = bool(folder.checkpoints(stage))
        state = "done" if done.get(stage) else "started" if started else "new"
        rows.append(
            {"stage": stage, "state": state if STAGES[stage].enabled(recipe) else "off", "work": work[stage]}
        )
    return rows


def _run(context: Run, resume: str) -> dict[str, Any]:
    recipe, folder = context.recipe, context.folder
    started_at = time.monotonic()
    enabled = [name for name, stage in STAGES.items() if stage.enabled(recipe)]

    def prepare() -> tuple[dict[str, Any], str | None]:
        folder.claim()
        if resume == "never":
            folder.clear()
        commit = folder.pinned_teacher(recipe.teacher.path, recipe.teacher.revision)
        if resume in STAGES:
            _go_back_to_stage(resume, folder)
        elif resume not in ("auto", "never"):
            _go_back_to(Path(resume), folder, recipe)
        found = folder.done(enabled, TRAINING, ("student",))
        _save_recipe(folder)
        return found, commit

    summaries, commit = distributed.run_on_rank0(prepare)
    if commit is not None:
        folder.inputs["teacher.sha256"] = commit  # in all processes
        context.recipe = recipe = replace(recipe, teacher=replace(recipe.teacher, revision=commit))
    previous: str | None = None
    for stage in enabled:
        if summaries[stage] is not None:
            _tell(context, f"{stage}: done before, {_in_words(summaries[stage])}")
        else:
            summaries[stage] = _work(context, stage, previous)
            _tell(context, f"{stage}: {_in_words(summaries[stage])}")
            for warning in summaries[stage]["warnings"] if distributed.rank() == 0 else ():
                CONSOLE.print(f"warning: {warning}", style="yellow", highlight=False, soft_wrap=True)
        if stage in TRAINING:
            previous = stage
    return {
        "output_dir": str(folder.path),
        "student": str(folder.path / "student"),
        "report": str(folder.path / "report.html"),
        "metrics": _metrics(folder.path / "metrics.json"),
        "stages": summaries,
        "warnings": [warning for summary in summaries.values() for warning in summary["warnings"]],
        "seconds": round(time.monotonic() - started_at, 1),
    }


def inputs_of(recipe: Recipe, fetch: bool = True) -> dict[str, str | None]:
    """Hashes of the files, folders and models that a recipe names, by the key that names them.

    Args:
        fetch: whether prompts on the Hub may be fetched to be hashed; else they are None.
    """
    prompts = {"corpus.prompts": recipe.corpus.prompts, "evaluation.prompts": recipe.evaluation.prompts}
    head, filters = recipe.student.head.pretrained, recipe.corpus.filters
    clip = recipe.evaluation.clip
    hub = None if clip is None or Path(clip).is_dir() else HubName.parse(clip)
    found = {
        "teacher": teacher_sha256(recipe.teacher.path, recipe.teacher.revision),
        **{
            key: prompts_fingerprint(source)
            for key, source in prompts.items()
            if source is not None and (fetch or _is_readable(source))
        },
        "student.head.pretrained": hash_model(head) if head and Path(head).is_dir() else None,
        "corpus.filters.blocked_file": _hash_if_there(filters and filters.blocked_file),
        "evaluation.clip": hash_model(clip) if clip and hub is None else hub and cached_commit(hub),
    }
    return {f"{key}.sha256": value for key, value in found.items() if value is not None}


def _is_readable(source: str) -> bool:
    """Whether prompts are here, and not on the Hub or still to be written."""
    try:
        return not source.startswith("hub:") and bool(prompts_for(source, range(1)))
    except UserError:
        return False


def _hash_if_there(path: str | None) -> str | None:
    return hash_file(path) if path and Path(path).is_file() else None


def _metrics(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except UserError as error:
        raise UserError(f"{error}: delete this file and run again") from None


def _go_back_to_stage(stage: str, folder: RunFolder) -> None:
    """Forget a stage and all that came after it: they are done anew, on what came before."""
    folder.forget_from(stage)
    for later in folder.stages[folder.stages.index(stage) :]:
        for path in folder.checkpoints(later):
            remove(path)


def _go_back_to(checkpoint: Path, folder: RunFolder, recipe: Recipe) -> None:
    """Make a checkpoint the present one of its stage, and forget that stage's end and all that came after."""
    tag = load_checkpoint(checkpoint, only=())["l2p"]
    stage = tag["stage"]
    if not STAGES[stage].enabled(recipe):
        raise UserError(
            f"{checkpoint} is of the {stage} stage, which this recipe turns off ({stage}.enabled=false)"
        )
    folder.check_settings(stage, tag["settings"])
    folder.forget_from(stage)
    for later in TRAINING[TRAINING.index(stage) + 1 :]:
        for path in folder.checkpoints(later):
            remove(path)
    own = folder.checkpoint(stage, checkpoint.is_dir())
    if not own.exists() or not checkpoint.samefile(own):
        with atomic_path(own) as partial:
            (shutil.copytree if checkpoint.is_dir() else shutil.copyfile)(checkpoint, partial)
    for path in folder.checkpoints(stage):
        if path != own:
            remove(path)


@advised
def _work(context: Run, stage: str, previous: str | None) -> dict[str, Any]:
    """Do one stage, from its checkpoint where it has one, and mark it done; `previous` is the training stage before it.

    Returns:
        the stage's summary.
    """
    started, work = time.monotonic(), STAGES[stage]

    def finish(figures: dict[str, Any], warnings: list[str]) -> dict[str, Any]:
        seconds = max(time.monotonic() - started, figures.get("seconds", 0.0))
        return context.folder.finish(stage, seconds, figures, warnings)

    if work.trains:
        trained = work.run(context, previous)
        return distributed.run_on_rank0(lambda: finish(*trained))
    return distributed.run_on_rank0(lambda: finish(*work.run(context, previous)))


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
