"""The denoiser of latents, conditioned on an image embedding and on a prompt."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from features.distributed import mixed_precision
from features.embedded import ENCODERS
from features.encoders.encoder import Encoder
from mms_apps.steering.generator_training.autoencoder import encode_latents
from mms_apps.steering.generator_training.conditions import raw_embeddings, text_states
from mms_apps.steering.generator_training.drawings import Drawn
from mms_apps.steering.generator_training.examples import Examples, predicted
from mms_apps.steering.generator_training.optimise import (
    constant_then_falling,
    optimise_average,
    step_generator,
)
from mms_apps.steering.generator_training.settings import DenoiserTraining, GeneratorTraining

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel


@dataclass(frozen=True)
class Conditions:
    """What conditions the denoiser: the pipeline's normaliser of image embeddings, its text encoder
    and its tokenizer."""

    normaliser: Any
    text_encoder: nn.Module
    tokenizer: Any


def conditions_and_examples(
    drawn: Drawn,
    vae: AutoencoderKL,
    encoder: Encoder,
    training: GeneratorTraining,
    start: Path | None,
    device: str,
) -> tuple[Conditions, Examples]:
    """The conditions, the normaliser from the generator in the folder `start` where there is one,
    and the drawings to learn from."""
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
        StableUnCLIPImageNormalizer,
    )
    from transformers import CLIPTokenizer

    from mms_apps.steering.generator_training.text_encoder import clip_text_model

    folder = ENCODERS / training.encoder
    text_cfg = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=text_cfg["context_length"])
    text_encoder = clip_text_model(encoder.model, text_cfg).to(device).requires_grad_(False)
    embeddings = raw_embeddings(encoder, drawn.pixels)
    if start is None:
        normaliser = StableUnCLIPImageNormalizer(embedding_dim=embeddings.shape[1])
        normaliser.requires_grad_(False)
        normaliser.mean.copy_(embeddings.mean(0, keepdim=True))
        normaliser.std.copy_(embeddings.std(0, keepdim=True))
    else:
        normaliser = StableUnCLIPImageNormalizer.from_pretrained(
            start, subfolder="image_normalizer", torch_dtype=torch.float32
        ).requires_grad_(False)
    examples = Examples(
        encode_latents(vae, drawn.pixels, device) * vae.config.scaling_factor,
        normaliser.scale(embeddings),
        text_states(text_encoder, tokenizer, drawn.captions),
        torch.where(drawn.people, training.denoiser.people, 1.0).double(),
        normaliser,
    )
    return Conditions(normaliser, text_encoder, tokenizer), examples


def train_denoiser(
    unet: UNet2DConditionModel,
    examples: Examples,
    checkpoints: Path,
    training: GeneratorTraining,
    device: str,
) -> UNet2DConditionModel:
    """The denoiser trained on the examples (its averaged weights); `unet` is changed in place."""
    recipe = training.denoiser

    def loss(step: int) -> Tensor:
        generator = step_generator(training.seed, step)
        batch, velocity = examples.batch(recipe, recipe.batch, generator)
        with mixed_precision(device):
            found = predicted(unet, batch, device)
        return (found.float() - velocity.to(device)).square().mean()

    return optimise_average(
        unet,
        loss,
        checkpoints / "unet.safetensors",
        recipe.steps,
        lambda step: constant_then_falling(recipe.learning_rate, step, recipe.steps, recipe.fall),
        json.dumps(
            [
                dataclasses.asdict(replace(recipe, steps=0)),
                dataclasses.asdict(training.autoencoder),
                training.encoder,
                training.seed,
            ]
        ),
        recipe.average_decay,
    )


def first_denoiser(
    training: GeneratorTraining,
    vae: AutoencoderKL,
    examples: Examples,
    start: Path | None,
    device: str,
) -> UNet2DConditionModel:
    """The denoiser of the generator in the folder `start`; an untrained one where there is none."""
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor

    if start is None:
        text_width, dim = examples.states.shape[2], examples.standard.shape[1]
        unet = new_denoiser(training.denoiser, vae, text_width, dim, training.seed)
    else:
        unet = UNet2DConditionModel.from_pretrained(
            start, subfolder="unet", torch_dtype=torch.float32
        )
    # Attention here is over 16 places, where CPUs' fused kernels are slow backwards.
    unet.set_attn_processor(AttnProcessor())
    on_device: UNet2DConditionModel = unet.to(device)
    return on_device


def new_denoiser(
    recipe: DenoiserTraining, vae: AutoencoderKL, text_width: int, dim: int, seed: int
) -> UNet2DConditionModel:
    """An untrained denoiser of an autoencoder's latents."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    levels = len(recipe.channels)
    channels = vae.config.latent_channels
    side = vae.config.sample_size // 2 ** (len(vae.config.block_out_channels) - 1)
    return UNet2DConditionModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=recipe.channels,
        layers_per_block=recipe.layers,
        down_block_types=(*["DownBlock2D"] * (levels - 1), "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", *["UpBlock2D"] * (levels - 1)),
        resnet_time_scale_shift="scale_shift",
        time_embedding_dim=recipe.time_channels,
        cross_attention_dim=text_width,
        attention_head_dim=recipe.heads,
        norm_num_groups=16,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=2 * dim,
    )
