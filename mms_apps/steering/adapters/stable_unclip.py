"""Stable unCLIP: the embedding is noised and enters with the noise level."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mms_apps.steering.adapters.base import Adapter, Call, refuse_negative, takes


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

    def rows(self, rows: Tensor, given: Tensor, other: Tensor) -> Tensor:
        """Noise hides which embedding a row holds: the unconditional rows are zero, the others
        stand in the embeddings' order."""
        conditional = rows.any(1).nonzero()[:, 0]
        moved = rows.clone()
        part = rows[conditional]  # [images, 2 * dim]
        which = torch.arange(len(part), device=rows.device) * len(given) // max(len(part), 1)
        move = (other - given).to(part)[which]  # [images, dim]
        dim = move.shape[1]
        part[:, :dim] += move * self._kept(part[:, dim:])
        moved[conditional] = part
        return moved

    def _kept(self, levels: Tensor) -> Tensor:
        """What noising keeps of an embedding, by its sinusoid of the noise level `[images, dim]`:
        `[images, 1]`."""
        from diffusers.models.embeddings import get_timestep_embedding

        kept = self.pipe.image_noising_scheduler.alphas_cumprod.to(levels.device)  # [levels]
        known = get_timestep_embedding(
            torch.arange(len(kept), device=levels.device),
            levels.shape[1],
            flip_sin_to_cos=True,
            downscale_freq_shift=0,
        )
        place = torch.cdist(levels.float(), known.float()).argmin(1)
        return kept[place].sqrt()[:, None].to(levels)
