"""The denoiser of latents, conditioned on an image embedding and on a prompt."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
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
from mms_apps.steering.generator_training.latent_reader import train_reader
from mms_apps.steering.generator_training.optimise import constant_then_falling, optimise
from mms_apps.steering.generator_training.schedules import (
    PROMPT_ALONE,
    TRAIN_TIMESTEPS,
    embedding_noise,
    noise_schedule,
)
from mms_apps.steering.generator_training.settings import DenoiserTraining, GeneratorTraining

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel


def train_denoiser(
    drawn: Drawn,
    vae: AutoencoderKL,
    encoder: Encoder,
    checkpoints: Path,
    training: GeneratorTraining,
    start: Path | None,
    device: str,
) -> tuple[UNet2DConditionModel, nn.Module, nn.Module, Any]:
    """The denoiser (its averaged weights), and the normaliser, text encoder and tokenizer that
    went with it; trained on from the generator in the folder `start`, where there is one."""
    from diffusers import DDPMScheduler, UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor
    from diffusers.models.embeddings import get_timestep_embedding
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
        StableUnCLIPImageNormalizer,
    )
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
    from transformers import CLIPTokenizer

    from mms_apps.steering.generator_training.text_encoder import clip_text_model

    recipe = training.denoiser
    folder = ENCODERS / training.encoder
    text_cfg = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=text_cfg["context_length"])
    text_encoder = clip_text_model(encoder.model, text_cfg).to(device).requires_grad_(False)
    embeddings = raw_embeddings(encoder, drawn.pixels)
    dim = embeddings.shape[1]
    if start is None:
        normaliser = StableUnCLIPImageNormalizer(embedding_dim=dim).requires_grad_(False)
        normaliser.mean.copy_(embeddings.mean(0, keepdim=True))
        normaliser.std.copy_(embeddings.std(0, keepdim=True))
    else:
        normaliser = StableUnCLIPImageNormalizer.from_pretrained(
            start, subfolder="image_normalizer", torch_dtype=torch.float32
        ).requires_grad_(False)
    standard = normaliser.scale(embeddings)  # [n, dim]
    latents = encode_latents(vae, drawn.pixels, device)
    scale = vae.config.scaling_factor
    states, of_row = text_states(text_encoder, tokenizer, drawn.captions)
    weights = torch.where(drawn.people, recipe.people, 1.0).double()

    reader = train_reader(latents.float() * scale, standard, checkpoints, training, device)

    if start is None:
        unet = new_denoiser(recipe, vae, text_cfg["width"], dim, training.seed)
    else:
        unet = UNet2DConditionModel.from_pretrained(
            start, subfolder="unet", torch_dtype=torch.float32
        )
    unet.to(device)
    # Attention here is over 16 places, where CPUs' fused kernels are slow backwards.
    unet.set_attn_processor(AttnProcessor())
    average = AveragedModel(unet, multi_avg_fn=get_ema_multi_avg_fn(recipe.average_decay))
    schedule = DDPMScheduler(**noise_schedule())
    embedding_schedule = DDPMScheduler(**embedding_noise())

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(training.seed * 1_000_003 + step)
        n = recipe.batch
        rows = torch.multinomial(weights, n, replacement=True, generator=generator)
        x = latents[rows].float() * scale
        noise = torch.randn(x.shape, generator=generator)
        times = (TRAIN_TIMESTEPS * torch.rand(n, generator=generator).sqrt()).long()
        chance = torch.rand(3, n, generator=generator)
        level = torch.zeros(n, dtype=torch.long)
        noisy = chance[0] < recipe.noisy_image
        level[noisy] = torch.randint(TRAIN_TIMESTEPS, (int(noisy.sum()),), generator=generator)
        level[chance[0] > 1 - recipe.drop_image] = PROMPT_ALONE
        embedding_noise_ = torch.randn(n, dim, generator=generator)
        seen = embedding_schedule.add_noise(standard[rows], embedding_noise_, level)
        labels = torch.cat(
            [
                normaliser.unscale(seen),
                get_timestep_embedding(level, dim, flip_sin_to_cos=True, downscale_freq_shift=0),
            ],
            dim=1,
        )  # [n, 2 * dim]
        both = chance[2] < recipe.drop_both
        labels[both] = 0
        which = of_row[rows].clone()
        which[both | (chance[1] < recipe.drop_prompt)] = 0
        noised = schedule.add_noise(x, noise, times)
        with mixed_precision(device):
            predicted = unet(
                noised.to(device),
                times.to(device),
                encoder_hidden_states=states[which].float().to(device),
                class_labels=labels.to(device),
            ).sample
        velocity = predicted.float()
        target = schedule.get_velocity(x, noise, times).to(device)
        told = torch.nonzero((level == 0) & ~both).flatten()
        signal = schedule.alphas_cumprod[times[told]].to(device)  # [told]
        drawn_x = (
            signal.sqrt().view(-1, 1, 1, 1) * noised[told].to(device)
            - (1 - signal).sqrt().view(-1, 1, 1, 1) * velocity[told.to(device)]
        )  # [told, channels, h, w]
        with mixed_precision(device):
            read = reader(drawn_x).float()  # [told, dim]
        apart = (read - standard[rows[told]].to(device)).square().mean(1)
        reading = (signal * apart).sum() / n
        return (velocity - target).square().mean() + recipe.reading_weight * reading

    optimise(
        {"unet": unet, "average": average},
        loss,
        checkpoints / "unet.safetensors",
        recipe.steps,
        lambda step: constant_then_falling(recipe.learning_rate, step, recipe.steps, recipe.fall),
        json.dumps(
            [
                dataclasses.asdict(replace(recipe, steps=0)),
                dataclasses.asdict(training.autoencoder),
                dataclasses.asdict(training.reader),
                training.encoder,
                training.start,
                training.seed,
            ]
        ),
        after_step=lambda: average.update_parameters(unet),
    )
    return average.module.eval(), normaliser, text_encoder, tokenizer


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
