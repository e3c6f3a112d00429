"""Stable unCLIP: the embedding is noised and enters with the noise level."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mms_apps.steering.adapters.base import Adapter, like_parameters, prompts_for


class StableUnCLIP(Adapter):
    """Stable unCLIP."""

    noise_level = 0

    def inputs(self, embedding: Tensor, prompt: str | list[str], guided: bool) -> dict[str, Any]:
        embedding = like_parameters(embedding, self.denoiser)
        return {
            "prompt": prompts_for(prompt, len(embedding)),
            "image_embeds": embedding,
            "noise_level": self.noise_level,
        }

    def shift(self, inputs: dict[str, Any], move: Tensor) -> dict[str, Any]:
        labels = inputs["class_labels"]
        kept = self.pipe.image_noising_scheduler.alphas_cumprod[self.noise_level].sqrt()
        moved = labels.clone()
        half = len(labels) // 2
        guided = len(labels) % 2 == 0 and not labels[:half].any()
        rows = slice(half, None) if guided else slice(None)
        part = moved[rows]
        step = move.repeat_interleave(len(part) // len(move), 0).to(part) * kept.to(part)
        part[:, : move.shape[1]] += step
        return inputs | {"class_labels": moved}
