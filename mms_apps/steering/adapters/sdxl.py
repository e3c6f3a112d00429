"""SDXL's pooled prompt."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from features.errors import UserError
from mms_apps.steering.adapters.base import Adapter, like_parameters, move_conditional, prompts_for


class SDXLPooledPrompt(Adapter):
    """The pooled embedding of SDXL's second text encoder."""

    modality = "text"

    def embed_image(self, image: Image.Image) -> Tensor:
        raise UserError(
            f"{type(self.pipe).__name__} without an IP-Adapter takes texts, not images; give a "
            "prompt, or load an IP-Adapter"
        )

    def inputs(self, embedding: Tensor, prompt: str | list[str], guided: bool) -> dict[str, Any]:
        with torch.no_grad():
            states, negative, _, negative_pooled = self.pipe.encode_prompt(
                prompts_for(prompt, len(embedding)), device=self.pipe._execution_device
            )
        return {
            "prompt_embeds": states,
            "negative_prompt_embeds": negative,
            "pooled_prompt_embeds": like_parameters(embedding, self.denoiser),
            "negative_pooled_prompt_embeds": negative_pooled,
        }

    def embed_prompt(self, prompt: str | list[str]) -> Tensor:
        with torch.no_grad():
            return self.pipe.encode_prompt(prompt, device=self.pipe._execution_device)[2]

    def shift(self, inputs: dict[str, Any], move: Tensor) -> dict[str, Any]:
        added = inputs["added_cond_kwargs"]
        guided = self.pipe.do_classifier_free_guidance
        moved = move_conditional(added["text_embeds"], move, guided)
        return inputs | {"added_cond_kwargs": added | {"text_embeds": moved}}
