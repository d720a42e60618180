"""LoRA files that others trained on the teacher's transformer, merged into a student's core when it is loaded.

A layer ``W`` becomes ``W + weight * alpha / rank * B A`` (arXiv 2106.09685). Read are the files of peft (a folder with
``adapter_config.json``), diffusers, kohya and ComfyUI: their names are first matched against the core's own linear layers;
what remains goes through the converter of the teacher's diffusers pipeline, which knows each family's original names.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from l2p.config import shown
from l2p.errors import UserError
from l2p.files import read_json
from l2p.hub.client import HubName, download
from l2p.students.weights import few

if TYPE_CHECKING:
    from l2p.students.student import PixelStudent

ADAPTER_CONFIG = "adapter_config.json"
PREFIXES = (
    "base_model.model.",
    "transformer.",
    "diffusion_model.",
    "unet.",
    "lora_unet_",
    "lora_transformer_",
)
TEXT_PREFIXES = ("text_encoder", "lora_te", "te_", "text_model", "cond_stage_model")
DOWN = (".lora_A.weight", ".lora_A.default.weight", ".lora_down.weight", ".lora.down.weight")
UP = (".lora_B.weight", ".lora_B.default.weight", ".lora_up.weight", ".lora.up.weight")
NAME = re.compile(r"[A-Za-z0-9_]+([.-][A-Za-z0-9_]+)*")  # of a layer
MOST_ALPHA = 1e6
OTHER_KINDS = {"dora_scale": "DoRA", "lokr_": "LoKr", "hada_": "LoHa", "lora_magnitude_vector": "DoRA"}


@dataclass(frozen=True)
class LowRank:
    """One layer's update ``scale * up @ down``: ``down`` [rank, in], ``up`` [out, rank]."""

    down: Tensor
    up: Tensor
    scale: float = 1.0

    def delta(self) -> Tensor:
        """The update [out, in], float32."""
        return self.scale * (self.up.float() @ self.down.float())


def parse_lora(text: str) -> tuple[str, float]:
    """``SOURCE[:WEIGHT]`` to the source and its weight, 1 where none is given.

    Raises:
        UserError: the weight is not finite.
    """
    source, colon, number = text.rpartition(":")
    try:
        weight = float(number)
    except ValueError:
        return text, 1.0
    if not colon or not source:
        return text, 1.0
    if not math.isfinite(weight):
        raise UserError(f"the weight of LoRA {source} is {number}, expected a finite number such as 0.8")
    return source, weight


def find_lora(source: str, endpoint: str | None = None) -> Path:
    """The safetensors file of a LoRA given as a file, as peft's folder, or as ``USER/NAME[@REVISION]`` on the Hub.

    Raises:
        UserError: it is not there, holds no safetensors file, or holds several.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix != ".safetensors":
            raise UserError(
                f"{source} is no safetensors file: convert it first, pickled weights are not read"
            )
        return path
    if not path.is_dir():
        name = HubName.of_input(source)
        if name is None:
            raise UserError(
                f"no LoRA at {source}: expected a .safetensors file, a folder, or USER/NAME on the Hub"
            )
        path = download(name, ("*.safetensors", ADAPTER_CONFIG), endpoint)
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise UserError(f"{source} must hold one .safetensors file, found {found}: name the file itself")
    return files[0]


def merge_loras(
    student: PixelStudent, loras: Sequence[tuple[str, float]], endpoint: str | None = None
) -> None:
    """Add LoRAs, each ``(source, weight)``, to the linear layers of a student's core. Nothing changes if one does not fit.

    Raises:
        UserError: a file that is missing, broken or of another kind; layers that the core does not have; a quantised student.
    """
    if student.quantization is not None:
        raise UserError("a quantised student takes no LoRA: load it onto the student that was quantised")
    layers = {n: m for n, m in student.core.transformer.named_modules() if isinstance(m, nn.Linear)}
    shapes = {name: tuple(layer.weight.shape) for name, layer in layers.items()}
    pipeline = student.spec.teacher.get("pipeline", "ZImagePipeline")
    updates: list[tuple[str, Tensor]] = []
    for source, weight in loras:
        for name, low_rank in read_lora(find_lora(source, endpoint), shapes, pipeline).items():
            updates.append((name, weight * low_rank.delta()))
    with torch.no_grad():
        for name, delta in updates:
            parameter = layers[name].weight
            parameter.copy_(parameter.float() + delta.to(parameter.device))


def read_lora(path: Path, shapes: dict[str, tuple[int, int]], pipeline_class: str) -> dict[str, LowRank]:
    """A LoRA's updates by the name of the layer.

    Args:
        shapes: of the weights of all layers that there are, [out, in] by name.
        pipeline_class: the diffusers pipeline whose converter knows the family's other names.

    Raises:
        UserError: no LoRA, or layers and shapes that do not fit.
    """
    state, alphas = _read(path)
    text = sorted(key for key in state if key.startswith(TEXT_PREFIXES))
    if text:
        raise UserError(f"{path} also changes the text encoder ({few(text)}), which a student keeps as it is")
    found, unknown = _match(_pairs(path, state, alphas), shapes)
    if unknown:
        converted = _convert(state, pipeline_class)
        if converted is not None:
            found, unknown = _match(_pairs(path, converted, {}), shapes)
    if unknown:
        raise UserError(f"{path} is for layers that this student's core does not have: {few(unknown)}")
    for name, low_rank in found.items():
        given = (low_rank.up.shape[0], low_rank.down.shape[1])
        if low_rank.up.shape[1] != low_rank.down.shape[0] or given != shapes[name]:
            raise UserError(
                f"{path} does not fit {name}: the layer is {list(shapes[name])}, the LoRA {list(given)} "
                f"of rank {low_rank.down.shape[0]}"
            )
        if not (low_rank.down.isfinite().all() and low_rank.up.isfinite().all()):
            raise UserError(f"{path} holds values that are not finite, in {name}")
    return found


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The tensors of a file, and ``alpha / rank`` by pattern where a config beside or inside it has them."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from None
    kind = next((kind for part, kind in OTHER_KINDS.items() if any(part in key for key in state)), None)
    if kind is not None:
        raise UserError(f"{path} is a {kind}, which is not supported: expected a plain LoRA")
    config: Any = {}
    if (path.parent / ADAPTER_CONFIG).is_file():
        config = read_json(path.parent / ADAPTER_CONFIG)
    elif "lora_adapter_metadata" in metadata:  # as diffusers writes it, with a prefix for each part
        try:
            raw = json.loads(metadata["lora_adapter_metadata"])
            config = {key.removeprefix("transformer."): value for key, value in raw.items()}
        except (ValueError, AttributeError, RecursionError):
            raise UserError(f"{path} has broken LoRA metadata: save it again") from None
    return state, _scales(path, config)


def _scales(path: Path, config: Any) -> dict[str, float]:
    """``{"": alpha}`` and alphas by the layer's name, of a peft config; a negative alpha stands for rank-stabilised scaling."""
    if not config:
        return {}
    try:
        scales = {"": _positive(path, config["lora_alpha"])}
        for pattern, alpha in (config.get("alpha_pattern") or {}).items():
            scales[_layer_name(path, pattern)] = _positive(path, alpha)
        stabilised = bool(config.get("use_rslora", False))
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: its config names no lora_alpha") from None
    return {name: -alpha if stabilised else alpha for name, alpha in scales.items()}


def _positive(path: Path, value: Any) -> float:
    """An alpha as a float. Raises UserError for anything but a number of which there is one."""
    try:
        alpha = float(value.item() if isinstance(value, Tensor) and value.numel() == 1 else value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        alpha = math.nan
    if not 0 <= alpha <= MOST_ALPHA:
        raise UserError(f"{path} has an alpha of {shown(value)}, expected a number from 0 to {MOST_ALPHA:g}")
    return alpha


def _layer_name(path: Path, pattern: str) -> str:
    """The name that a key of ``alpha_pattern`` stands for. To peft it is a regular expression that a layer's name ends in; a
    stranger's is never run, as it may take forever, and what trainers write are names, their dots perhaps escaped."""
    name = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
    if not NAME.fullmatch(name):
        raise UserError(
            f"{path} has alpha_pattern {shown(pattern)}, which is no name of a layer; other patterns are not supported"
        )
    return name


def _pairs(path: Path, state: dict[str, Tensor], alphas: dict[str, float]) -> dict[str, LowRank]:
    """Both factors of each layer, under the file's own name of it."""
    stem = {key[: -len(end)]: end for key in state for end in DOWN if key.endswith(end)}
    used, pairs = set(), {}
    for name, end in stem.items():
        up = name + UP[DOWN.index(end)]
        if up not in state:
            raise UserError(f"{path} is incomplete: {up} is missing")
        down = state[name + end]
        used |= {name + end, up}
        if down.ndim != 2 or state[up].ndim != 2 or not down.numel():
            raise UserError(
                f"{path}: {name} is no linear layer, shapes {list(down.shape)}, {list(state[up].shape)}"
            )
        if not (down.is_floating_point() and state[up].is_floating_point()):
            raise UserError(
                f"{path} holds {name} as {down.dtype} and {state[up].dtype}, expected floating numbers"
            )
        rank = down.shape[0]
        alpha = _alpha(name, alphas)
        if f"{name}.alpha" in state:
            used.add(f"{name}.alpha")
            alpha = _positive(path, state[f"{name}.alpha"])
        scale = 1.0 if alpha is None else (-alpha / math.sqrt(rank) if alpha < 0 else alpha / rank)
        pairs[name] = LowRank(down, state[up], scale)
    left = sorted(state.keys() - used)
    if left or not pairs:
        raise UserError(
            f"{path} is no LoRA: it holds {few(left) or 'nothing'}, expected lora_A and lora_B pairs"
        )
    return pairs


def _alpha(name: str, alphas: dict[str, float]) -> float | None:
    """The alpha that peft's config gives a layer: that of the first name that its own ends in, else the common one."""
    found = next((layer for layer in alphas if layer and f".{name}".endswith(f".{layer}")), "")
    return alphas.get(found)


def _match(pairs: dict[str, LowRank], shapes: Iterable[str]) -> tuple[dict[str, LowRank], list[str]]:
    """Updates under the core's names, and the names that it does not have."""
    names = set(shapes)
    flat = {name.replace(".", "_"): name for name in names}
    found: dict[str, LowRank] = {}
    fused: dict[str, LowRank] = {}
    unknown = []
    for given, low_rank in pairs.items():
        name = given
        while prefix := next((p for p in PREFIXES if name.startswith(p)), None):
            name = name.removeprefix(prefix)
        name = flat.get(name.replace(".", "_"), name)
        if name in names:
            found[name] = low_rank
        elif parts := _fused(name, flat):
            ups = low_rank.up.chunk(len(parts))
            fused |= {
                part: LowRank(low_rank.down, up, low_rank.scale) for part, up in zip(parts, ups, strict=True)
            }
        else:
            unknown.append(given)
    return fused | found, sorted(
        unknown
    )  # some trainers write a fused layer beside its parts: the parts count


def _fused(name: str, flat: dict[str, str]) -> list[str] | None:
    """The core's layers that another code base keeps as one, or under another name."""
    stem = name.replace(".", "_")
    for end, parts in (("_qkv", ("_to_q", "_to_k", "_to_v")), ("_out", ("_to_out_0",))):
        if stem.endswith(end):
            wanted = [stem.removesuffix(end) + part for part in parts]
            if all(part in flat for part in wanted):
                return [flat[part] for part in wanted]
    return None


def _convert(state: dict[str, Tensor], pipeline_class: str) -> dict[str, Tensor] | None:
    """The state under diffusers' names, by the pipeline's own converter; None where it knows no way."""
    import diffusers

    pipeline = getattr(diffusers, pipeline_class, None)
    if not hasattr(pipeline, "lora_state_dict"):
        return None
    try:
        converted = pipeline.lora_state_dict(dict(state))
    except Exception:  # converters raise whatever their patterns meet; the caller names the layers
        return None
    return converted[0] if isinstance(converted, tuple) else converted
