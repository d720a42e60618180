"""The text that names a feature network, and what is known of the network before it is loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass

from l2p.errors import UserError

KINDS = ("encoder", "transformer", "lpips", "timm")
RANDOM = "random"  # in the place of a file: untrained weights
HUB = "hf-hub:"
_LAYERS = re.compile(r"-?\d{1,4}(,-?\d{1,4})*")
_NON_COMMERCIAL = re.compile(r"(^|[-_ ])nc([-_ ]|$)|non-?commercial", re.IGNORECASE)


@dataclass(frozen=True)
class FeatureSpec:
    """A feature network's name, taken apart.

    Attributes:
        kind: "encoder", "transformer", "lpips" or "timm".
        model: of timm: ``NAME[.TAG]``, or ``hf-hub:USER/NAME[@REVISION]``.
        layers: indices of the layers whose maps are used; None for the network's own choice.
        file: a safetensors file with the weights, or "random".
    """

    kind: str
    model: str = ""
    layers: tuple[int, ...] | None = None
    file: str = ""

    @classmethod
    def parse(cls, text: str) -> FeatureSpec:
        """Raises: UserError for a text that names no feature network."""
        body, _, file = text.strip().partition("=")
        name, at, last = body.rpartition("@")
        layers = None
        if at and _LAYERS.fullmatch(last):
            body, layers = name, tuple(int(number) for number in last.split(","))
        kind, _, model = body.partition(":")
        if kind not in KINDS or (kind == "timm") != bool(model):
            raise UserError(
                f"no feature network {text!r}; expected encoder, transformer or lpips, timm:NAME or "
                "timm:hf-hub:USER/NAME, with @LAYERS or =FILE.safetensors behind it"
            )
        if "@" in model and not model.startswith(HUB):
            raise UserError(f"{text!r}: layers are numbers such as @3,7,11, got {model.split('@', 1)[1]!r}")
        if file and kind not in ("lpips", "timm"):
            raise UserError(f"{text!r}: the teacher's own {kind} has its weights, leave ={file} out")
        if layers and kind == "lpips":
            raise UserError(f"{text!r}: lpips has its own layers, leave them out")
        if "=" in text and not (file == RANDOM or file.endswith(".safetensors")):
            raise UserError(f"{text!r}: weights are read from a .safetensors file, got {file!r}")
        return cls(kind, model, layers, file)

    @property
    def identity(self) -> str:
        """The network whatever its layers: two users of one identity share it, and see the same space."""
        return f"{self.kind}:{self.model}={self.file}".removesuffix("=").removesuffix(":")

    def __str__(self) -> str:
        name = f"{self.kind}:{self.model}" if self.model else self.kind
        name += "@" + ",".join(map(str, self.layers)) if self.layers else ""
        return name + (f"={self.file}" if self.file else "")


def license_of(spec: FeatureSpec) -> str:
    """Licence of a network's weights as timm records it; for others where to look. Loads nothing."""
    if spec.kind in ("encoder", "transformer"):
        return "the teacher's"
    if spec.kind == "lpips":
        return "bsd-2-clause (LPIPS), bsd-3-clause (VGG-16)"
    if spec.file == RANDOM:
        return "none needed: untrained"
    if spec.model.startswith(HUB) or (spec.file and "." not in spec.model):
        return "not recorded"
    from timm.models import get_pretrained_cfg

    try:
        found = get_pretrained_cfg(spec.model, allow_unregistered=False)
    except (RuntimeError, ValueError):  # an unknown name or tag
        found = None
    return getattr(found, "license", None) or "not recorded"


def is_non_commercial(license: str) -> bool:
    """Whether a licence's name says that it forbids commercial use."""
    return bool(_NON_COMMERCIAL.search(license))
