"""Tiny twins of the published networks: same modules, same names, small sizes, no weight at zero."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from l2p.published import l2p_weights, pid
from l2p.published.pid_network import PiDNet
from l2p.published.pid_text import instruction

TINY_PID = {
    "hidden_size": 48,
    "num_heads": 3,
    "depth": 3,
    "pixel_width": 8,
    "pixel_attention_width": 24,
    "pixel_heads": 2,
    "pixel_depth": 2,
    "text_width": 16,
    "text_length": 6,
    "num_res_blocks": 2,
    "patch_size": 8,
    "scale": 2,  # with it a token is as many latent cells as in the published ones
}
TINY_CORE = {
    "dim": 64,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "cap_feat_dim": 32,
    "axes_dims": [8, 12, 12],
    "axes_lens": [128, 64, 64],
}


def randomised(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights that keep activations near one, norms near one, nothing at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            std = 0.2 if p.ndim < 2 else p[0].numel() ** -0.5
            p.copy_(std * torch.randn(p.shape, generator=generator, dtype=torch.float64))
            if (
                "norm" in name
                and p.ndim == 1
                or name.endswith(("block.0.weight", "block.3.weight", "cap_embedder.0.weight"))
            ):
                p.add_(1)
    return module


class Doubled(dict):
    """Weights that become fp64 when they are looked at: a whole published network would take 11 GB otherwise."""

    def __getitem__(self, name: str) -> np.ndarray:
        return super().__getitem__(name).detach().double().numpy()


@pytest.fixture
def tiny_pid(monkeypatch):
    """``tiny_pid(name) -> variant``: a published variant's twin, which `l2p import` takes for it from now on."""

    def shrink(name: str) -> pid.PiDVariant:
        published = pid.PID_VARIANTS[name]
        sizes = replace(
            published.sizes, **TINY_PID, latent_width=16 if "v1.5" in name else 8, rope_reference=32
        )
        twin = replace(published, sizes=sizes)
        monkeypatch.setitem(pid.PID_VARIANTS, name, twin)
        return twin

    return shrink


@pytest.fixture
def tiny_pid_net(tiny_pid):
    """``tiny_pid_net(name) -> network`` in fp64 with random weights."""
    return lambda name: randomised(PiDNet(tiny_pid(name).sizes)).double().eval()


@pytest.fixture
def tiny_l2p(monkeypatch):
    """``tiny_l2p(name) -> variant``, likewise."""

    def shrink(name: str) -> l2p_weights.L2PVariant:
        published = l2p_weights.L2P_VARIANTS[name]
        twin = replace(
            published, core=TINY_CORE, width=published.width // 8, size=64 if "1k" in name else 128
        )
        monkeypatch.setitem(l2p_weights.L2P_VARIANTS, name, twin)
        return twin

    return shrink


@pytest.fixture(scope="session")
def gemma(tmp_path_factory) -> str:
    """Folder of a tiny Gemma 2 of the real class, of the width that the twins read, with a tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import Gemma2Config, Gemma2Model, PreTrainedTokenizerFast

    words = ["<pad>", "<bos>", "<unk>", *dict.fromkeys((instruction() + " a red house by the lake").split())]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        unk_token="<unk>",
        padding_side="left",
    )
    config = Gemma2Config(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, pad_token_id=0, bos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("gemma")
    Gemma2Model(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return str(folder)
