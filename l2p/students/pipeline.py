"""Prompt to pictures: a student and the text encoder it reads with."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from PIL import Image
from torch import Tensor

from l2p.errors import UserError, warn
from l2p.hub.client import HubName, download
from l2p.images import Pictures, to_uint8
from l2p.noise import PhiloxNoise, check_generator, noise_of
from l2p.patches import unpatchify
from l2p.runtime import autocast, cast_weights, pick_device, pick_dtype, realign_tensors
from l2p.students.cores.z_image import ZImageCore
from l2p.students.external_lora import merge_loras
from l2p.students.graphs import StepGraphs, check_cuda_graphs, check_one_step
from l2p.students.heads import PatchHead
from l2p.students.io import load_student, read_config, saved_dtype
from l2p.students.lora import merged
from l2p.students.student import PixelStudent, StudentSpec
from l2p.students.tiled_inference import default_budget, fit_band, generate_tiled, to_levels
from l2p.students.usage import prompt_notes, usage_notes, warn_all, world_of
from l2p.teachers import PATTERNS, load_text_encoder

if TYPE_CHECKING:
    from l2p.flow import Noise
    from l2p.teachers.protocol import Conditioning
    from l2p.teachers.text import PromptEncoder

SIDE = 8  # pixels; sides that are no multiple of the patch are drawn larger and cut


def load(path: str | Path, device: str = "auto", dtype: str = "auto") -> StudentPipeline:
    """Load a student's folder, ready to draw.

    Args:
        device: "auto", "cpu", "cuda" or "mps".
        dtype: "bf16", "fp16" or "fp32", of the weights and the arithmetic; "auto" keeps a bf16 or fp16 copy as it
            is, and takes for fp32 weights, and on a CPU for fp16 ones, what the device is fast in.

    Raises:
        UserError: see :func:`l2p.students.io.load_student`; or the text encoder is missing.
    """
    chosen = pick_device(device)
    config = read_config(path)  # says what is wrong with a folder that is no student
    quantized, adapted = (config.get(key) is not None for key in ("quantization", "lora"))
    if quantized and dtype not in ("auto", "bf16"):
        raise UserError(f"a quantised student computes in bf16: leave out dtype {dtype}")
    saved = torch.bfloat16 if quantized else saved_dtype(path)
    slow = torch.float32 if chosen.type != "cpu" else torch.float16  # a CPU crawls in fp16
    keeps = dtype == "auto" and saved not in (torch.float32, slow)
    picked = saved if keeps else pick_dtype(dtype, chosen)
    student = load_student(path, chosen, None if quantized or adapted else picked)
    if adapted:  # which would cost time at every picture; they are added before anything is rounded
        student = merged(student)
        cast_weights(student, picked)
    texts = load_texts(path, student.spec, chosen, picked if dtype == "fp32" else "auto")
    return StudentPipeline(student, texts, picked, world_of(config))


def load_texts(
    path: str | Path,
    spec: StudentSpec,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | Literal["auto"] | None = None,
) -> PromptEncoder:
    """What reads the prompts of the student in a folder, as :func:`l2p.teachers.load_text_encoder`."""
    pipeline = spec.teacher.get("pipeline", "ZImagePipeline")  # what students that do not tell were made from
    return load_text_encoder(text_encoder_folder(path), pipeline, device=device, dtype=dtype)


def text_encoder_folder(path: str | Path) -> Path:
    """The folder that has a student's ``text_encoder/`` and ``tokenizer/``: its own, or that of the teacher on the Hub
    that its config names.

    Raises:
        UserError: it names something else, or the teacher cannot be fetched.
    """
    path = Path(path)
    reference = read_config(path).get("text_encoder")
    if reference is None or (path / "text_encoder").is_dir():
        return path
    name, revision = (reference.get(k) if isinstance(reference, dict) else None for k in ("name", "revision"))
    if (
        HubName.parse(f"{name}@{revision}") is None
    ):  # a folder from elsewhere must not name a path of this machine
        raise UserError(
            f"{path} takes its text encoder from {reference!r}, expected a Hub name and a revision"
        )
    parts = [f"{part}*/{pattern}" for part in ("text_encoder", "tokenizer") for pattern in PATTERNS]
    return download(HubName(name, revision), parts)


class StudentPipeline:
    """Prompts in, pictures out.

    Args:
        dtype: of the arithmetic; the student's weights are brought to it, unless it is fp32.
        world: where the prompts came from that the student was trained on, if that is known: others bring a warning.

    Attributes:
        noise_generator: what makes the noise of a seed (:mod:`l2p.noise`); at first the student's own.
    """

    def __init__(
        self,
        student: PixelStudent,
        text_encoder: PromptEncoder,
        dtype: torch.dtype = torch.float32,
        world: str | None = None,
    ) -> None:
        self.student = realign_tensors(student.eval())
        self.text_encoder = text_encoder
        self.dtype, self.world = dtype, world
        self.graphs: StepGraphs | None = None
        self.noise_generator = check_generator(student.spec.noise_generator)
        if dtype != torch.float32 and student.quantization is None:
            cast_weights(self.student, dtype)

    def use_cuda_graphs(self) -> None:
        """Draw one-step pictures by CUDA graphs from now on. Raises: UserError on another device."""
        check_cuda_graphs(self.device)
        self.graphs = StepGraphs(self.student)

    @property
    def device(self) -> torch.device:
        return self.student.device

    def load_lora(self, source: str | Path, weight: float = 1.0) -> None:
        """Add a LoRA of the teacher's transformer to the student's weights; called again, the next one comes on top.

        Args:
            source: a safetensors file, peft's folder, or ``USER/NAME[@revision]`` on the Hub.
            weight: how much of it; 0 changes nothing, -1 takes it out again (up to rounding).

        Raises:
            UserError: see :func:`l2p.students.external_lora.merge_loras`.
        """
        merge_loras(self.student, [(str(source), weight)])

    def generate(
        self,
        prompts: str | Sequence[str],
        seeds: int | Sequence[int] | None = None,
        num_images: int = 1,
        height: int | None = None,
        width: int | None = None,
        num_steps: int | None = None,
        progress: bool = False,
        batch_size: int = 8,
        memory_budget: int | None = None,
    ) -> list[Image.Image]:
        """Draw ``num_images`` pictures of each prompt, in the order of the prompts.

        Args:
            seeds: of each prompt's first picture, the others get the next ones: one number for all prompts,
                or one a prompt; None draws fresh ones. A picture carries its own in ``image.info["seed"]``.
            height, width: pixels, multiples of 8; the size the student was trained on if None.
            num_steps: 1 or more; what the student was trained for if None.
            batch_size: pictures drawn at once; sets memory and speed, not the pictures.
            memory_budget: bytes that drawing may take beyond weights and pictures; a patch head paints in bands that
                fit. It sets memory and speed, not the pictures. None: 2 GB on a CPU, on a GPU most of what is free.

        Raises:
            UserError: for values out of these ranges, or a budget that is too small.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise UserError("nothing to draw: expected a prompt or a list of prompts")
        for name, value in (("num_images", num_images), ("num_steps", num_steps), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise UserError(f"{name} must be 1 or more, got {value}")
        self.warn_of(prompts, num_steps, None, height, width)
        height, width = self.size(height, width)
        tasks = [
            (prompt, seed + i)
            for prompt, seed in zip(prompts, _first_seeds(seeds, len(prompts)), strict=True)
            for i in range(num_images)
        ]
        batches = [tasks[i : i + batch_size] for i in range(0, len(tasks), batch_size)]
        if progress:
            from rich.progress import track

            batches = track(batches, description="drawing", total=len(batches))
        return [
            image for batch in batches for image in self._draw(batch, height, width, num_steps, memory_budget)
        ]

    def warn_of(
        self,
        prompts: Sequence[str],
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> None:
        """Warn of values and prompts that the student was not trained for; None stands for its own."""
        warn_all(usage_notes(self.student.spec, num_steps, guidance_scale, height, width))
        warn_all(prompt_notes(self.world, prompts))
        steps = self.student.spec.num_steps if num_steps is None else num_steps
        if self.graphs is not None and (steps != 1 or self.guidance(guidance_scale) > 1):
            warn("CUDA graphs serve one step without guidance: these pictures are drawn without them")

    @torch.no_grad()
    def generate_arrays(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        height: int,
        width: int,
        num_steps: int | None = None,
        memory_budget: int | None = None,
        guidance_scale: float | None = None,
    ) -> Pictures:
        """Pictures uint8 [B, height, width, 3], one a prompt and seed; very large ones lie in a file (`tiled_inference`).

        Sides are multiples of 8. Whole patches of noise are drawn and the picture is cut from them, so that the student
        never sees a patch that it was not trained for.
        """
        noise = self.noise(seeds, height, width)
        conditioning = self.text_encoder(prompts).to(self.device)
        steps = self.student.spec.num_steps if num_steps is None else num_steps
        one_step = steps == 1 and self.guidance(guidance_scale) <= 1
        if self.graphs is not None:
            check_one_step(steps, self.guidance(guidance_scale))
        if one_step and self.graphs is None:
            with self.arithmetic():
                return generate_tiled(self.student, noise, conditioning, height, width, memory_budget)
        if isinstance(self.student.head, PatchHead):
            budget = default_budget(self.device) if memory_budget is None else memory_budget
            self.student.head.band_height = fit_band(self.student, noise.shape, budget)
        if one_step and self.student.spec.project_noise and isinstance(noise, PhiloxNoise):
            whole = unpatchify(self.student.from_span(noise.latents()), self.student.spec.patch_size)
        else:
            whole = noise.rows(0, noise.shape[2])
        if one_step:
            with self.arithmetic():
                pictures = self.graphs(whole.to(self.device), conditioning)
            return to_levels(pictures[:, :, :height, :width])
        pictures = self.sample(conditioning, whole, num_steps, guidance_scale)
        return to_uint8(pictures[:, :, :height, :width])

    def noise(self, seeds: Sequence[int], height: int, width: int) -> Noise | PhiloxNoise:
        """The noise of these seeds for pictures of a size, whole patches of it; ``rows(0, shape[2])`` is all of it."""
        p = self.student.spec.patch_size
        return noise_of(
            self.noise_generator, seeds, height + -height % p, width + -width % p, self.student.basis
        )

    def arithmetic(self) -> AbstractContextManager:
        """Context of the student's passes: autocast, unless a GPU has nothing to cast.

        There it would run norms and sums in fp32, and look for weights to cast in every call.
        """
        weights = (weight.dtype == self.dtype for weight in self.student.parameters())
        if self.device.type == "cuda" and isinstance(self.student.core, ZImageCore) and all(weights):
            return nullcontext()
        return autocast(self.device, self.dtype)

    def guidance(self, scale: float | None = None) -> float:
        """The scale that is drawn with: this one, or the student's own; 1 and less is no guidance."""
        return self.student.spec.guidance_scale if scale is None else scale

    def sample(
        self,
        conditioning: Conditioning,
        noise: Tensor,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> Tensor:
        """Pictures [B, 3, H, W] of this very noise: float32, not clamped, on the student's device."""
        noise, scale = noise.to(self.device), self.guidance(guidance_scale)
        empty = self.text_encoder.empty().to(self.device) if scale > 1 else None
        with self.arithmetic():
            return self.student.sample(
                noise, conditioning.to(self.device), num_steps, empty=empty, guidance_scale=scale
            ).float()

    def _draw(
        self,
        tasks: Sequence[tuple[str, int]],
        height: int,
        width: int,
        num_steps: int | None,
        memory_budget: int | None,
    ) -> list[Image.Image]:
        prompts, seeds = zip(*tasks, strict=True)
        pictures = self.generate_arrays(prompts, seeds, height, width, num_steps, memory_budget)
        images = [Image.fromarray(array) for array in pictures]
        for image, (prompt, seed) in zip(images, tasks, strict=True):
            image.info.update(prompt=prompt, seed=seed)
        return images

    def size(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """Sides in pixels, those that the student was trained on for None. Raises UserError for odd ones."""
        return self._side("height", height), self._side("width", width)

    def _side(self, name: str, value: int | None) -> int:
        value = getattr(self.student.spec, name) if value is None else value
        if value is None:
            raise UserError(f"this student records no {name}: give one, a positive multiple of {SIDE}")
        if value < SIDE or value % SIDE:
            near = max(SIDE, round(value / SIDE) * SIDE)
            raise UserError(f"{name} must be a positive multiple of {SIDE}, got {value}: try {near}")
        return value


def _first_seeds(seeds: int | Sequence[int] | None, count: int) -> list[int]:
    if seeds is None:
        return [secrets.randbelow(2**31) for _ in range(count)]
    if isinstance(seeds, int):
        seeds = [seeds] * count
    if len(seeds) != count:
        raise UserError(f"expected one seed, or one for each of the {count} prompts, got {len(seeds)}")
    if min(seeds) < 0:
        raise UserError(f"seeds must be 0 or more, got {min(seeds)}")
    return list(seeds)
