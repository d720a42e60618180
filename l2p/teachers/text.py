"""Prompt to caption features, the way Z-Image reads them: chat template, then the last hidden state but one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from l2p.errors import UserError
from l2p.teachers.protocol import Conditioning

MAX_TOKENS = 512  # as in diffusers' ZImagePipeline


class TextEncoder:
    """Tokenizer and language model behind one call; features are cached by prompt, since prompts repeat.

    Args:
        cache_size: prompts remembered, the oldest forgotten first; 0 turns the cache off.
    """

    def __init__(self, tokenizer, model: nn.Module, cache_size: int = 16384) -> None:
        self.tokenizer = tokenizer
        self.model = model.eval().requires_grad_(False)
        self.cache_size = cache_size
        self._cache: dict[str, torch.Tensor] = {}

    @property
    def width(self) -> int:
        return self.model.config.hidden_size

    def in_template(self, prompt: str) -> str:
        """The text that is tokenised: the prompt as a user's turn of a chat."""
        return self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=True,
        )

    def tokenize(self, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and mask [B, L] of the prompts in the chat template, padded to the longest."""
        tokens = self.tokenizer(
            [self.in_template(prompt) for prompt in prompts],
            padding=True,
            max_length=MAX_TOKENS,
            truncation=True,
            padding_side="right",
            return_tensors="pt",
        )
        return tokens.input_ids, tokens.attention_mask.bool()

    def features(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Caption features [B, L, C] of token ids; differentiable, so that a teacher's training can use it."""
        device = self.model.device
        output = self.model(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            output_hidden_states=True,
            use_cache=False,
        )
        return output.hidden_states[-2]

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Conditioning:
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._cache]
        fresh: dict[str, torch.Tensor] = {}
        for start in range(0, len(missing), 256):
            chunk = missing[start : start + 256]
            ids, mask = self.tokenize(chunk)
            features = self.features(ids, mask)
            fresh.update(
                {prompt: f[m] for prompt, f, m in zip(chunk, features, mask.to(features.device), strict=True)}
            )
        rows = [fresh[p] if p in fresh else self._cache[p] for p in prompts]
        if self.cache_size:
            self._cache.update(fresh)
            while len(self._cache) > self.cache_size:
                del self._cache[next(iter(self._cache))]
        embeds = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return Conditioning(embeds, torch.tensor([len(row) for row in rows]))

    def forget(self) -> None:
        """Empty the cache, for honest timings from prompt to picture."""
        self._cache.clear()

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> TextEncoder:
        self.model.to(device=device, dtype=dtype)
        self.forget()
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``folder/text_encoder`` and ``folder/tokenizer`` as a diffusers pipeline has them."""
        self.model.save_pretrained(Path(folder) / "text_encoder")
        self.tokenizer.save_pretrained(Path(folder) / "tokenizer")

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | Literal["auto"] | None = None,
    ) -> TextEncoder:
        """Load ``folder/text_encoder`` and ``folder/tokenizer``.

        Args:
            dtype: of the weights; "auto" is the one they were saved in, None is fp32.

        Raises:
            UserError: one of the two is missing or broken.
        """
        from transformers import AutoModel, AutoTokenizer

        folder = Path(folder)
        for part in ("text_encoder", "tokenizer"):
            if not (folder / part).is_dir():
                raise UserError(
                    f"{folder} has no {part}/ folder: it needs a text encoder and a tokenizer to read prompts"
                )
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", trust_remote_code=False)
            model, report = AutoModel.from_pretrained(
                folder / "text_encoder",
                dtype=dtype or torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except Exception as error:  # transformers, tokenizers and safetensors each raise their own kinds
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise UserError(f"cannot load the text encoder in {folder}: {reason}") from error
        # transformers fills what it does not find with noise, and says so in a log alone
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if report[what]:
                first = ", ".join(str(key) for key in sorted(report[what])[:3])
                raise UserError(
                    f"the weights in {folder / 'text_encoder'} do not fit their config; {what[:-5]}: {first}"
                )
        if not all(torch.isfinite(weight).all() for weight in model.parameters()):
            raise UserError(f"the weights in {folder / 'text_encoder'} hold NaN or infinity")
        return cls(tokenizer, model.to(device))
