"""Captions as the published decoder reads them, on a tiny Gemma 2 of the real class."""

from __future__ import annotations

import pytest
import torch

from l2p.errors import UserError
from l2p.published.pid_text import CaptionReader, instruction


def test_first_token_and_the_last_ones(gemma):
    reader = CaptionReader.from_pretrained(gemma, dtype=torch.float32)
    features = reader(["a red house", "lake"])
    assert features.shape == (2, 300, 16)
    opening = reader.tokenizer(instruction()).input_ids
    words = reader.tokenizer("a red house", add_special_tokens=False).input_ids
    ids = opening + words
    with torch.no_grad():
        whole = reader.model(torch.tensor([ids]))[0][0]
    torch.testing.assert_close(features[0, 0], whole[0])  # the first token's
    # 298 + the instruction's tokens are read; the last 299 of them begin at the instruction's last one
    kept = len(opening) + 298 - 299
    torch.testing.assert_close(features[0, 1 : 1 + len(ids) - kept], whole[kept:])


def test_instruction_is_one_text_that_ends_where_a_prompt_begins():
    assert instruction().endswith("User Prompt: ") and "'" not in instruction()


def test_broken_readers_are_one_line(tmp_path, gemma):
    with pytest.raises(UserError, match="no such file or directory: /nowhere/at/all"):
        CaptionReader.from_pretrained("/nowhere/at/all")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot load the text encoder"):
        CaptionReader.from_pretrained(str(tmp_path))
