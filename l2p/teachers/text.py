"""Prompt to caption features: a cache around a pipeline's own ``encode_prompt``, and Z-Image's reading of prompts."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from l2p.checksums import check_folder
from l2p.declared import check_part
from l2p.errors import UserError, warn
from l2p.files import read_json
from l2p.runtime import realign_tensors
from l2p.teachers.chat_template import bound_chat_templates, one_call
from l2p.teachers.installed import attention_of, check_tokenizer, diffusers_class, model_class
from l2p.teachers.protocol import Conditioning
from l2p.teachers.tokenizer_file import check_tokenizer_file, refusing_panics

MAX_TOKENS = 512  # as in diffusers' ZImagePipeline
CHUNK = 256  # prompts read at once


Row = tuple[torch.Tensor, torch.Tensor | None]  # features [L, C] and pooled vector [P] of one prompt


class PromptEncoder(ABC):
    """Prompts to :class:`Conditioning`; features are cached by prompt, since prompts repeat.

    Args:
        cache_size: prompts remembered, the oldest forgotten first; 0 turns the cache off.
    """

    def __init__(self, cache_size: int = 16384) -> None:
        self.cache_size = cache_size
        self._cache: dict[str, Row] = {}
        self._home: torch.device | None = None  # where parked models belong

    @property
    @abstractmethod
    def modules(self) -> dict[str, nn.Module]:
        """The language models, by the name of their folder."""

    @property
    def width(self) -> int:
        """C, numbers a token has."""
        return self.empty().embeds.shape[-1]

    @abstractmethod
    def _read(self, prompts: Sequence[str]) -> list[Row]:
        """Features of a few prompts."""

    @abstractmethod
    def empty(self) -> Conditioning:
        """What classifier-free guidance steers away from: one row."""

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Conditioning:
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._cache]
        if missing and self._home is not None:
            self._move(self._home)
            self._home = None
        fresh: dict[str, Row] = {}
        for start in range(0, len(missing), CHUNK):
            chunk = missing[start : start + CHUNK]
            try:
                with refusing_panics():
                    fresh.update(zip(chunk, self._read(chunk), strict=True))
            except IndexError as error:
                raise UserError(
                    f"the tokenizer has tokens that the text encoder does not know ({error}): they do not belong together"
                ) from error
        rows = [fresh[p] if p in fresh else self._cache[p] for p in prompts]
        if self.cache_size:
            self._cache.update(fresh)
            while len(self._cache) > self.cache_size:
                del self._cache[next(iter(self._cache))]
        return _stack(rows)

    def forget(self) -> None:
        """Empty the cache, for honest timings from prompt to picture."""
        self._cache.clear()

    def park(self) -> None:
        """Give an accelerator's memory back: the models wait on the CPU until a prompt comes that is not cached."""
        device = next((module.device for module in self.modules.values()), None)
        if device is not None and device.type != "cpu":
            self._home = device
            self._move(torch.device("cpu"))

    def _move(self, device: torch.device) -> None:
        for module in self.modules.values():
            module.to(device)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> PromptEncoder:
        for module in self.modules.values():
            module.to(device=device, dtype=dtype)
        self.forget()
        return self


def _stack(rows: Sequence[Row]) -> Conditioning:
    embeds = nn.utils.rnn.pad_sequence([features for features, _ in rows], batch_first=True)
    lengths = torch.tensor([len(features) for features, _ in rows])
    pooled = None if rows[0][1] is None else torch.stack([vector for _, vector in rows])
    return Conditioning(embeds, lengths, pooled)


class PipelineEncoder(PromptEncoder):
    """The text encoders and tokenizers of a diffusers pipeline, read by a function of its family.

    Args:
        read: see :meth:`l2p.teachers.protocol.Teacher.read_prompts`.
    """

    def __init__(self, pipeline, read: Callable, cache_size: int = 16384) -> None:
        super().__init__(cache_size)
        self.pipeline = pipeline
        self.read = read
        for module in self.modules.values():
            module.eval().requires_grad_(False)

    @property
    def modules(self) -> dict[str, nn.Module]:
        parts = self.pipeline.components.items()
        return {name: part for name, part in parts if name.startswith("text_encoder") and part is not None}

    def _read(self, prompts: Sequence[str], empty: bool = False) -> list[Row]:
        with one_call(prompts):
            embeds, mask, pooled = self.read(self.pipeline, list(prompts), empty=empty)
        rows = embeds if mask is None else [e[m] for e, m in zip(embeds, mask.bool(), strict=True)]
        return list(zip(rows, [None] * len(rows) if pooled is None else pooled, strict=True))

    @torch.no_grad()
    def empty(self) -> Conditioning:
        return _stack(self._read([""], empty=True))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write each text encoder and tokenizer into a folder of its own, named as in the pipeline."""
        for name, part in self.pipeline.components.items():
            if name.startswith(("text_encoder", "tokenizer")) and part is not None:
                forget_last_call(part)
                part.save_pretrained(Path(folder) / name)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        pipeline_class: str,
        read: Callable,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | Literal["auto"] | None = None,
    ) -> PipelineEncoder:
        """What :meth:`save_pretrained` wrote, around a pipeline of this class that holds nothing else.

        Raises:
            UserError: a part is missing or broken.
        """
        folder, pipeline = Path(folder), diffusers_class(pipeline_class)
        given = inspect.signature(pipeline.__init__).parameters.items()
        parts: dict[str, Any] = {
            name: None for name, p in given if name != "self" and p.default is inspect.Parameter.empty
        }
        readers = [name for name in parts if name.startswith(("text_encoder", "tokenizer"))]
        _need(folder, readers)
        for name in readers:
            if name.startswith("tokenizer"):
                parts[name] = read_tokenizer(folder, name)
                continue
            (architecture,) = read_json(folder / name / "config.json").get("architectures") or [""]
            loader = model_class(folder / name, architecture)
            parts[name] = read_model(folder, name, loader, dtype).to(device)
        return cls(pipeline(**parts), read)


class TextEncoder(PromptEncoder):
    """Z-Image's reading of a prompt: chat template, then the last hidden state but one."""

    def __init__(self, tokenizer, model: nn.Module, cache_size: int = 16384) -> None:
        super().__init__(cache_size)
        if getattr(tokenizer, "chat_template", "") is None:
            raise UserError(
                f"the tokenizer in {tokenizer.name_or_path} has no chat template: is chat_template.jinja missing?"
            )
        self.tokenizer = tokenizer
        self.model = realign_tensors(model.eval().requires_grad_(False))

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {"text_encoder": self.model}

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
        """Token ids and mask [B, L] of the prompts in the chat template, padded to the longest.

        Of a prompt beyond ``MAX_TOKENS`` the end is cut off, with a warning; what the template puts after it is kept.
        """
        with one_call(prompts):
            texts = [self.in_template(prompt) for prompt in prompts]
        if self.tokenizer.pad_token is None:
            raise UserError("the tokenizer has no pad_token, which prompts of several lengths need")
        found = [self._cut(ids, prompt) for ids, prompt in zip(self._ids(texts), prompts, strict=True)]
        tokens = self.tokenizer.pad(
            {"input_ids": found}, padding=True, padding_side="right", return_tensors="pt", verbose=False
        )
        known, largest = self.model.get_input_embeddings().num_embeddings, int(tokens.input_ids.max())
        if (
            largest >= known
        ):  # else a CPU raises an IndexError, and a GPU an assertion that spoils the process
            raise UserError(
                f"the tokenizer has a token {largest}, the text encoder knows {known}: they do not belong together"
            )
        return tokens.input_ids, tokens.attention_mask.bool()

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts), verbose=False).input_ids

    def _cut(self, ids: list[int], prompt: str) -> list[int]:
        if len(ids) <= MAX_TOKENS:
            return ids
        bare, tail = self._ids([self.in_template("")])[0], 0
        while tail < len(bare) and bare[-1 - tail] == ids[-1 - tail]:
            tail += 1
        warn(
            f"the prompt {prompt[:40]!r}... has {len(ids)} tokens with its template, of which {MAX_TOKENS} are read: its "
            "end is cut off"
        )
        return ids[: MAX_TOKENS - tail] + ids[len(ids) - tail :]

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

    def _read(self, prompts: Sequence[str]) -> list[Row]:
        ids, mask = self.tokenize(prompts)
        features = self.features(ids, mask)
        return [(f[m], None) for f, m in zip(features, mask.to(features.device), strict=True)]

    def empty(self) -> Conditioning:
        return self([""])

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``folder/text_encoder`` and ``folder/tokenizer`` as a diffusers pipeline has them."""
        self.model.save_pretrained(Path(folder) / "text_encoder")
        forget_last_call(self.tokenizer)
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
        from transformers import AutoModel

        folder = Path(folder)
        _need(folder, ("text_encoder", "tokenizer"))
        tokenizer, model = (
            read_tokenizer(folder, "tokenizer"),
            read_model(folder, "text_encoder", AutoModel, dtype),
        )
        return cls(tokenizer, model.to(device))


def _need(folder: Path, parts: Sequence[str]) -> None:
    for part in parts:
        if not (folder / part).is_dir():
            raise UserError(
                f"{folder} has no {part}/ folder: it needs a text encoder and a tokenizer to read prompts"
            )


def read_tokenizer(folder: Path, part: str):
    """The tokenizer, or the processor around it, in ``folder/part``. Raises UserError when it is broken."""
    from transformers import AutoProcessor, AutoTokenizer

    bound_chat_templates()
    check_folder(folder, part)
    check_tokenizer(folder / part)
    is_processor = any(
        (folder / part / f"{kind}_config.json").is_file() for kind in ("processor", "preprocessor")
    )
    check_tokenizer_file(folder / part)
    try:
        with refusing_panics():
            return (AutoProcessor if is_processor else AutoTokenizer).from_pretrained(
                folder / part, trust_remote_code=False
            )
    except Exception as error:  # transformers and tokenizers each raise their own kinds
        raise _unreadable(folder, error) from error


def read_model(folder: Path, part: str, loader, dtype: torch.dtype | Literal["auto"] | None) -> nn.Module:
    """The language model in ``folder/part``, strictly. Raises UserError when it is broken or does not fit."""
    check_folder(folder, part)
    check_part(folder / part)
    try:
        model, report = loader.from_pretrained(
            folder / part,
            dtype=dtype or torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation=attention_of(loader, folder / part),
            output_loading_info=True,
        )
    except Exception as error:  # transformers and safetensors each raise their own kinds
        raise _unreadable(folder, error) from error
    # transformers fills what it does not find with noise, and says so in a log alone
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[what]:
            first = ", ".join(str(key) for key in sorted(report[what])[:3])
            raise UserError(f"the weights in {folder / part} do not fit their config; {what[:-5]}: {first}")
    if not all(torch.isfinite(weight).all() for weight in model.parameters()):
        raise UserError(f"the weights in {folder / part} hold NaN or infinity")
    return model


def _unreadable(folder: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return UserError(f"cannot load the text encoder in {folder}: {reason}")


def forget_last_call(tokenizer: Any) -> None:
    """A fast tokenizer keeps the truncation and padding of its last call, and would write them into its file."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
