"""The autoencoder of pictures, then its decoder alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from features.distributed import mixed_precision
from features.embedded.world import EmbeddedPairs
from features.encoders.encoder import Encoder
from mms_apps.steering.generator_training.conditions import as_seen
from mms_apps.steering.generator_training.drawings import draw_images, random_pictures, scaled
from mms_apps.steering.generator_training.optimise import cosine, optimise
from mms_apps.steering.generator_training.settings import GeneratorTraining

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


def train_autoencoder(
    source: EmbeddedPairs,
    drawings: Sequence[Image.Image],
    checkpoints: Path,
    training: GeneratorTraining,
    device: str,
) -> AutoencoderKL:
    """An autoencoder of 64-pixel images, its latents scaled to unit variance."""
    from diffusers import AutoencoderKL

    torch.manual_seed(training.seed)
    recipe = training.autoencoder
    blocks = len(recipe.channels)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=recipe.channels,
        layers_per_block=1,
        latent_channels=recipe.latent_channels,
        norm_num_groups=8,
        sample_size=64,
    ).to(device)
    vae.to(memory_format=torch.channels_last)

    def loss(step: int) -> Tensor:
        x = random_pictures(drawings, f"{training.seed}/vae/{step}", recipe.batch).to(device)
        generator = torch.Generator(device).manual_seed(step)
        with mixed_precision(device):
            posterior = vae.encode(x).latent_dist
            again = vae.decode(posterior.sample(generator)).sample
        kl = posterior.kl().mean()
        return unlikeness(again.float(), x, recipe.edge_weight) + recipe.kl_weight * kl

    optimise(
        {"vae": vae},
        loss,
        checkpoints / "vae.safetensors",
        recipe.steps,
        lambda step: cosine(recipe.learning_rate, step, recipe.steps),
        json.dumps([dataclasses.asdict(recipe), training.seed, source.fingerprint()]),
    )
    vae.eval().requires_grad_(False)
    latents = encode_latents(vae, draw_images(source, 1, training.seed).pixels, device)
    vae.register_to_config(scaling_factor=float(1 / latents.float().std()))
    return vae


def refine_decoder(
    vae: AutoencoderKL,
    drawings: Sequence[Image.Image],
    encoder: Encoder,
    checkpoints: Path,
    training: GeneratorTraining,
    device: str,
) -> None:
    """Train the decoder on, in place."""
    recipe = training.decoder
    parts = nn.ModuleList([vae.post_quant_conv, vae.decoder]).requires_grad_(True)

    def loss(step: int) -> Tensor:
        x = random_pictures(drawings, f"{training.seed}/decoder/{step}", recipe.batch).to(device)
        generator = torch.Generator(device).manual_seed(step)
        with mixed_precision(device):
            with torch.no_grad():
                latents = vae.encode(x).latent_dist.sample(generator)
            again = vae.decode(latents).sample
            seen = perceptual_distance(encoder, again, x)
        pixels = unlikeness(again.float(), x, training.autoencoder.edge_weight)
        return pixels + recipe.perceptual_weight * seen

    optimise(
        {"decoder": parts},
        loss,
        checkpoints / "decoder.safetensors",
        recipe.steps,
        lambda step: cosine(recipe.learning_rate, step, recipe.steps),
        json.dumps(
            [dataclasses.asdict(recipe), dataclasses.asdict(training.autoencoder), training.seed]
        ),
    )
    vae.eval().requires_grad_(False)


def unlikeness(again: Tensor, x: Tensor, edge_weight: float) -> Tensor:
    """L1 distance of images `[n, 3, h, w]`, and of their neighbouring pixels' differences."""
    difference = again - x
    edges = sum(difference.diff(dim=axis).abs().mean() for axis in (2, 3))
    return difference.abs().mean() + edge_weight * edges


def perceptual_distance(encoder: Encoder, again: Tensor, x: Tensor) -> Tensor:
    """How different images `[n, 3, h, w]` in [-1, 1] look to the encoder's residual tower: as LPIPS
    (Zhang et al. 2018) without its learned weights, squared differences of unit features, averaged
    over places and images and added over stages."""

    def maps(images: Tensor) -> list[Tensor]:
        tower: Any = encoder.model.visual
        found = [tower.stem(as_seen(encoder, images.float()))]
        for stage in (tower.layer1, tower.layer2, tower.layer3):
            found.append(stage(found[-1]))
        return [F.normalize(map_.float(), dim=1) for map_ in found]

    with torch.no_grad():
        wanted = maps(x)
    return sum(
        ((a - b).square().sum(1).mean() for a, b in zip(maps(again), wanted, strict=True)),
        start=torch.zeros((), device=x.device),
    )


@torch.no_grad()
def encode_latents(vae: AutoencoderKL, pixels: Tensor, device: str) -> Tensor:
    """Mean latents of uint8 images `[n, 64, 64, 3]`: fp16 `[n, channels, 16, 16]`, unscaled."""
    found = [
        vae.encode(scaled(batch).to(device)).latent_dist.mean.half().cpu()
        for batch in pixels.split(256)
    ]
    return torch.cat(found)
