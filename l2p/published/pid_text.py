"""How PiD's published network reads captions: Gemma 2's last layer over an instruction and the caption.

The instruction is Sana's (arXiv 2410.10629), as diffusers has it, with double quotes. It opens every prompt; of the
features the first token's and the last 299 are kept, which are the caption's and the padding's, and no mask is used.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from l2p.errors import UserError
from l2p.hub.client import TEXTS, HubName, download
from l2p.teachers.installed import attention_of

ENCODER = "google/gemma-2-2b-it"
LENGTH = 300


@lru_cache(maxsize=1)
def instruction() -> str:
    from diffusers import SanaPipeline

    lines = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    return "\n".join(lines).replace("'", '"')


class CaptionReader:
    """Captions to features.

    Args:
        tokenizer, model: of Gemma 2; ``model(ids, mask)[0]`` are the last layer's features.
        length: features a caption.
    """

    def __init__(self, tokenizer: Any, model: nn.Module, length: int = LENGTH) -> None:
        self.tokenizer, self.model, self.length = tokenizer, model.eval().requires_grad_(False), length
        tokenizer.padding_side = "right"

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Features [B, length, width]."""
        opening = instruction()
        tokens = self.tokenizer(
            [opening + caption for caption in captions],
            max_length=len(self.tokenizer.encode(opening)) + self.length - 2,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).to(self.model.device)
        features = self.model(tokens.input_ids, tokens.attention_mask)[0]
        return torch.cat([features[:, :1], features[:, features.shape[1] - self.length + 1 :]], dim=1)

    @classmethod
    def from_pretrained(
        cls, name: str = ENCODER, device: torch.device | str = "cpu", dtype: torch.dtype = torch.bfloat16
    ) -> CaptionReader:
        """A folder or a name on the Hub, safetensors alone.

        Raises:
            UserError: not there, or broken.
        """
        from transformers import AutoModel, AutoTokenizer

        folder = Path(name)
        if not folder.is_dir():
            hub = HubName.of_input(name)
            if hub is None:
                raise UserError(
                    f"no text encoder at {name!r}: expected a folder, or a name such as {ENCODER}"
                )
            folder = download(hub, (*TEXTS, "*.safetensors"))
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            model = AutoModel.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                attn_implementation=attention_of(AutoModel, folder),
            )
        except Exception as error:  # transformers and safetensors each raise their own kinds
            raise UserError(
                f"cannot load the text encoder in {name}: {' '.join(str(error).split())[:200]}"
            ) from error
        return cls(tokenizer, model.to(device))
