"""A network that reads the image embedding from latents, so that the denoiser can be told how far
what it draws is from what it was asked to draw."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from features.distributed import mixed_precision
from mms_apps.steering.generator_training.examples import Examples
from mms_apps.steering.generator_training.optimise import cosine, optimise, step_generator
from mms_apps.steering.generator_training.settings import GeneratorTraining


class LatentReader(nn.Module):
    """Latents `[n, channels, h, w]` of unit variance -> standardised embeddings `[n, dim]`."""

    def __init__(self, channels: int, width: int, dim: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_block(channels, width, stride=1),
            *_block(width, 2 * width, stride=2),
            *_block(2 * width, 2 * width, stride=1),
            *_block(2 * width, 4 * width, stride=2),
            *_block(4 * width, 4 * width, stride=1),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * width, dim),
        )

    def forward(self, latents: Tensor) -> Tensor:
        """As the class says."""
        found: Tensor = self.body(latents)
        return found


def _block(channels: int, width: int, stride: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(channels, width, 3, stride=stride, padding=1),
        nn.GroupNorm(8, width),
        nn.SiLU(),
    )


def train_reader(
    examples: Examples, checkpoints: Path, training: GeneratorTraining, device: str
) -> LatentReader:
    """A reader, trained on the examples' latents under some noise and their standardised
    embeddings; it is frozen."""
    recipe = training.reader
    latents, standard = examples.latents, examples.standard
    torch.manual_seed(training.seed)
    reader = LatentReader(latents.shape[1], recipe.width, standard.shape[1]).to(device)

    def loss(step: int) -> Tensor:
        generator = step_generator(training.seed, step)
        rows = torch.randint(len(latents), (recipe.batch,), generator=generator)
        x = latents[rows].float()
        level = recipe.noise * torch.rand(len(x), 1, 1, 1, generator=generator)
        x = x + level * torch.randn(x.shape, generator=generator)
        with mixed_precision(device):
            read = reader(x.to(device))
        return (read.float() - standard[rows].to(device)).square().mean()

    optimise(
        {"reader": reader},
        loss,
        checkpoints / "reader.safetensors",
        recipe.steps,
        lambda step: cosine(recipe.learning_rate, step, recipe.steps),
        json.dumps([dataclasses.asdict(recipe), training.encoder, training.start, training.seed]),
    )
    return reader.eval().requires_grad_(False)
