"""Drawings that the denoiser has under way: what it makes of its own noise, step by step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mms_apps.steering.generator_training.examples import Batch, Examples
from mms_apps.steering.generator_training.schedules import TRAIN_TIMESTEPS


class OwnDrawings(nn.Module):
    """A pool of drawings, each at another step of its denoising; a finished one makes room for the
    next. Its state is checkpointed with the denoiser's.

    Attributes:
        latents: as far as each has come, `[pool, channels, h, w]`.
        done: steps that each has behind it, `[pool]`.
        asked: the standardised embeddings that they are asked for, `[pool, dim]`.
    """

    latents: Tensor
    done: Tensor
    asked: Tensor

    def __init__(
        self, examples: Examples, pool: int, steps: int, seed: int, mixed: float = 0.0
    ) -> None:
        """
        Args:
            steps: that a drawing takes.
            mixed: share of drawings that are asked for a mixture of two embeddings.
        """
        super().__init__()
        self.examples, self.steps, self.mixed = examples, steps, mixed
        self.timesteps = torch.linspace(TRAIN_TIMESTEPS - 1, 0, steps + 1).round().long()[:-1]
        generator = torch.Generator().manual_seed(seed)
        rows = examples.rows(pool, generator)
        done = torch.arange(pool) % steps
        real = examples.latents[rows].float()
        noise = torch.randn(real.shape, generator=generator)
        # The first ones begin on the way, from the real drawing under as much noise.
        noised = examples.schedule.add_noise(real, noise, self.timesteps[done])
        asked = examples.standard[rows]
        for name, values in (("asked", asked), ("done", done), ("latents", noised)):
            self.register_buffer(name, values)

    @property
    def signal(self) -> Tensor:
        """Share of the signal in each drawing's variance, `[pool, 1, 1, 1]`."""
        return self.examples.schedule.alphas_cumprod[self.timesteps[self.done]].view(-1, 1, 1, 1)

    def batch(self, told: bool = True) -> Batch:
        """All of them as the denoiser takes them, without a prompt; told what is asked for, or, for
        guidance, not even that."""
        level = torch.zeros_like(self.done)
        labels = self.examples.labels(self.asked, level)
        return Batch(
            self.latents,
            self.timesteps[self.done],
            labels if told else torch.zeros_like(labels),
            self.examples.states[:1].float().expand(len(level), -1, -1),
        )

    def estimate(self, velocity: Tensor) -> Tensor:
        """The clean latents that velocities `[pool, channels, h, w]` point to."""
        signal = self.signal.to(velocity.device)
        noised = self.latents.to(velocity.device)
        return signal.sqrt() * noised - (1 - signal).sqrt() * velocity

    @torch.no_grad()
    def advance(self, velocity: Tensor, generator: torch.Generator) -> None:
        """One step (DDIM, Song et al. 2021) by these velocities; the finished begin anew."""
        signal, velocity = self.signal, velocity.cpu()
        clean = self.estimate(velocity)
        noise = signal.sqrt() * velocity + (1 - signal).sqrt() * self.latents
        self.done += 1
        finished = self.done == self.steps
        self.done[finished] = 0
        after = self.signal
        self.latents = after.sqrt() * clean + (1 - after).sqrt() * noise
        fresh = int(finished.sum())
        self.asked[finished] = self._embeddings(fresh, generator)
        self.latents[finished] = torch.randn(fresh, *self.latents.shape[1:], generator=generator)

    def _embeddings(self, count: int, generator: torch.Generator) -> Tensor:
        """Those of drawings, and mixtures, which no drawing has: up to half of another one comes
        in, so that means and variances stay what they are. `[count, dim]`"""
        first, second = (
            self.examples.standard[self.examples.rows(count, generator)] for _ in range(2)
        )
        share = torch.rand(count, 1, generator=generator) / 2
        share[torch.rand(count, generator=generator) >= self.mixed] = 0
        return (1 - share).sqrt() * first + share.sqrt() * second
