"""How much memory a step of training takes, counted: the step itself runs on tensors without numbers.

Torch's fake tensors have shapes, dtypes and storages of a size, and nothing in them. The student, the teacher's networks
and the objectives are the very ones of a run, under its autocast; every storage that comes to life and dies during forward
and backward is counted, so the peak has the saved activations, what is recomputed under gradient checkpointing, and the
temporaries. The optimiser takes a step on such tensors too, and its states are counted as they are.

What is not counted: the libraries' own memory (CUDA's context, NCCL's buffers, cuBLAS' workspace) and fragmentation.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from l2p.bench.launches import without_tables
from l2p.errors import UserError
from l2p.files import read_json
from l2p.hub.client import TEXTS, HubName, download
from l2p.lift import Lift
from l2p.objectives import OBJECTIVES, check_objectives, sees_foreign_networks
from l2p.objectives.base import Batch, BatchShard, StepContext
from l2p.recipe import Recipe, StageConfig
from l2p.runtime import DTYPES, frozen_dtype
from l2p.students.build import OWN_CORE, caption_width, set_trainable, student_spec
from l2p.students.lora import add_lora
from l2p.students.presets import own_core
from l2p.students.student import PixelStudent
from l2p.teachers import BUNDLED, FAMILIES, Conditioning, Teacher
from l2p.training.data import RAM_BUDGET
from l2p.training.engine.ema import EMA
from l2p.training.engine.strategies import repeating
from l2p.training.optim import build_optimizer


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that were made inside the `with` and are still held; `peak` is the most at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {key(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and key(x) not in before and key(x) not in self._known:
                self._add(x)
        return out

    def _add(self, x: Tensor) -> None:
        storage, number = x.untyped_storage(), key(x)
        self._known.add(number)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, number, storage.nbytes())

    def _drop(self, number: int, size: int) -> None:
        self._known.discard(number)
        self.now -= size


def key(x: Tensor) -> int:
    """What tells a storage from all others that live."""
    return x.untyped_storage()._cdata


CAPTION = 256  # tokens of a caption; their part of the activations is small


class KnownLengths(list):
    """Lengths of captions: of all tensors those whose numbers the networks ask for."""

    def tolist(self) -> list[int]:
        return list(self)

    def to(self, device: torch.device | str | None = None) -> Tensor:
        return torch.full((len(self),), self[0], device=device)

    def expand(self, count: int) -> KnownLengths:
        return KnownLengths(self * count)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.cat:
            return NotImplemented
        return cls(length for lengths in args[0] for length in lengths)


# Objectives whose work depends on numbers, which tensors without numbers cannot tell.
UNCOUNTED = ("mean_flow", "adversarial")


@dataclass(frozen=True)
class Parts:
    """What a recipe trains with, without numbers. Everything was made under `mode`.

    Attributes:
        teacher: a teacher whose networks are fake and which reads no prompts.
        text_bytes: of the text encoders' weights.
    """

    mode: FakeTensorMode
    teacher: Teacher
    lift: Lift
    student: PixelStudent
    text_bytes: int


def parts(recipe: Recipe, checkpointing: bool) -> Parts:
    """Teacher and student of a recipe from their configurations alone.

    A teacher on the Hub has its configurations fetched, which are small, and none of its weights.

    Raises:
        UserError: no such teacher, or a student that it cannot have.
    """
    folder = configurations(recipe.teacher.path, recipe.teacher.revision)
    index = read_json(folder / "model_index.json")
    family = FAMILIES.get(index.get("_class_name"))
    if family is None:
        raise UserError(
            f"{folder} holds a {index.get('_class_name')}; see `l2p teachers` for what is supported"
        )
    size = (recipe.teacher.height, recipe.teacher.width)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        with _made_in(frozen_dtype(*_where(recipe))):
            teacher = _teacher(family, folder, recipe.teacher.path)
            texts = [_text_encoder(folder / name) for name in index if name.startswith("text_encoder")]
        geometry = teacher.geometry
        pixels = 3 * geometry.token_pixels**2
        lift = Lift(torch.zeros(pixels, geometry.token_dim), 1.0, torch.zeros(pixels), 1.0, 1.0, 1.0)
        kind, sizes = type(teacher.transformer).__name__, teacher.transformer.config
        options = dict(teacher.core_options)
        if teacher.guidance_kind == "input":
            options["guidance_scale"] = recipe.teacher.guidance_scale
        if recipe.student.core is not None:
            kind, sizes, options = OWN_CORE, own_core(recipe.student.core, caption_width(sizes)), {}
        spec = student_spec(
            sizes,
            geometry,
            1.0,
            recipe.student,
            size,
            transformer_class=kind,
            options=options,
        )
        student = PixelStudent(spec)
        if recipe.student.lora is not None:
            lora = recipe.student.lora
            add_lora(student, lora.rank, lora.alpha, list(lora.targets))
        student.set_gradient_checkpointing(checkpointing)
        set_trainable(student, recipe.student.train_blocks)
    return Parts(mode, teacher, lift, student, sum(map(_bytes, texts)))


def configurations(path: str, revision: str | None) -> Path:
    """Folder with a teacher's configurations. Raises UserError as :func:`l2p.hub.client.download`."""
    for folder in (BUNDLED / path, Path(path)):
        if (folder / "model_index.json").is_file():
            return folder
    name = None if Path(path).is_dir() else HubName.of_input(path)
    if name is None:
        raise UserError(f"no teacher at {path!r}: expected a diffusers folder or a Hub name")
    return download(HubName(name.repo, revision or name.revision), TEXTS)


def _teacher(family: type[Teacher], folder: Path, name: str) -> Teacher:
    """A teacher that reads no prompts; its networks have the folder's sizes."""
    teacher = object.__new__(family)
    denoiser = next(folder / part for part in ("transformer", "unet") if (folder / part).is_dir())
    teacher.transformer, teacher.vae = (_network(part) for part in (denoiser, folder / "vae"))
    teacher.name, teacher.revision, teacher.license = name, None, "unknown"
    teacher.scheduler, teacher.device = None, torch.device("cpu")
    teacher.geometry = teacher.read_geometry()
    teacher.text_encoder = SimpleNamespace(width=caption_width(teacher.transformer.config))
    teacher._empty = _captions(1, teacher)
    return teacher


@contextmanager
def _made_in(dtype: torch.dtype) -> Iterator[None]:
    """Networks made inside the `with` have their weights in this dtype; fake ones cannot be cast afterwards."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _network(folder: Path) -> nn.Module:
    import diffusers

    config = read_json(folder / "config.json")
    return getattr(diffusers, config["_class_name"]).from_config(config).eval().requires_grad_(False)


def _text_encoder(folder: Path) -> nn.Module:
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    return getattr(transformers, config.architectures[0])(config)


def _captions(count: int, teacher: Teacher) -> Conditioning:
    config = teacher.transformer.config
    pooled = config.get("pooled_projection_dim")
    # Z-Image pads captions to a multiple of 32, and has places for so many.
    length = min(CAPTION, (config.get("axes_lens", [CAPTION + 2])[0] - 2) // 32 * 32)
    return Conditioning(
        torch.zeros(count, length, teacher.text_encoder.width),
        KnownLengths([length] * count),
        torch.zeros(count, pooled) if pooled else None,
    )


@dataclass(frozen=True)
class StageBytes:
    """What a stage of training holds, in bytes, on one process that has all of it.

    Attributes:
        weights: of the student, in fp32; `frozen_weights` of them get no gradient and no average.
        gradients, optimizer, average: of what trains; the optimiser's after its first step.
        critics: weights, gradients and optimisers of the objectives' own networks.
        denoiser, vae, text: of the teacher, in the dtype it is kept in; no text encoder where it is parked, as it is when
            a corpus that fits into memory has had its captions read.
        blocks, denoiser_block: of the denoiser, what can be sharded, and the largest of these.
        largest_block, rest: of the student's weights, the largest that FSDP2 gathers, and what is in no block.
        step: the most that forward, backward and the optimiser's step hold besides, for 1 and for 2 pictures.
        uncounted: objectives that could not be counted.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    critics: int
    denoiser: int
    blocks: int
    denoiser_block: int
    vae: int
    text: int
    largest_block: int
    rest: int
    step: tuple[int, int]
    uncounted: tuple[str, ...] = ()

    def activations(self, pictures: int) -> int:
        """Bytes of a pass over so many pictures: what one adds to another is the same for all."""
        first, second = self.step
        return first + (pictures - 1) * (second - first)


def stage_bytes(recipe: Recipe, stage: str, checkpointing: bool) -> StageBytes:
    """Count a training stage. Raises UserError as :func:`parts`."""
    config: StageConfig = getattr(recipe, stage)
    known = check_objectives(config.objectives)
    uncounted = tuple(
        name for name, knobs in known.items() if name in UNCOUNTED or sees_foreign_networks(name, knobs)
    )
    # Which pictures of a batch the costly terms see is chosen at random: one process may get them all.
    counted = {
        name: {**knobs, "perceptual_fraction": 1.0} if name == "pairs" else knobs
        for name, knobs in known.items()
        if name not in uncounted
    }
    found = parts(recipe, checkpointing)
    with found.mode, without_tables():
        student, teacher = found.student, found.teacher
        objectives = nn.ModuleDict(
            {
                name: OBJECTIVES[name](teacher=teacher, lift=found.lift, **knobs)
                for name, knobs in counted.items()
            }
        )
        trainable = [p for p in student.parameters() if p.requires_grad]
        for p in (*trainable, *objectives.parameters()):
            p.grad = torch.zeros_like(p)
        optimizer = build_optimizer(student, config.optimizer, config.learning_rate, config.weight_decay)
        own = [build_optimizer(o, "adamw") for o in objectives.values() if any(o.parameters())]
        with LiveBytes() as update:
            _start_counting(optimizer)
            optimizer.step()
        for critic in own:
            critic.step()
        states = _state_bytes([optimizer])
        average = sum(x.nbytes for x in EMA(student, config.ema_decay).average.values())
        passes = tuple(_pass(recipe, found, objectives, pictures) for pictures in (1, 2))
        step = tuple(max(most, update.peak - states) for most in passes)
        blocks = [_bytes(block) for part in (student.core, student.head) for block in repeating(part)]
        critics = 2 * _bytes(objectives) + _state_bytes(own)
    return StageBytes(
        weights=_bytes(student),
        gradients=sum(p.nbytes for p in trainable),
        optimizer=states,
        average=average,
        critics=critics,
        denoiser=_bytes(teacher.transformer),
        blocks=sum(map(_bytes, repeating(teacher.transformer))),
        denoiser_block=max(map(_bytes, repeating(teacher.transformer)), default=0),
        vae=_bytes(teacher.vae),
        text=0 if _fits_in_memory(recipe, teacher) else found.text_bytes,
        largest_block=max(blocks, default=0),
        rest=_bytes(student) - sum(blocks),
        step=step,
        uncounted=uncounted,
    )


def _pass(recipe: Recipe, found: Parts, objectives: nn.ModuleDict, pictures: int) -> int:
    """The most bytes that the objectives' forward and backward hold beside weights and gradients."""
    teacher, (_, dtype) = found.teacher, _where(recipe)
    height, width = recipe.teacher.height, recipe.teacher.width
    batch = Batch(
        images=torch.zeros(pictures, 3, height, width),
        latents=torch.zeros(pictures, *teacher.geometry.latent_shape(height, width)),
        noise=torch.zeros(pictures, 3, height, width),
        conditioning=_captions(pictures, teacher),
    )
    with LiveBytes() as live:
        context = StepContext(
            found.student.train(),
            teacher,
            found.lift,
            batch,
            torch.Generator(),
            num_steps=recipe.student.num_steps,
            share=BatchShard(0, 2),  # of a batch that has more pictures than one
        )
        mixed = dtype != torch.float32
        with torch.autocast("cpu", dtype, enabled=mixed, cache_enabled=False):
            for objective in objectives.values():
                if any(objective.parameters()):
                    sum(objective.critic_loss(context).values()).backward()
            loss = sum(o.weight * term for o in objectives.values() for term in o(context).values())
        loss.backward()
        del context, loss
    return live.peak


def _fits_in_memory(recipe: Recipe, teacher: Teacher) -> bool:
    """Whether the corpus will be read once and kept, see :func:`l2p.training.data.in_memory`."""
    height, width = recipe.teacher.height, recipe.teacher.width
    values = math.prod(teacher.geometry.latent_shape(height, width))
    return recipe.corpus.num_pairs * (3 * height * width + 4 * values) <= RAM_BUDGET


def _start_counting(optimizer: torch.optim.Optimizer) -> None:
    """Give timm's AdamW its states as it would make them, with a step count that keeps its number under a fake mode."""
    for group in optimizer.param_groups:
        for p in group["params"] if group.get("use_fallback") else ():
            moments = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[p] = {"use_muon": False, "step": torch.tensor(0.0), **moments}


def _where(recipe: Recipe) -> tuple[torch.device, torch.dtype]:
    """Device and dtype that the recipe names; "auto" is a GPU with bf16, for which plans are made."""
    device = torch.device("cuda" if recipe.device == "auto" else recipe.device)
    return device, DTYPES.get(recipe.dtype, torch.bfloat16)


def _bytes(module: nn.Module) -> int:
    return sum(x.nbytes for x in (*module.parameters(), *module.buffers()))


def _state_bytes(optimizers: Iterable[torch.optim.Optimizer]) -> int:
    leaves = tree_leaves([optimizer.state_dict() for optimizer in optimizers])
    return sum(x.nbytes for x in leaves if isinstance(x, Tensor))
