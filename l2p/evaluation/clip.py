"""Figures on CLIP's embeddings: does a picture fit its prompt, and does a set of pictures resemble another?

Off unless a CLIP is named; then any transformers folder or Hub name of a ``CLIPModel`` does, and figures of different
CLIPs are not to be compared. torchmetrics has a CLIP score of its own, which fails with transformers from 5.0 on.

Legend: B pictures, d values of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l2p.errors import UserError
from l2p.evaluation.distances import KEPT
from l2p.evaluation.kid import squared_mmd
from l2p.files import read_json
from l2p.images import to_uint8

SIGMA = 10.0  # of the Gaussian kernel, and
SCALE = 1000.0  # the factor in front, both as in the paper of CMMD


def check_clip(path: str) -> None:
    """Raises: UserError for what cannot be a CLIP: neither a Hub name nor a folder with a CLIP's config and weights."""
    from l2p.hub.client import HubName

    folder = Path(path)
    if not folder.is_dir():
        if HubName.parse(path) is None:
            raise UserError(
                f"no CLIP at {path!r}: expected a folder or a Hub name, such as openai/clip-vit-large-patch14"
            )
        return
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or config.get("model_type") != "clip":
        raise UserError(f"{path} is no CLIP that can be loaded: its config.json is of another model")
    if not list(folder.glob("*.safetensors")):
        raise UserError(f"{path} is no CLIP that can be loaded: it has no weights (*.safetensors)")


class Clip:
    """A CLIP: pictures and prompts to embeddings of length 1.

    Args:
        path: a folder that ``CLIPModel.save_pretrained`` and its processor wrote, or a name on the Hub.

    Raises:
        UserError: it is not there, or is no CLIP with safetensors.
    """

    def __init__(self, path: str | Path, device: torch.device | str = "cpu") -> None:
        from transformers import CLIPModel, CLIPProcessor

        from l2p.hub.client import TEXTS, HubName, download
        from l2p.teachers.installed import attention_of

        name = None if Path(path).is_dir() else HubName.of_input(str(path))
        if name is None and not Path(path).is_dir():
            raise UserError(f"no CLIP at {str(path)!r}: expected a folder or a Hub name, such as "
                            "openai/clip-vit-large-patch14")  # fmt: skip
        folder = Path(path) if name is None else download(name, (*TEXTS, "*.safetensors"))
        try:
            self._model = CLIPModel.from_pretrained(
                folder, use_safetensors=True, attn_implementation=attention_of(CLIPModel, folder)
            )
            self._model = self._model.to(device).eval()
            self._processor = CLIPProcessor.from_pretrained(folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"{path} is no CLIP that can be loaded: {reason}") from error
        self.name, self.device = str(path), torch.device(device)
        self._told: tuple[tuple[str, ...], Tensor] = ((), torch.empty(0))

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """Embeddings [B, d] of pictures [B, 3, H, W] in [-1, 1]."""
        inputs = self._processor.image_processor(list(to_uint8(images)), return_tensors="pt").to(self.device)
        return _unit(self._model.get_image_features(**inputs))

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [B, d] of prompts; what is longer than CLIP reads is cut off."""
        if self._told[0] != tuple(texts):  # the same prompts are asked for once a method
            longest = self._model.config.text_config.max_position_embeddings
            inputs = self._processor.tokenizer(
                list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt"
            ).to(self.device)
            self._told = tuple(texts), _unit(self._model.get_text_features(**inputs))
        return self._told[1]


def clip_score(images: Tensor, texts: Sequence[str], clip: Clip) -> Tensor:
    """``max(0, 100 cos)`` of each picture and its prompt, [B] float64 (Hessel et al., arXiv 2104.08718, times 40).

    Args:
        images: [B, 3, H, W] in [-1, 1].

    Raises:
        ValueError: another number of prompts.
    """
    if len(images) != len(texts):
        raise ValueError(f"a prompt a picture expected, got {len(texts)} for {len(images)}")
    return _score(clip.images(images), clip.texts(texts))


def cmmd(a: Tensor, b: Tensor) -> float:
    """CMMD of embeddings a [N, d] and b [M, d] of length 1: the squared MMD with a Gaussian kernel of sigma 10, times
    1000 (Jayasumana et al., arXiv 2401.09603), here unbiased: about 0 for sets of one distribution.

    Raises:
        ValueError: other shapes, or fewer than 2 embeddings in a set.
    """
    return SCALE * squared_mmd(a, b, _gaussian)


class ClipFigures:
    """CLIP's figures of one set of pictures, gathered batch by batch; the first embeddings are kept for CMMD.

    Args:
        limit: pictures that are looked at; None for all.
    """

    def __init__(self, clip: Clip, limit: int | None = None) -> None:
        self.clip, self.limit, self.count = clip, limit, 0
        self.embeddings: list[Tensor] = []
        self.scores: list[Tensor] = []

    def update(self, images: Tensor, texts: Sequence[str] | None) -> None:
        """Add pictures [B, 3, H, W] in [-1, 1] and their prompts; None leaves the score out."""
        room = len(images) if self.limit is None else max(0, self.limit - self.count)
        if not room:
            return
        embeddings = self.clip.images(images[:room])
        self.count += len(embeddings)
        if self.count <= KEPT:
            self.embeddings.append(embeddings.cpu())
        if texts is not None:
            self.scores.append(_score(embeddings, self.clip.texts(texts)[:room]).cpu())

    def report(self, clean: ClipFigures | None) -> dict[str, Any]:
        """JSON values; ``clean`` is the set that CMMD compares with."""
        values: dict[str, Any] = {}
        if self.scores:
            values["clip_score"] = float(torch.cat(self.scores).mean())
        if clean is not None and clean is not self and min(self.count, clean.count) > 1:
            values["cmmd"] = cmmd(torch.cat(self.embeddings), torch.cat(clean.embeddings))
        return values


def _score(images: Tensor, texts: Tensor) -> Tensor:
    return (100 * (images.double() * texts.double()).sum(1)).clamp_min(0)


def _gaussian(a: Tensor, b: Tensor) -> Tensor:
    return torch.exp(
        -torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square() / (2 * SIGMA**2)
    )


def _unit(found: Any) -> Tensor:
    """Transformers 5 wraps the embeddings, earlier ones return them."""
    embeddings = found if isinstance(found, Tensor) else found.pooler_output
    return torch.nn.functional.normalize(embeddings.float(), dim=-1)
