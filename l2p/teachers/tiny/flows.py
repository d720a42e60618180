"""Tiny pipelines of the families that learnt a flow."""

from __future__ import annotations

import torch

from l2p.teachers import build
from l2p.teachers.tiny.parts import clip, flow_scheduler, randomised, t5, tokenizer, vae


def z_image():
    sizes = build.TransformerSizes(
        dim=64, n_layers=2, n_refiner_layers=1, n_heads=2, axes_dims=[8, 12, 12], axes_lens=[1024, 64, 64]
    )
    text = build.build_text_encoder(build.TextSizes(32, 2, 2, 64, 300), 300)
    return build.build_pipeline(
        vae(16, 0.1), randomised(build.build_transformer(sizes, 16, 32)), text, tokenizer()
    )


def flux(guidance: bool = True):
    from diffusers import FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    )
    return FluxPipeline(
        scheduler=flow_scheduler(use_dynamic_shifting=True) if guidance else flow_scheduler(),
        vae=vae(16, 0.1),
        text_encoder=clip(),
        tokenizer=tokenizer(77),
        text_encoder_2=t5(),
        tokenizer_2=tokenizer(),
        transformer=randomised(transformer),
    )


def flux_schnell():
    return flux(guidance=False)


def chroma():
    from diffusers import ChromaPipeline, ChromaTransformer2DModel

    transformer = ChromaTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=16,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    return ChromaPipeline(
        scheduler=flow_scheduler(shift=3.0),
        vae=vae(16, 0.1),
        text_encoder=t5(),
        tokenizer=tokenizer(),
        transformer=randomised(transformer),
    )


def flux2_vae():
    from diffusers import AutoencoderKLFlux2

    made = AutoencoderKLFlux2(
        block_out_channels=(4, 4, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )
    made.bn.running_mean.copy_(torch.linspace(-0.5, 0.7, 16))
    made.bn.running_var.copy_(torch.linspace(0.4, 2.0, 16))
    return made.eval()


def flux2_transformer(joint: int, guidance: bool):
    from diffusers import Flux2Transformer2DModel

    return randomised(
        Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=joint,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=guidance,
        )
    )


def flux2():
    from diffusers import Flux2Pipeline
    from transformers import MistralConfig, MistralForCausalLM

    text = MistralForCausalLM(
        MistralConfig(
            vocab_size=300,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=31,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=8,
        )
    ).eval()
    return Flux2Pipeline(
        scheduler=flow_scheduler(use_dynamic_shifting=True),
        vae=flux2_vae(),
        text_encoder=text,
        tokenizer=tokenizer(),
        transformer=flux2_transformer(24, guidance=True),
    )


def flux2_klein(distilled: bool = False):
    from diffusers import Flux2KleinPipeline
    from transformers import Qwen3Config, Qwen3ForCausalLM

    text = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=300,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=28,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=8,
        )
    ).eval()
    return Flux2KleinPipeline(
        scheduler=flow_scheduler(use_dynamic_shifting=True),
        vae=flux2_vae(),
        text_encoder=text,
        tokenizer=tokenizer(),
        transformer=flux2_transformer(24, guidance=False),
        is_distilled=distilled,
    )


def flux2_klein_distilled():
    return flux2_klein(distilled=True)


def qwen_image():
    from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                "vocab_size": 300,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [1, 1, 2]},
            },
            vision_config={
                "depth": 1,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_heads": 2,
                "out_hidden_size": 16,
            },
        )
    ).eval()
    transformer = QwenImageTransformer2DModel(
        in_channels=64,
        out_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    return QwenImagePipeline(
        scheduler=flow_scheduler(use_dynamic_shifting=True, shift_terminal=0.02),
        vae=AutoencoderKLQwenImage(base_dim=4, dim_mult=[1, 1, 2, 2], num_res_blocks=1).eval(),
        text_encoder=text,
        tokenizer=tokenizer(),
        transformer=randomised(transformer),
    )


def sd3():
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=randomised(transformer),
        scheduler=flow_scheduler(shift=3.0),
        vae=vae(16, 0.1),
        text_encoder=clip(projection=True),
        tokenizer=tokenizer(77),
        text_encoder_2=clip(projection=True),
        tokenizer_2=tokenizer(77),
        text_encoder_3=t5(32),
        tokenizer_3=tokenizer(),
    )


def sana():
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    text = Gemma2Model(
        Gemma2Config(
            vocab_size=300,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
        )
    ).eval()
    autoencoder = AutoencoderDC(
        latent_channels=8,
        attention_head_dim=2,
        encoder_block_out_channels=(4, 4, 4, 4, 8, 8),
        decoder_block_out_channels=(4, 4, 4, 4, 8, 8),
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        encoder_block_types=("ResBlock",) * 5 + ("EfficientViTBlock",),
        decoder_block_types=("ResBlock",) * 5 + ("EfficientViTBlock",),
        encoder_qkv_multiscales=((), (), (), (), (), (5,)),
        decoder_qkv_multiscales=((), (), (), (), (), (5,)),
        scaling_factor=0.41,
    ).eval()
    transformer = SanaTransformer2DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=4,
    )
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return SanaPipeline(tokenizer(), text, autoencoder, randomised(transformer), scheduler)
