"""The pipeline of trained parts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from features.embedded import ENCODERS
from features.encoders.encoder import Encoder
from mms_apps.steering.generator_training.denoiser import Conditions
from mms_apps.steering.generator_training.schedules import embedding_noise, noise_schedule

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, StableUnCLIPImg2ImgPipeline, UNet2DConditionModel


def assemble(
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    conditions: Conditions,
    encoder: Encoder,
) -> StableUnCLIPImg2ImgPipeline:
    """The pipeline of trained parts, with a fast scheduler."""
    from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, StableUnCLIPImg2ImgPipeline
    from transformers import CLIPImageProcessor

    from mms_apps.steering.image_encoder import OpenClipVisionConfig, OpenClipVisionModel

    folder = ENCODERS / encoder.id
    config = json.loads((folder / "open_clip_config.json").read_text())
    model_cfg, preprocess_cfg = config["model_cfg"], config["preprocess_cfg"]
    vision = OpenClipVisionModel(
        OpenClipVisionConfig(model_cfg["embed_dim"], model_cfg["vision_cfg"])
    )
    vision.visual.load_state_dict(encoder.model.visual.state_dict())  # type: ignore[union-attr]
    size = model_cfg["vision_cfg"]["image_size"]
    return StableUnCLIPImg2ImgPipeline(
        feature_extractor=CLIPImageProcessor(
            size={"shortest_edge": size},
            crop_size={"height": size, "width": size},
            image_mean=preprocess_cfg["mean"],
            image_std=preprocess_cfg["std"],
        ),
        image_encoder=vision.eval(),
        image_normalizer=conditions.normaliser,
        image_noising_scheduler=DDPMScheduler(**embedding_noise()),
        tokenizer=conditions.tokenizer,
        text_encoder=conditions.text_encoder,
        unet=unet,
        scheduler=DPMSolverMultistepScheduler(**noise_schedule()),
        vae=vae,
    )
