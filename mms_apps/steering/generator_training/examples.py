"""What the denoiser is trained on: noised latents, and what they are conditioned on."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from mms_apps.steering.generator_training.schedules import (
    PROMPT_ALONE,
    TRAIN_TIMESTEPS,
    embedding_noise,
    noise_schedule,
)
from mms_apps.steering.generator_training.settings import DenoiserTraining


@dataclass(frozen=True)
class Batch:
    """One step's examples.

    noised: latents under noise, `[n, channels, h, w]`.
    times: their timesteps `[n]`.
    labels: noised embedding and its noise level, as the pipeline joins them, `[n, 2 * dim]`.
    states: of the prompts, `[n, tokens, width]`.
    """

    noised: Tensor
    times: Tensor
    labels: Tensor
    states: Tensor


class Examples:
    """Drawings to draw examples from.

    Attributes:
        latents: of unit variance, fp16 `[drawings, channels, h, w]`.
        standard: standardised image embeddings `[drawings, dim]`.
        normaliser: standardises embeddings, and undoes it.
        schedule: the noise of latents.
    """

    def __init__(
        self,
        latents: Tensor,
        standard: Tensor,
        prompts: tuple[Tensor, Tensor],
        weights: Tensor,
        normaliser: Any,
    ) -> None:
        """
        Args:
            prompts: states of the distinct prompts, the empty one first, and each drawing's place.
            weights: how often a drawing comes up, `[drawings]`.
        """
        from diffusers import DDPMScheduler

        self.latents, self.standard, self.normaliser = latents, standard, normaliser
        self.states, self.prompt_of = prompts
        self.weights = weights
        self.schedule = DDPMScheduler(**noise_schedule())
        self.embedding_schedule = DDPMScheduler(**embedding_noise())

    def rows(self, count: int, generator: torch.Generator) -> Tensor:
        """Drawings at random, `[count]`."""
        return torch.multinomial(self.weights, count, replacement=True, generator=generator)

    def labels(self, standard: Tensor, level: Tensor) -> Tensor:
        """Standardised embeddings `[n, dim]` and their noise levels `[n]` as the denoiser takes
        them: `[n, 2 * dim]`."""
        from diffusers.models.embeddings import get_timestep_embedding

        told = get_timestep_embedding(
            level, standard.shape[1], flip_sin_to_cos=True, downscale_freq_shift=0
        )
        return torch.cat([self.normaliser.unscale(standard), told], dim=1)

    def batch(
        self, recipe: DenoiserTraining, count: int, generator: torch.Generator
    ) -> tuple[Batch, Tensor]:
        """Examples at random, and the velocities `[n, channels, h, w]` that are to be predicted;
        embeddings and prompts are left out and noised as the recipe says."""
        rows = self.rows(count, generator)
        x = self.latents[rows].float()
        noise = torch.randn(x.shape, generator=generator)
        times = (TRAIN_TIMESTEPS * torch.rand(count, generator=generator).sqrt()).long()
        chance = torch.rand(3, count, generator=generator)
        level = torch.zeros(count, dtype=torch.long)
        noisy = chance[0] < recipe.noisy_image
        level[noisy] = torch.randint(TRAIN_TIMESTEPS, (int(noisy.sum()),), generator=generator)
        level[chance[0] > 1 - recipe.drop_image] = PROMPT_ALONE
        standard = self.standard[rows]
        over = torch.randn(standard.shape, generator=generator)
        labels = self.labels(self.embedding_schedule.add_noise(standard, over, level), level)
        both = chance[2] < recipe.drop_both
        labels[both] = 0
        prompt = self.prompt_of[rows].clone()
        prompt[both | (chance[1] < recipe.drop_prompt)] = 0
        noised = self.schedule.add_noise(x, noise, times)
        batch = Batch(noised, times, labels, self.states[prompt].float())
        return batch, self.schedule.get_velocity(x, noise, times)


def predicted(unet: nn.Module, batch: Batch, device: str) -> Tensor:
    """The denoiser's velocities `[n, channels, h, w]`."""
    found: Tensor = unet(
        batch.noised.to(device),
        batch.times.to(device),
        encoder_hidden_states=batch.states.to(device),
        class_labels=batch.labels.to(device),
    ).sample
    return found


def joined(first: Batch, second: Batch) -> Batch:
    """Both batches in one."""
    return Batch(
        *(
            torch.cat([getattr(part, field.name) for part in (first, second)])
            for field in fields(Batch)
        )
    )
