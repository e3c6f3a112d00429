"""Stable unCLIP: the embedding is noised and enters with the noise level."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mms_apps.steering.adapters.base import Adapter, Call, near, refuse_negative, takes

SIGMAS = 6.0
"""How far beyond its mean the square of noise that a row is allowed lies, in its spread."""


class StableUnCLIP(Adapter):
    """Stable unCLIP."""

    paths = (("class_labels",),)

    @classmethod
    def fits(cls, pipe: Any) -> bool:
        return takes(pipe, "image_embeds", "noise_level") and hasattr(pipe, "image_normalizer")

    @property
    def dim(self) -> int:
        return self.pipe.image_normalizer.mean.shape[-1]

    def arguments(self, steered: Tensor, plain: Tensor, call: Call) -> dict[str, Any]:
        refuse_negative(self, call)
        return {
            **call.words(len(steered)),
            "image_embeds": self.ready(steered),
            "noise_level": 0,
        }

    def distances(self, rows: Tensor, given: Tensor, other: Tensor) -> Tensor:
        """Farther than noise takes an embedding; unconditional rows are zero."""
        mean, std = (
            part.detach().to(rows.device).float()
            for part in (self.pipe.image_normalizer.mean, self.pipe.image_normalizer.std)
        )
        kept = self._kept(rows)  # [rows, 1]
        noised, new, old = (
            (part.to(rows.device).float() - mean) / std
            for part in (rows[:, : self.dim], given, other)
        )
        distance = torch.stack([(noised - kept * one).norm(dim=1) for one in new], 1)  # [rows, n]
        most = self.dim + SIGMAS * (2 * self.dim) ** 0.5  # of the squares of so many normal numbers
        noise = (1 - kept.square()).clamp(min=0).sqrt() * most**0.5
        held = (distance <= noise + kept * near(new, old)) & rows.any(1)[:, None]
        return distance.masked_fill(~held, torch.inf)

    def rows(self, rows: Tensor, distance: Tensor, given: Tensor, other: Tensor) -> Tensor:
        nearest, which = distance.min(1)
        move = (other - given).to(rows)[which] * self._kept(rows).to(rows)  # [rows, dim]
        moved = rows.clone()
        moved[:, : self.dim] += move * nearest.isfinite()[:, None]
        return moved

    def _kept(self, rows: Tensor) -> Tensor:
        """The share of an embedding that noising keeps, by the sinusoid of the noise level behind
        it: `[rows, 1]`."""
        from diffusers.models.embeddings import get_timestep_embedding

        kept = self.pipe.image_noising_scheduler.alphas_cumprod.to(rows.device)  # [levels]
        known = get_timestep_embedding(
            torch.arange(len(kept), device=rows.device),
            self.dim,
            flip_sin_to_cos=True,
            downscale_freq_shift=0,
        )
        place = torch.cdist(rows[:, self.dim :].float(), known.float()).argmin(1)
        return kept[place].sqrt()[:, None].float()
