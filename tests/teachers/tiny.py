"""Tiny pipelines of the real diffusers classes with random weights, one a family; tokenizers are made on the spot.

``PIPELINES[class name]()`` takes well under a second. Constants (scaling, shift, statistics) are odd on purpose, so that
one left out or applied twice shows.
"""

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


def z_image():
    sizes = build.TransformerSizes(
        dim=64, n_layers=2, n_refiner_layers=1, n_heads=2, axes_dims=[8, 12, 12], axes_lens=[128, 32, 32]
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


def unet(cross: int, **changes):
    from diffusers import UNet2DConditionModel

    return randomised(
        UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            attention_head_dim=2,
            cross_attention_dim=cross,
            **changes,
        ),
        std=0.05,
    )


def sdxl():
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
    )
    return StableDiffusionXLPipeline(
        vae=vae(4, scale=0.13),
        text_encoder=clip(),
        text_encoder_2=clip(projection=True),
        tokenizer=tokenizer(77),
        tokenizer_2=tokenizer(77),
        unet=unet(
            32,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=16 + 6 * 8,
            use_linear_projection=True,
        ),
        scheduler=scheduler,
        add_watermarker=False,
    )


def sd15():
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae=vae(4, scale=0.18),
        text_encoder=clip(),
        tokenizer=tokenizer(77),
        unet=unet(16),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def pixart():
    from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=32,
        sample_size=8,
        patch_size=2,
        caption_channels=16,
        use_additional_conditions=False,
    )
    return PixArtSigmaPipeline(
        tokenizer=tokenizer(),
        text_encoder=t5(),
        vae=vae(4, scale=60.0),  # a random network of this kind draws latents this large
        transformer=randomised(transformer),
        scheduler=DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02),
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


def dit():
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        norm_num_groups=4,
    )
    return DiTPipeline(
        transformer=randomised(transformer),
        vae=vae(4, scale=8.0),
        scheduler=DDIMScheduler(clip_sample=False),
        id2label={0: "tench, Tinca tinca", 7: "cock"},
    )


PIPELINES = {
    "ZImagePipeline": z_image,
    "FluxPipeline": flux,
    "FluxPipeline (schnell)": flux_schnell,
    "Flux2Pipeline": flux2,
    "Flux2KleinPipeline": flux2_klein,
    "Flux2KleinPipeline (distilled)": flux2_klein_distilled,
    "QwenImagePipeline": qwen_image,
    "ChromaPipeline": chroma,
    "StableDiffusion3Pipeline": sd3,
    "StableDiffusionXLPipeline": sdxl,
    "StableDiffusionPipeline": sd15,
    "PixArtSigmaPipeline": pixart,
    "SanaPipeline": sana,
    "DiTPipeline": dit,
}
