"""What each stage does: fit the lift, draw the corpus, train, write the student.

A stage takes the `Run`, leaves its files, and returns its figures and the warnings a person should read. When to run
which, and what to skip, is decided in `distill`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from l2p import distributed, flow
from l2p.artifacts import differences
from l2p.corpus import CorpusDataset, prompts_for, synthesize
from l2p.corpus.prompt_list import held_out_prompts
from l2p.corpus.prompts import LANDSCAPES
from l2p.corpus.synthesis import LIFT, training_prompts
from l2p.errors import UserError
from l2p.images import from_uint8
from l2p.landscapes import render_batch
from l2p.lift import Lift, fit_lift, fit_readout, neighbourhoods
from l2p.noise import pixel_noise
from l2p.objectives import build_objectives, networks_seen
from l2p.objectives.base import Batch
from l2p.patches import patchify
from l2p.recipe import HeadConfig, Recipe, StageConfig, StudentConfig
from l2p.runtime import autocast, frozen_dtype
from l2p.seeds import SEEDS
from l2p.students.build import from_teacher
from l2p.students.cores import core_class
from l2p.students.io import load_student, save_student
from l2p.students.lora import merged
from l2p.students.pipeline import StudentPipeline
from l2p.teachers import Teacher, load_teacher
from l2p.training.data import (
    DistillDataModule,
    PairNoise,
    held_out_batch,
    in_memory,
    shares_of,
    step_generator,
)
from l2p.training.engine.checkpoints import check_tag, load_averaged
from l2p.training.engine.fit import PRECISION, Job, fit
from l2p.training.engine.loggers import extra_loggers
from l2p.training.engine.progress import bar
from l2p.training.engine.strategies import shard_frozen, shard_student
from l2p.training.held_out import HeldOut
from l2p.training.module import DistillModule
from l2p.training.run_folder import READS, RunFolder

LIFT_SEED = SEEDS["lift"].start
MAX_TOKENS = 131_072  # tokens the lift is fitted on: enough for 768 dimensions many times over
CHUNK = 16  # pictures that the teacher encodes or draws at a time, where corpus.batch_size allows so many
MANY_STEPS = 8  # steps a many-step student is looked at with
WEAK_R2 = 0.5  # a lift that explains less of the pixels deserves a word; the bundled teacher's explains 0.8
WORSE = 0.2  # dB that a stage may lose before a word is said


@dataclass
class Run:
    """One distillation under way: recipe, folder, device, and what several stages share."""

    recipe: Recipe
    folder: RunFolder
    device: torch.device
    dtype: torch.dtype
    progress: bool = True

    @cached_property
    def teacher(self) -> Teacher:
        config = self.recipe.teacher
        dtype = frozen_dtype(self.device, self.dtype)
        return load_teacher(config.path, config.revision, device=self.device, dtype=dtype)

    @cached_property
    def lift(self) -> Lift:
        return Lift.load(self.folder.path / "lift.safetensors").to(self.device)

    @property
    def strategy(self) -> str:
        """How the training is divided: "one" process, "ddp", or "fsdp", where each process holds a share of the student."""
        return self.recipe.parallel.strategy if distributed.size() > 1 else "one"

    def loggers(self, stage: str) -> list[Any]:
        return extra_loggers(self.recipe.logging, self.folder.path, self.recipe.name, stage)

    def latest(self, stage: str) -> Path | None:
        """The checkpoint of a stage that there is, if any; the same in all processes."""
        return distributed.run_on_rank0(lambda: self.folder.latest(stage))

    @property
    def corpus_folder(self) -> Path:
        return corpus_folder(self.recipe)

    @cached_property
    def dataset(self) -> CorpusDataset | list[dict[str, Any]]:
        dataset = CorpusDataset(self.corpus_folder, self.recipe.corpus.num_pairs)
        if not dataset.has_latents:
            raise UserError(
                f"{self.corpus_folder} keeps no latents: draw it with corpus.latents=true to distil from it"
            )
        return in_memory(dataset)

    @property
    def num_held_out(self) -> int:
        """Pairs at the corpus' end kept from training: as many as the preview shows, at most an eighth of all."""
        return max(1, min(self.recipe.evaluation.preview_images, len(self.dataset) // 8))

    @cached_property
    def held_out(self) -> HeldOut:
        batch, prompts = held_out_batch(
            self.dataset, self.teacher, self.num_held_out, self.device, self.pair_noise
        )
        return HeldOut(batch, prompts, self.dtype)

    def data(self, stage: str, config: StageConfig) -> DistillDataModule:
        """Batches of a training stage."""
        return DistillDataModule(
            self.dataset,
            self.teacher,
            config.batch_size,
            self.recipe.seed,
            stage,
            config.steps,
            self.num_held_out,
            shares_of(config.batch_size, config.accumulate),
            noise=self.pair_noise,
        )

    @property
    def pair_noise(self) -> PairNoise:
        """What draws the noise of the corpus' pairs."""
        return PairNoise(self.recipe.corpus.noise_generator, self.lift.basis.to(self.device))

    def new_student(self, head: str | None = None) -> nn.Module:
        """The untrained student of the recipe, or the pure lift of the teacher under another kind of head."""
        config = self.recipe.student
        if head is not None:
            config = StudentConfig(
                config.patch_size, config.num_steps, core=config.core, head=HeadConfig(kind=head)
            )
        size = (self.recipe.teacher.height, self.recipe.teacher.width)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed)  # a fresh head is the same in every run, resumed or not
            guidance = self.recipe.teacher.guidance_scale
            generator = self.recipe.corpus.noise_generator
            student = from_teacher(self.teacher, self.lift, config, size, guidance, generator)
            # Whole, a student that needs sharding may be too large for the device.
            return student.to("cpu" if self.strategy == "fsdp" else self.device).float()

    def trained_student(self, stage: str | None, checkpoint: Path | None) -> nn.Module:
        """The averaged student that a training stage left in a checkpoint; the untrained one for None."""
        student = self.new_student()
        if checkpoint is not None:
            load_averaged(student, checkpoint)
        elif stage is not None:
            raise UserError(
                f"{self.folder.checkpoint(stage)} is gone, which later stages start from: rerun with --resume never"
            )
        return student


def corpus_folder(recipe: Recipe) -> Path:
    """Where a recipe's corpus lies."""
    return Path(recipe.corpus.path) if recipe.corpus.path else Path(recipe.output_dir) / "corpus"


def fit_the_lift(run: Run, previous: str | None = None) -> tuple[dict[str, Any], list[str]]:
    """Fit the lift on pictures and their latents; write it, the step-zero student, and what that one draws."""
    if run.recipe.student.core is None:  # a teacher without a core is told before anything is drawn
        core_class(type(run.teacher.transformer).__name__)
    lift = shared_lift(run) or new_lift(run)
    warnings = weakness(lift.r2, run.recipe.lift.min_r2)
    lift.save(run.folder.path / "lift.safetensors")
    run.lift = lift.to(run.device)
    figures = {name: getattr(lift, name) for name in ("r2", "r2_lstsq", "r2_pca", "scale")}
    figures |= {name: lift.fitted[name] for name in ("r2_readout", "num_tokens")}

    student = run.new_student(head="linear")
    save_student(student, run.folder.path / "lift", text_encoder=run.teacher.text_encoder)
    drawn = HeldOut(*_teacher_pictures(run, min(8, run.recipe.evaluation.preview_images)), run.dtype)
    steps = run.recipe.teacher.num_inference_steps
    one, many = drawn.show(student, [1, steps], run.folder.grid("lift"), label="lift")
    return {**figures, "psnr_one_step": one, "psnr_many_steps": many}, warnings


def shared_lift(run: Run) -> Lift | None:
    """The lift that coupled the pairs of a corpus that is there already, or None where there is none.

    Raises:
        UserError: it was fitted in another way than the recipe says, or on another teacher.
    """
    path = run.corpus_folder / LIFT
    if not path.is_file():
        return None
    lift = Lift.load(path)
    if lift.fitted is None:  # by a version that noted nothing
        return None
    wanted = _lift_settings(run)
    there = {name: value for name, value in lift.fitted.items() if name in wanted}
    if changed := differences(there, wanted):
        raise UserError(
            f"the pairs in {path.parent} were coupled by another lift ({changed}): choose another corpus.path"
        )
    return lift


def _lift_settings(run: Run) -> dict[str, Any]:
    """What a lift depends on."""
    lift, teacher = run.recipe.lift, run.recipe.teacher
    sizes = {"height": teacher.height, "width": teacher.width}
    return {"teacher_sha256": run.teacher.sha256, **sizes, "num_images": lift.num_images, "scale": lift.scale}


def new_lift(run: Run) -> Lift:
    """A lift fitted on the teacher's pictures, on the CPU. Raises UserError below `lift.min_r2`."""
    pixels, around = _lift_tokens(run)
    latents = around.unflatten(1, (-1, 9))[:, :, 4]  # the middle of each neighbourhood
    config = run.recipe.lift
    lift = fit_lift(pixels, latents, scale=config.scale)
    weakness(lift.r2, config.min_r2)
    readout, r2_readout = fit_readout(pixels, around)
    fitted = _lift_settings(run) | {"r2_readout": r2_readout, "num_tokens": len(pixels)}
    return replace(lift, readout=readout, fitted=fitted)


def weakness(r2: float, min_r2: float) -> list[str]:
    """What to say of a lift that explains the share `r2` of the pixels. Raises UserError below `min_r2`."""
    told = f"the lift explains {r2:.2f} of the pixels of this teacher's pictures"
    if r2 < min_r2:
        raise UserError(
            f"{told}, less than lift.min_r2={min_r2}: its latents are no linear image of pixels, so a student would "
            "start from noise; take another teacher, or lower lift.min_r2 to try all the same"
        )
    if r2 < WEAK_R2:
        return [f"{told}: the step-zero student draws little, expect a longer training"]
    return []


def _lift_tokens(run: Run) -> tuple[Tensor, Tensor]:
    """Pixel tokens [N, D] and latent neighbourhoods [N, 9 d] of `lift.num_images` pictures, on the CPU."""
    count, geometry = run.recipe.lift.num_images, run.teacher.geometry
    pixels, latents = [], []
    with bar("lift", count, run.progress) as shown:
        for images, z in _lift_pictures(run, count):
            x_tokens = patchify(images, geometry.token_pixels).flatten(0, 2).float().cpu()
            z_tokens = neighbourhoods(run.teacher.pack(z).float().cpu()).flatten(0, 2)
            keep = min(len(x_tokens), max(1, MAX_TOKENS * len(images) // count))
            chosen = torch.randperm(
                len(x_tokens), generator=step_generator(run.recipe.seed, "lift", len(pixels))
            )[:keep]
            pixels.append(x_tokens[chosen])
            latents.append(z_tokens[chosen])
            shown.update(min(count, len(pixels) * _chunk(run)))
    return torch.cat(pixels), torch.cat(latents)


def _chunk(run: Run) -> int:
    return min(CHUNK, run.recipe.corpus.batch_size)


@torch.no_grad()
def _lift_pictures(run: Run, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pictures [B, 3, H, W] and their latents: renders where the world is known, else what the teacher draws."""
    recipe, teacher = run.recipe, run.teacher
    height, width = recipe.teacher.height, recipe.teacher.width
    for start in range(0, count, _chunk(run)):
        indices = range(start, min(start + _chunk(run), count))
        seeds = [LIFT_SEED + i for i in indices]
        if recipe.corpus.prompts == LANDSCAPES:
            images = from_uint8(render_batch(seeds, height, width)).to(run.device)
            with autocast(run.device, run.dtype):
                yield images, teacher.encode(images)
        else:
            eps = flow.noise(seeds, *teacher.geometry.latent_shape(height, width)).to(run.device)
            z = _draw(run, eps, prompts_for(recipe.corpus.prompts, indices, LIFT_SEED))
            with autocast(run.device, run.dtype):
                yield teacher.decode(z).clamp(-1, 1), z


def _draw(run: Run, eps: Tensor, prompts: list[str]) -> Tensor:
    config = run.recipe.teacher
    conditioning = run.teacher.encode_prompts(prompts)
    with autocast(run.device, run.dtype):
        return run.teacher.sample(eps, conditioning, config.num_inference_steps, config.guidance_scale)


@torch.no_grad()
def _teacher_pictures(run: Run, count: int) -> tuple[Batch, list[str]]:
    """The teacher's pictures of coupled noise, for prompts that neither the corpus nor the evaluation has."""
    recipe, teacher = run.recipe, run.teacher
    prompts = prompts_for(recipe.corpus.prompts, range(count), LIFT_SEED)
    seeds = [LIFT_SEED + i for i in range(count)]
    size = (recipe.teacher.height, recipe.teacher.width)
    noise = pixel_noise(recipe.corpus.noise_generator, seeds, *size, run.lift.basis)
    eps = run.lift.noise_to_latent(patchify(noise, teacher.geometry.token_pixels))
    z = _draw(run, teacher.unpack(eps), prompts)
    with autocast(run.device, run.dtype):
        images = teacher.decode(z).clamp(-1, 1)
    return Batch(images=images, latents=z, noise=noise, conditioning=teacher.encode_prompts(prompts)), prompts


def draw_the_corpus(run: Run, previous: str | None = None) -> tuple[dict[str, Any], list[str]]:
    """Let the teacher draw what is still missing of the corpus."""
    draw_a_share(run, (0, 1))
    return {"num_pairs": len(run.dataset), "num_held_out": run.num_held_out}, []


def draw_a_share(run: Run, share: tuple[int, int]) -> None:
    """Draw what is missing of one process' share, (its number, how many there are), of the corpus."""
    recipe = run.recipe
    synthesize(
        run.teacher,
        run.lift,
        recipe.corpus,
        run.corpus_folder,
        height=recipe.teacher.height,
        width=recipe.teacher.width,
        guidance_scale=recipe.teacher.guidance_scale,
        teacher_steps=recipe.teacher.num_inference_steps,
        seed=recipe.seed,
        dtype=run.dtype,
        progress=run.progress,
        share=share,
    )


def train(run: Run, previous: str | None, *, stage: str) -> tuple[dict[str, Any], list[str]]:
    """Train one stage from its checkpoint or from where the previous one ended (its average); gate it on the held-out pictures.

    Args:
        previous: training stage to start from; None starts from the untrained student.
    """
    config, resume_from = STAGES[stage].config(run.recipe), run.latest(stage)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.recipe.seed)  # a critic starts alike in every run, resumed or not
        objectives = build_objectives(config.objectives, teacher=run.teacher, lift=run.lift)
    if run.recipe.student.gradient_checkpointing:
        for network in (n for o in objectives.values() for n in o.networks if n.spec.kind == "timm"):
            network.set_gradient_checkpointing()
    student = run.trained_student(previous, run.latest(previous) if previous else None)
    if run.strategy == "fsdp":
        shard_student(student, run.device, run.dtype)
    keeping = run.recipe.parallel.teacher
    if distributed.size() > 1 and keeping != "whole":
        run.held_out  # noqa: B018 - made while the teacher is whole
        shard_frozen(run.teacher.transformer, run.device, keeping == "offloaded")
        for network in {id(n.module): n for o in objectives.values() for n in o.networks}.values():
            if network.spec.kind in ("timm", "lpips"):
                network.module.to(run.device)
                shard_frozen(network.module, run.device, keeping == "offloaded", network.blocks)
    num_steps = run.recipe.student.num_steps
    if stage == "transfer":
        num_steps = max(MANY_STEPS, num_steps)
    before = run.held_out.measure(student, num_steps)
    data = run.data(stage, config)
    module = DistillModule(
        student, run.teacher, run.lift, objectives, config, stage, run.recipe.seed, data.shares
    )
    job = Job(
        run.folder,
        stage,
        run.device,
        PRECISION[run.dtype],
        run.strategy,
        config.accumulate,
        preview=lambda step: run.held_out.show(student, [num_steps], run.folder.preview(stage, step))[0],
        preview_every=config.preview_every,
        loggers=[] if distributed.rank() else run.loggers(stage),
        progress=run.progress,
        resume_from=resume_from,
    )
    if resume_from is not None:
        check_tag(run.folder, stage, resume_from)
    fitted = fit(module, data, job)
    load_averaged(student, run.latest(stage))
    student.to(run.device)  # Lightning leaves it on the CPU
    after = run.held_out.show(student, [num_steps], run.folder.grid(stage))[0]
    warnings = []
    if after < before - WORSE:
        warnings.append(
            f"{stage} moved the pictures away from the teacher's: {before:.1f} -> {after:.1f} dB on "
            f"{run.num_held_out} held-out pairs; look at {run.folder.grid(stage)}"
        )
    if distributed.size() > 1 and keeping != "whole":
        del run.teacher  # the next to ask loads a whole one
    return {"psnr_before": before, "psnr": after, "preview_steps": num_steps, **fitted}, warnings


def write_the_student(run: Run, last: str | None) -> tuple[dict[str, Any], list[str]]:
    """Save the averaged student of training stage `last` as a folder that needs nothing else to draw."""
    student = run.trained_student(last, run.folder.latest(last) if last else None)
    extra = {"recipe": run.folder.recipe, "stage": last}
    save_student(student, run.folder.path / "student", text_encoder=run.teacher.text_encoder, extra=extra)
    return {"parameters": sum(p.numel() for p in student.parameters()), "trained_by": last}, []


def evaluate_the_student(run: Run, previous: str | None = None) -> tuple[dict[str, Any], list[str]]:
    """Measure the student as it lies on the disk, beside its teacher; write metrics.json and report.html."""
    from l2p.evaluation.evaluate import evaluate
    from l2p.evaluation.report import write_report

    recipe, path = run.recipe, run.folder.path
    pipeline = StudentPipeline(
        merged(load_student(path / "student", run.device)), run.teacher.text_encoder, run.dtype
    )
    source = recipe.evaluation.prompts or held_out_prompts(run.corpus_folder) or recipe.corpus.prompts
    seen = training_prompts(recipe.corpus, run.corpus_folder, recipe.seed)
    metrics = evaluate(
        pipeline,
        run.teacher,
        load_student(path / "lift", run.device),
        recipe.evaluation,
        path,
        teacher_config=recipe.teacher,
        prompts=source,
        seen=seen,
        cache=recipe.evaluation.cache,
        progress=run.progress,
        student_folder=path / "student",
        losses_saw=networks_seen(run.folder.recipe),
    )
    write_report(path, title=recipe.name)
    known = metrics["settings"]["seen_prompts"]
    warnings = []
    if known and recipe.corpus.prompts != LANDSCAPES:
        warnings = [
            f"{known} of {recipe.evaluation.num_images} prompts of the evaluation are in the training corpus: set "
            "corpus.held_out above 0, or evaluation.prompts to a file of others"
        ]
    return metrics["summary"], warnings


@dataclass(frozen=True)
class Stage:
    """One stage of a distillation.

    Attributes:
        run: ``(run, previous) -> (figures, warnings)``; `previous` is the training stage before it, if any.
        trains: whether it trains the student, in all processes, and may be turned off; the others are the first process' work.
    """

    name: str
    run: Callable[[Run, str | None], tuple[dict[str, Any], list[str]]]
    trains: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        """Sections and keys of the recipe that it reads, besides what the stages before it read."""
        return READS[self.name]

    def config(self, recipe: Recipe) -> StageConfig:
        """The settings of a training stage."""
        return getattr(recipe, self.name)

    def enabled(self, recipe: Recipe) -> bool:
        return not self.trains or self.config(recipe).enabled


STAGES = {
    stage.name: stage
    for stage in (
        Stage("lift", fit_the_lift),
        Stage("corpus", draw_the_corpus),
        *(Stage(name, partial(train, stage=name), trains=True) for name in ("transfer", "one_step", "match")),
        Stage("student", write_the_student),
        Stage("evaluation", evaluate_the_student),
    )
}
TRAINING = tuple(stage.name for stage in STAGES.values() if stage.trains)
