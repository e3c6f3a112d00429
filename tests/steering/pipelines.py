"""Small random pipelines of the classes that steering enters, with embeddings of 16 dimensions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    KandinskyV22Pipeline,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    StableUnCLIPImg2ImgPipeline,
    UNet2DConditionModel,
    VQModel,
)
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
    StableUnCLIPImageNormalizer,
)
from safetensors.torch import save_file
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from features.embedded import ENCODERS
from features.encoders.load import load_encoder
from mms_apps.steering.generator_training.text_encoder import clip_text_model

DIM = 16


def _tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(ENCODERS / "embedded", model_max_length=16)


def _text_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=2710,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=DIM,
        eos_token_id=2709,
        bos_token_id=2708,
        pad_token_id=2709,
    )


def _vision() -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=DIM,
    )
    return CLIPVisionModelWithProjection(config)


def _extractor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size=32, crop_size=32)


def _vae(latent_channels: int = 4, **settings: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=16,
        **settings,
    )


def unet(**settings: Any) -> UNet2DConditionModel:
    defaults: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (16, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**defaults | settings)


def stable_unclip() -> StableUnCLIPImg2ImgPipeline:
    return StableUnCLIPImg2ImgPipeline(
        feature_extractor=_extractor(),
        image_encoder=_vision(),
        image_normalizer=StableUnCLIPImageNormalizer(DIM),
        image_noising_scheduler=DDIMScheduler(),
        tokenizer=_tokenizer(),
        text_encoder=CLIPTextModel(_text_config()),
        unet=unet(class_embed_type="projection", projection_class_embeddings_input_dim=2 * DIM),
        scheduler=DDIMScheduler(),
        vae=_vae(),
    )


def kandinsky22() -> KandinskyV22Pipeline:
    unet = UNet2DConditionModel(
        in_channels=4,
        out_channels=8,
        addition_embed_type="image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(16, 16),
        layers_per_block=1,
        encoder_hid_dim=DIM,
        encoder_hid_dim_type="image_proj",
        cross_attention_dim=DIM,
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
        norm_num_groups=4,
    )
    movq = VQModel(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        num_vq_embeddings=12,
        norm_num_groups=4,
        norm_type="spatial",
        vq_embed_dim=4,
    )
    return KandinskyV22Pipeline(unet=unet, scheduler=DDIMScheduler(), movq=movq)


def stable_diffusion_of_prompts() -> StableDiffusionPipeline:
    """Without what reads images, with the text encoder of `embedded-ssl`."""
    folder = ENCODERS / "embedded-ssl"
    text_cfg = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=clip_text_model(load_encoder("embedded-ssl", device="cpu").model, text_cfg),
        tokenizer=CLIPTokenizer.from_pretrained(
            folder, model_max_length=text_cfg["context_length"]
        ),
        unet=unet(cross_attention_dim=text_cfg["width"]),
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion() -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config()),
        tokenizer=_tokenizer(),
        unet=unet(),
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=_extractor(),
        image_encoder=_vision(),
        requires_safety_checker=False,
    )


def stable_diffusion_xl() -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config()),
        text_encoder_2=CLIPTextModelWithProjection(_text_config()),
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        unet=unet(
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + DIM,
            cross_attention_dim=64,
        ),
        scheduler=DDIMScheduler(),
        image_encoder=_vision(),
        feature_extractor=_extractor(),
    )


def flux() -> FluxPipeline:
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    t5 = T5EncoderModel(
        T5Config(vocab_size=2710, d_model=32, d_ff=32, d_kv=8, num_layers=1, num_heads=4)
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(latent_channels=1, shift_factor=0.1),
        text_encoder=CLIPTextModel(_text_config()),
        tokenizer=_tokenizer(),
        text_encoder_2=t5,
        tokenizer_2=_tokenizer(),
        transformer=transformer,
        image_encoder=_vision(),
        feature_extractor=_extractor(),
    )


def stable_diffusion_3() -> StableDiffusion3Pipeline:
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=64,
        pooled_projection_dim=2 * DIM,
        out_channels=4,
    )
    t5 = T5EncoderModel(
        T5Config(vocab_size=2710, d_model=64, d_ff=32, d_kv=8, num_layers=1, num_heads=4)
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(shift_factor=0.1),
        text_encoder=CLIPTextModelWithProjection(_text_config()),
        tokenizer=_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(_text_config()),
        tokenizer_2=_tokenizer(),
        text_encoder_3=t5,
        tokenizer_3=_tokenizer(),
    )


def save_unet_ip_adapter(unet: UNet2DConditionModel, path: Path) -> None:
    """A random IP-Adapter of four tokens for a UNet, as one safetensors file."""
    width = unet.config.cross_attention_dim
    state = _image_projection(width)
    key = 1
    for name in unet.attn_processors:
        if name.endswith("attn1.processor"):
            continue
        for which in ("to_k_ip", "to_v_ip"):
            state[f"ip_adapter.{key}.{which}.weight"] = torch.randn(16, width)
        key += 2
    save_file(state, path)


def save_flux_ip_adapter(transformer: FluxTransformer2DModel, path: Path) -> None:
    """A random IP-Adapter of four tokens for FLUX, as one safetensors file."""
    width = transformer.config.joint_attention_dim
    state = _image_projection(width)
    hidden = 32
    for block in range(transformer.config.num_layers):
        for which in ("to_k_ip", "to_v_ip"):
            state[f"ip_adapter.{block}.{which}.weight"] = torch.randn(hidden, width)
            state[f"ip_adapter.{block}.{which}.bias"] = torch.randn(hidden)
    save_file(state, path)


def _image_projection(width: int) -> dict[str, torch.Tensor]:
    return {
        "image_proj.proj.weight": torch.randn(4 * width, DIM),
        "image_proj.proj.bias": torch.randn(4 * width),
        "image_proj.norm.weight": torch.ones(width),
        "image_proj.norm.bias": torch.zeros(width),
    }
