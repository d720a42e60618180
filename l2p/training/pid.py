"""Train a pixel diffusion decoder: a many-step pixel flow, then few steps, then one, on renders of `landscapes`.

The toolkit's own machinery throughout: a stage is the Lightning module of distillation with objectives by name, and the
student of each stage starts where the average of the one before it ended.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from l2p import flow, runtime
from l2p.artifacts import hash_model
from l2p.config import (
    Count,
    DTypeName,
    Fraction,
    Int,
    Pixels,
    SamplingSteps,
    Seed,
    Text,
    Threads,
    Width,
    config,
)
from l2p.decoders.build import from_teacher
from l2p.decoders.io import fill_decoder, find_decoder, read_spec, save_decoder
from l2p.decoders.pid import LatentConditioning, PidStudent
from l2p.errors import UserError
from l2p.files import write_json
from l2p.images import Pictures, from_uint8
from l2p.landscapes import caption, load_world
from l2p.objectives import build_objectives, check_objectives
from l2p.objectives.base import Batch
from l2p.picture_folder import PictureFolder
from l2p.recipe import REQUIRED, HeadConfig, LoggingConfig, StageConfig
from l2p.runtime import autocast
from l2p.seeds import SEEDS
from l2p.teachers import Teacher, load_teacher, teacher_sha256
from l2p.training.engine.checkpoints import check_tag, load_averaged
from l2p.training.engine.fit import PRECISION, Job, fit
from l2p.training.engine.loggers import extra_loggers
from l2p.training.held_out import HeldOut
from l2p.training.module import DistillModule
from l2p.training.pid_data import NoiseConfig, PidDataModule, PidDataset, encode_versions, folder_pictures
from l2p.training.run_folder import TrainingFolder, without_effect
from l2p.training.teacher import PicturesConfig, render_pictures

FIRST_SCENE = SEEDS["decoder"].start
HELD_OUT = SEEDS["decoder held-out"].start
STAGES = ("flow", "few_step", "one_step", "polish")
OBJECTIVES = ("flow", "latents", "pairs", "adversarial", "drift", "color", "energy", "spectrum")


@config
class PidPictures(PicturesConfig):
    count: Count = 2048
    first_seed: Seed = FIRST_SCENE
    height: Pixels = 512
    width: Pixels = 512
    crop: Pixels = 256
    small_renders: Fraction = 0.25
    path: Text | None = None
    folder: Text | None = None


@config
class DecoderConfig:
    """Sizes of the decoder; ``core`` null takes the teacher's transformer, weights and all; ``train_core`` false keeps them.

    ``weights`` is a decoder to go on from, of the same sizes.
    """

    weights: Text | None = None
    scale: Annotated[Int, Field(ge=1, le=64)] = 4
    core: dict[str, Any] | None = None
    train_core: bool = True
    upsample: Annotated[Int, Field(ge=1, le=64)] = 1
    adapter_width: Annotated[Int, Field(ge=8, le=65536)] = 96
    features: Width = 96
    head: HeadConfig = field(default_factory=HeadConfig)
    draft: Literal["decoder", "head"] = "decoder"
    draft_head: HeadConfig = field(default_factory=HeadConfig)
    gradient_checkpointing: bool = False


@config
class PidStage(StageConfig):
    """A stage; ``num_steps`` is what the student paints in while it trains."""

    num_steps: SamplingSteps = 1


@config
class PidRecipe:
    """Everything `l2p train-pid` needs to know."""

    name: Text = REQUIRED
    output_dir: Text = "runs/${name}"
    seed: Seed = 0
    device: Text = "auto"
    dtype: DTypeName = "auto"
    threads: Threads | None = None
    teacher: Text = "landscapes"
    student: DecoderConfig = field(default_factory=DecoderConfig)
    pictures: PidPictures = field(default_factory=PidPictures)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    flow: PidStage = field(default_factory=PidStage)
    few_step: PidStage = field(default_factory=lambda: PidStage(num_steps=4))
    one_step: PidStage = field(default_factory=PidStage)
    polish: PidStage = field(default_factory=lambda: PidStage(enabled=False, num_steps=4))
    preview_images: Annotated[Int, Field(ge=1, le=256)] = 4
    logging: LoggingConfig = field(default_factory=LoggingConfig)


class PidFolder(TrainingFolder):
    """The folder of one decoder; a stage depends on the whole recipe but for what comes after it."""

    kind = "train-pid"
    stages = STAGES
    no_effect = ("preview_images", *without_effect("flow", "few_step", "one_step", "polish"))


@dataclass
class PidRun:
    """One training under way: recipe, folder, device, and what its stages share."""

    recipe: PidRecipe
    folder: PidFolder
    device: torch.device
    dtype: torch.dtype
    progress: bool = True

    @cached_property
    def teacher(self) -> Teacher:
        dtype = runtime.frozen_dtype(self.device, self.dtype)
        name = self.recipe.teacher
        return load_teacher(name, self.folder.pinned_teacher(name), self.device, dtype)

    @cached_property
    def _pictures(self) -> tuple[Pictures, list[str]]:
        """Pictures, and where they are no renders their captions; the last ``preview_images`` of these are held out."""
        config = self.recipe.pictures
        folder = Path(config.path) if config.path else self.folder.path / "pictures"
        if config.folder is None:
            return render_pictures(config, folder, self.recipe.threads), []
        found = folder_pictures(Path(config.folder), config.height, config.width, folder.with_suffix(".npy"))
        if len(found[1]) <= self.recipe.preview_images:
            raise UserError(
                f"pictures.folder holds {len(found[1])} pictures, expected more than preview_images"
            )
        return found

    @property
    def pictures(self) -> Pictures:
        """Those that are trained on."""
        pictures, captions = self._pictures
        return pictures[: -self.recipe.preview_images] if captions else pictures

    def told(self, number: int, style: int) -> str:
        """Caption of a picture that is trained on."""
        captions, config = self._pictures[1], self.recipe.pictures
        return (
            captions[number]
            if captions
            else caption(load_world(config.world).scene(config.first_seed + number), style)
        )

    @cached_property
    def latents(self) -> torch.Tensor:
        config, scale = self.recipe.pictures, self.recipe.student.scale
        path, first = self.folder.path / "latents.npy", None if config.folder else config.first_seed
        return encode_versions(
            self.teacher,
            self.pictures,
            scale,
            first,
            self.dtype,
            path,
            config.world,
            self._pictures_sha256,
        )

    @property
    def _pictures_sha256(self) -> str:
        config = self.recipe.pictures
        if config.folder is None:
            return load_world(config.world).fingerprint(config.height, config.width)
        return PictureFolder.read(config.folder).sha256

    @cached_property
    def held_out(self) -> HeldOut:
        """Pictures of which the decoder paints clean latents."""
        config, scale, count = self.recipe.pictures, self.recipe.student.scale, self.recipe.preview_images
        seeds = range(HELD_OUT, HELD_OUT + count)
        if config.folder:
            shown, prompts = self._pictures[0][-count:], self._pictures[1][-count:]
        else:
            world = load_world(config.world)
            shown = world.render_batch(seeds, config.height, config.width)
            prompts = [caption(world.scene(seed)) for seed in seeds]
        images = from_uint8(shown).to(self.device)
        with torch.no_grad(), autocast(self.device, self.dtype):
            z = self.teacher.encode(torch.nn.functional.avg_pool2d(images, scale)).float()
        noise = flow.noise(seeds, 3, *images.shape[2:]).to(self.device)
        told = LatentConditioning.of(self.teacher.encode_prompts(prompts), z, 0.0)
        return HeldOut(Batch(images, z, noise, told), prompts, self.dtype)

    def data(self, stage: str, config: StageConfig) -> PidDataModule:
        recipe, noise = self.recipe, self.recipe.noise
        if (
            stage != "flow"
        ):  # guidance is for many steps; pictures of nothing would drown the detail of all others
            noise = replace(noise, latent_dropout=0.0)
        dataset = PidDataset(
            self.pictures,
            self.latents,
            self.told,
            self.new_student().spec,
            noise,
            recipe.pictures.crop,
            recipe.seed,
            stage,
            config.steps * config.batch_size,
            recipe.pictures.small_renders,
        )
        return PidDataModule(dataset, self.teacher, config.batch_size, recipe.seed, stage, config.steps)

    def new_student(self) -> PidStudent:
        """The decoder that training starts from."""
        config, pictures = self.recipe.student, self.recipe.pictures
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed)
            student = from_teacher(
                self.teacher,
                config.scale,
                config.head,
                "decoder" if config.draft == "decoder" else config.draft_head,
                config.core,
                upsample=config.upsample,
                adapter_width=config.adapter_width,
                features=config.features,
                max_sigma=self.recipe.noise.max_sigma,
                height=pictures.height,
                width=pictures.width,
            )
        if config.weights is not None:
            fill_decoder(student, config.weights)
        student.set_gradient_checkpointing(config.gradient_checkpointing)
        if not config.train_core:
            student.core.requires_grad_(False)
            for fresh in (
                student.core.embedder,
                student.core.span_embedder,
            ):  # at zero they would tell nothing
                fresh.requires_grad_(True)
        return student.to(self.device).float()

    def trained(self, stage: str | None) -> PidStudent:
        """The averaged decoder as a stage left it; the untrained one for None."""
        student = self.new_student()
        if stage is not None:
            load_averaged(student, self.folder.checkpoint(stage))
            student.spec.num_steps = getattr(self.recipe, stage).num_steps
        return student.to(self.device)


def check(recipe: PidRecipe) -> None:
    """Find what can be found wrong without loading anything. Raises UserError."""
    crop, sides = recipe.pictures.crop, (recipe.pictures.height, recipe.pictures.width)
    if crop > min(sides) or crop % 8 or any(side % 8 for side in sides):
        raise UserError(
            f"pictures.crop is {crop} of {sides[0]} x {sides[1]}, expected multiples of 8, not larger"
        )
    enabled = [stage for stage in STAGES if getattr(recipe, stage).enabled]
    if not enabled:
        raise UserError(f"nothing to train: enable one of {', '.join(STAGES)}")
    for stage in enabled:
        try:
            for name, knobs in check_objectives(getattr(recipe, stage).objectives).items():
                if name not in OBJECTIVES:
                    raise UserError(
                        f"objectives.{name} is for students without latents: expected {', '.join(OBJECTIVES)}"
                    )
                if name == "pairs" and knobs.get("latent", 0.5):
                    raise UserError(
                        "objectives.pairs.latent needs a lift, which a decoder has not: set it to 0"
                    )
        except UserError as error:
            raise UserError(f"{stage}: {error}") from None


def inputs_of(recipe: PidRecipe) -> dict[str, str | None]:
    """Hashes of what the recipe names, by its keys."""
    weights, pictures = recipe.student.weights, recipe.pictures.folder
    return {
        "teacher.sha256": teacher_sha256(recipe.teacher),
        "student.weights.sha256": weights and hash_model(find_decoder(weights)),
        "pictures.folder.sha256": pictures and PictureFolder.read(pictures).sha256,
    }


def run(recipe: PidRecipe, resume: bool = True, progress: bool = True) -> Path:
    """Train every enabled stage, from wherever an earlier run stopped; returns the folder of the decoder.

    Raises:
        UserError: what cannot be trained, or a folder of other settings.
    """
    check(recipe)
    runtime.setup(recipe.threads, recipe.seed)
    device = runtime.pick_device(recipe.device)
    context = PidRun(
        recipe,
        PidFolder(recipe.output_dir, asdict(recipe), inputs_of(recipe)),
        device,
        runtime.pick_dtype(recipe.dtype, device),
        progress,
    )
    folder, previous = context.folder, None
    with folder.locked():
        folder.claim()
        if not resume:
            folder.clear()
        folder.pinned_teacher(recipe.teacher)
        seconds: dict[str, float] = {}
        enabled = [stage for stage in STAGES if getattr(recipe, stage).enabled]
        done = folder.done(enabled, enabled)
        for stage in enabled:
            summary = done[stage] or _train(context, stage, getattr(recipe, stage), previous)
            seconds[stage], previous = summary["figures"]["seconds"], stage
        student = context.trained(previous)
        start = recipe.student.weights
        known = [] if start is None else [read_spec(find_decoder(start)).num_steps]
        student.spec.num_steps = min(known + [getattr(recipe, stage).num_steps for stage in seconds])
        out = folder.path / "decoder"
        extra = {"recipe": asdict(recipe), "stage": previous}
        save_decoder(student, out, extra, torch.float16)
        write_json(out / "training.json", {"seconds": seconds, "torch": torch.__version__})
        for stage in seconds:
            shutil.copyfile(folder.log(stage), out / f"{stage}-log.csv")
    return out


def _train(context: PidRun, stage: str, config: PidStage, previous: str | None) -> dict[str, Any]:
    folder = context.folder
    student = context.trained(previous)
    student.spec.num_steps = config.num_steps
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.recipe.seed)
        objectives = build_objectives(config.objectives, teacher=context.teacher, lift=None)
    before = context.held_out.measure(student, config.num_steps)
    path = folder.checkpoint(stage)
    data = context.data(stage, config)
    module = DistillModule(
        student.train(), context.teacher, None, objectives, config, stage, context.recipe.seed, data.shares
    )
    resume_from = path if path.is_file() else None
    if resume_from is not None:
        check_tag(folder, stage, resume_from)
    job = Job(
        folder,
        stage,
        context.device,
        PRECISION[context.dtype],
        accumulate=config.accumulate,
        preview=lambda step: context.held_out.show(student, [config.num_steps], folder.preview(stage, step))[
            0
        ],
        preview_every=config.preview_every,
        loggers=extra_loggers(context.recipe.logging, folder.path, context.recipe.name, stage),
        progress=context.progress,
        resume_from=resume_from,
    )
    figures = fit(module, data, job)
    load_averaged(student, path)
    after = context.held_out.show(
        student.to(context.device), [config.num_steps], folder.grid(stage), "decoder"
    )[0]
    return folder.finish(stage, figures["seconds"], {"psnr_before": before, "psnr": after, **figures}, [])
