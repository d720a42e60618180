"""A Z-Image pipeline from sizes: the real diffusers and transformers classes, randomly initialised.

The bundled teacher starts here before it is trained, and so do the tests' tiny pipelines.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field
from typing import Annotated

import torch
from pydantic import Field

from l2p.config import Blocks, Int, Side, Width, config
from l2p.teachers.chat_template import LANDSCAPES_TEMPLATE


@config
class VAESizes:
    """Sizes of diffusers' ``AutoencoderKL``; each entry after the first of ``block_out_channels`` halves the side."""

    block_out_channels: Annotated[list[Width], Field(min_length=1, max_length=8)] = field(
        default_factory=lambda: [16, 32, 64, 128]
    )
    layers_per_block: Annotated[Int, Field(ge=1, le=100)] = 1
    latent_channels: Width = 16
    norm_num_groups: Width = 4


@config
class TransformerSizes:
    """Sizes of diffusers' ``ZImageTransformer2DModel``; ``axes_dims`` sum to the width of a head."""

    dim: Width = 256
    n_layers: Annotated[Int, Field(ge=1, le=1000)] = 6
    n_refiner_layers: Blocks = 1
    n_heads: Width = 4
    axes_dims: Annotated[list[Width], Field(min_length=3, max_length=3)] = field(
        default_factory=lambda: [16, 24, 24]
    )
    axes_lens: Annotated[list[Width], Field(min_length=3, max_length=3)] = field(
        default_factory=lambda: [1024, 128, 128]
    )
    patch_size: Side = 2


@config
class TextSizes:
    """Sizes of the text encoder (transformers' ``Qwen3Model``; its last layer is not used, as in Z-Image)."""

    hidden_size: Width = 128
    num_hidden_layers: Annotated[Int, Field(ge=1, le=1000)] = 3
    num_attention_heads: Width = 4
    intermediate_size: Width = 256
    vocab_size: Annotated[Int, Field(ge=257, le=10**6)] = 768


def build_tokenizer(texts: Iterable[str], vocab_size: int):
    """Byte-level BPE (any prompt has tokens) learnt from ``texts``, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|pad|>", "<|user|>", "<|assistant|>", "<|system|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|pad|>",
        padding_side="right",
        model_max_length=512,
    )
    fast.chat_template = LANDSCAPES_TEMPLATE
    return fast


def build_vae(sizes: VAESizes, sample_size: int):
    """An ``AutoencoderKL`` without attention, so that it reads and writes pictures of any size alike."""
    from diffusers import AutoencoderKL

    levels = len(sizes.block_out_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(sizes.block_out_channels),
        layers_per_block=sizes.layers_per_block,
        latent_channels=sizes.latent_channels,
        norm_num_groups=sizes.norm_num_groups,
        sample_size=sample_size,
        scaling_factor=1.0,
        shift_factor=0.0,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def build_text_encoder(sizes: TextSizes, vocab_size: int):
    from transformers import Qwen3Config, Qwen3Model

    return Qwen3Model(
        Qwen3Config(
            vocab_size=vocab_size,
            hidden_size=sizes.hidden_size,
            num_hidden_layers=sizes.num_hidden_layers,
            num_attention_heads=sizes.num_attention_heads,
            num_key_value_heads=sizes.num_attention_heads,
            head_dim=sizes.hidden_size // sizes.num_attention_heads,
            intermediate_size=sizes.intermediate_size,
            max_position_embeddings=512,
            pad_token_id=0,
            eos_token_id=0,
            bos_token_id=0,
        )
    )


def build_transformer(sizes: TransformerSizes, latent_channels: int, text_width: int):
    """A ``ZImageTransformer2DModel`` whose output starts at zero and whose pad tokens are small noise."""
    from diffusers import ZImageTransformer2DModel

    model = ZImageTransformer2DModel(
        all_patch_size=(sizes.patch_size,),
        in_channels=latent_channels,
        dim=sizes.dim,
        n_layers=sizes.n_layers,
        n_refiner_layers=sizes.n_refiner_layers,
        n_heads=sizes.n_heads,
        n_kv_heads=sizes.n_heads,
        cap_feat_dim=text_width,
        axes_dims=list(sizes.axes_dims),
        axes_lens=list(sizes.axes_lens),
    )
    with torch.no_grad():
        model.x_pad_token.normal_(std=0.02)
        model.cap_pad_token.normal_(std=0.02)
    return model


def build_pipeline(vae, transformer, text_encoder, tokenizer, shift: float = 3.0):
    """The ``ZImagePipeline`` of these parts, with a flow-matching Euler scheduler of a fixed shift."""
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline

    scheduler = FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000, shift=shift, use_dynamic_shifting=False
    )
    return ZImagePipeline(
        scheduler=scheduler, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, transformer=transformer
    )
