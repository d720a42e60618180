"""Models of timm as feature networks: sizes, mean and deviation from their own data config, weights loaded strictly."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from l2p.errors import UserError
from l2p.features.base import FeatureNetwork, Probe, widened
from l2p.features.spec import HUB, RANDOM, FeatureSpec
from l2p.features.teacher import chosen


class TimmFeatures(FeatureNetwork):
    """Maps and pooled features of a timm model.

    Pictures are resized to the data config's size with antialiasing. A model that takes any size (``dynamic_img_size``,
    NaFlex, convolutions) gets the picture's own aspect, with as many pixels and sides of whole patches.

    Vectors are what timm's own forward pools; where the spec names layers, the means of their maps, joined.
    """

    def __init__(self, spec: FeatureSpec, model: nn.Module) -> None:
        super().__init__(spec, model)
        config = resolve_model_data_config(model)
        self.size: tuple[int, int] = tuple(config["input_size"][1:])
        self.interpolation = config["interpolation"] if config["interpolation"] != "random" else "bicubic"
        self._mean, self._std = (torch.tensor(config[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
        info = getattr(model, "feature_info", None)
        self._count = len(info) if info is not None else 0
        self._multiple = max(
            (int(entry["reduction"]) for entry in info or () if "reduction" in entry), default=1
        )
        self._layers = chosen(spec, self._count, f"timm's {spec.model}") if self._count else []
        if spec.layers:
            self._check_maps()

    def _check_maps(self) -> None:
        if not hasattr(self.module, "forward_intermediates") or not self._count:
            raise UserError(
                f"{self.spec}: timm's {self.spec.model} shows no intermediate features, so it can be no loss and has no "
                "layers: take a model with forward_intermediates, such as vit_small_patch14_dinov2.lvd142m"
            )

    def maps(self, images: Tensor, probe: Probe | None = None) -> list[Tensor]:
        self._check_maps()
        takes = inspect.signature(self.module.forward_intermediates).parameters
        given: dict[str, Any] = {"stop_early": True} if "stop_early" in takes else {}
        return self.module.forward_intermediates(
            self.prepare(images),
            indices=self._layers or [-1 % self._count],
            norm=True,
            output_fmt="NCHW",
            intermediates_only=True,
            **given,
        )

    def vectors(self, images: Tensor) -> Tensor:
        if self.spec.layers:
            return torch.cat([widened(f).mean((2, 3)) for f in self.maps(images)], dim=1)
        pooled = widened(self.module(self.prepare(images)))
        return pooled.mean(tuple(range(2, pooled.ndim))) if pooled.ndim == 4 else pooled

    def prepare(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1] as the model was trained to see them."""
        x = self.to_device(images)
        size = self.input_size(*x.shape[2:])
        if tuple(x.shape[2:]) != size:
            with torch.autocast(
                x.device.type, enabled=False
            ):  # bf16 has no antialiased resize on every device
                x = F.interpolate(widened(x), size, mode=self.interpolation, antialias=True).to(x.dtype)
        return ((x + 1) / 2 - self._mean.to(x)) / self._std.to(x)

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Size in pixels at which a picture of this size is seen."""
        if not self.module.l2p_any_size or height == width:
            return self.size
        scale = math.sqrt(math.prod(self.size) / (height * width)) / self._multiple
        rows, columns = (max(1, round(side * scale)) * self._multiple for side in (height, width))
        return rows, columns


def build_model(spec: FeatureSpec) -> nn.Module:
    """A timm model with its weights, without its classifier.

    Raises:
        UserError: an unknown name or tag, with timm's nearest; weights that are not here, with what to fetch; a file that
            holds others.
    """
    overlay: dict[str, Any] = {}
    if spec.model.startswith(HUB):
        name, overlay, file = _from_hub(spec)
    else:
        name, file = spec.model, spec.file
        check_model(name, needs_weights=not file)
        if not file:
            file = _fetch(spec)
    config = get_pretrained_cfg(name, allow_unregistered=False)
    config = {**(config.to_dict() if config is not None else {}), **overlay}
    kwargs: dict[str, Any] = {"dynamic_img_size": True} if config.get("fixed_input_size") else {}
    if file == RANDOM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = _create(name, kwargs, num_classes=0)
    else:
        state = read_safetensors(file)
        classes = _classes(state, config.get("classifier"))
        overlay |= {"file": str(file), "num_classes": classes, "label_offset": 0, "custom_load": False}
        try:
            model = _create(
                name, kwargs, pretrained=True, num_classes=classes, pretrained_cfg_overlay=overlay
            )
        except (RuntimeError, KeyError, ValueError) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = (lines[1] if len(lines) > 1 else lines[0]) if lines else type(error).__name__
            raise UserError(f"{file} does not hold the weights of timm's {name}: {reason[:200]}") from None
        if classes:
            model.reset_classifier(0)
    # Convolutions take any size; models of a fixed one say so, unless they can make their positions anew.
    model.l2p_any_size = bool(getattr(model, "dynamic_img_size", not config.get("fixed_input_size")))
    return model.eval()


def _create(name: str, kwargs: Mapping[str, Any], **settings: Any) -> nn.Module:
    """The model, with those arguments if it takes them."""
    if kwargs:
        try:
            return timm.create_model(name, **settings, **kwargs)
        except TypeError:  # no such argument: a model of one size
            pass
    return timm.create_model(name, **settings)


def read_safetensors(file: str | Path) -> dict[str, Tensor]:
    """The tensors of a file. Raises: UserError where it is missing or no safetensors."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(file).is_file():
        raise UserError(f"no weights at {file}: expected a .safetensors file")
    try:
        return load_file(str(file))
    except SafetensorError as error:
        raise UserError(f"{file} is no safetensors file: {str(error).splitlines()[0]}") from None


def _classes(state: Mapping[str, Tensor], classifier: str | tuple[str, ...] | None) -> int:
    """Number of classes of the weights; 0 where they have no classifier."""
    first = classifier[0] if isinstance(classifier, (list, tuple)) and classifier else classifier
    weight = state.get(f"{first}.weight")
    return 0 if weight is None else len(weight)


def check_model(name: str, needs_weights: bool) -> None:
    """Raises: UserError for a model or tag that timm does not know, or one without weights where those are needed."""
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), n=3, cutoff=0.6)
        hint = f"did you mean {', '.join(near)}?" if near else "see timm.list_models()"
        raise UserError(f"timm has no model {base!r}; {hint}")
    known = timm.list_pretrained(f"{base}.*")
    if tag and name not in known:
        hint = f"expected one of {', '.join(known[:4])}" if known else "it has none"
        raise UserError(f"timm has no weights {tag!r} of {base}: {hint}")
    if needs_weights and not known:
        raise UserError(f"timm has no weights of {base}: name a file, timm:{base}=FILE.safetensors")


def _fetch(spec: FeatureSpec) -> Path:
    """The weights of a name from the Hub or its cache."""
    config = get_pretrained_cfg(spec.model)
    repo = getattr(config, "hf_hub_id", None)
    if not repo:
        raise UserError(
            f"{spec}: timm has no safetensors of it on the Hub: name a file, timm:{spec.model}=FILE.safetensors"
        )
    return _download(repo, spec, ("model.safetensors",)) / "model.safetensors"


def _download(repo: str, spec: FeatureSpec, files: tuple[str, ...]) -> Path:
    from l2p.hub.client import HubName, download

    name = HubName.parse(repo)
    if name is None:
        raise UserError(f"{spec}: {repo!r} is no name on the Hub, expected timm:hf-hub:USER/NAME")
    try:
        folder = download(name, files)
    except UserError as error:
        raise UserError(
            f"{spec}: fetch {files[-1]} of {repo} from the Hub, or name it as =FILE.safetensors ({error})"
        ) from None
    for file in files:
        if not (folder / file).is_file():
            raise UserError(f"{spec}: {repo} has no {file}, without which its features cannot be used")
    return folder


def _from_hub(spec: FeatureSpec) -> tuple[str, dict[str, Any], Path | str]:
    """Architecture, overlay of its config and weights of a model that somebody published with timm."""
    from l2p.files import read_json

    repo = spec.model.removeprefix(HUB)
    files = ("config.json",) if spec.file else ("config.json", "model.safetensors")
    folder = _download(repo, spec, files)
    config = read_json(folder / "config.json")
    name = str(config.get("architecture", ""))
    if not timm.is_model(name):
        raise UserError(f"{spec}: {repo} was not published with timm: its config.json names no model of timm")
    kept = ("input_size", "interpolation", "mean", "std", "license", "classifier", "fixed_input_size")
    saved = config.get("pretrained_cfg") or {}
    overlay = {key: saved[key] for key in kept if saved.get(key) is not None}
    return name, overlay, spec.file or folder / "model.safetensors"
