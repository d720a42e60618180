"""What several tiny pipelines share: a tokenizer made on the spot, small encoders and an autoencoder."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn

from l2p.teachers import build

WORDS = ["a lake at dusk", "a small house near a river in winter, pine trees and mountains, cloudy sky"]
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}{% endfor %}"
)


@lru_cache
def tokenizer(max_length: int = 512):
    from tokenizers import processors

    made = build.build_tokenizer(WORDS, 300)
    # As T5 and CLIP, an empty prompt has one token.
    end = made.convert_tokens_to_ids("<|assistant|>")
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|assistant|>", special_tokens=[("<|assistant|>", end)]
    )
    made.chat_template = TEMPLATE
    made.model_max_length = max_length
    return made


def randomised(module: nn.Module, std: float = 0.1) -> nn.Module:
    """Noise on every parameter, so that no path is switched off by a zero."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(std * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def vae(channels: int, shift: float | None = None, scale: float = 0.7):
    made = build.build_vae(build.VAESizes([4, 4, 8, 8], latent_channels=channels), sample_size=64)
    made.register_to_config(scaling_factor=scale, shift_factor=shift)
    return made


def clip(width: int = 16, projection: bool = False):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=300,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=width,
        eos_token_id=0,
        bos_token_id=1,
        pad_token_id=0,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def t5(width: int = 16):
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=300, d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2, pad_token_id=0)
    ).eval()


def flow_scheduler(**changes):
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**changes)
