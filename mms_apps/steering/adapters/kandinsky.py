"""The decoders of Kandinsky 2.2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mms_apps.steering.adapters.base import Adapter, like_parameters, move_conditional


class Kandinsky22(Adapter):
    """The decoders of Kandinsky 2.2; the negative embedding is zero unless another is given."""

    def inputs(self, embedding: Tensor, prompt: str | list[str], guided: bool) -> dict[str, Any]:
        embedding = like_parameters(embedding, self.denoiser)
        return {
            "image_embeds": embedding,
            "negative_image_embeds": torch.zeros_like(embedding),
        }

    def shift(self, inputs: dict[str, Any], move: Tensor) -> dict[str, Any]:
        added = inputs["added_cond_kwargs"]
        guided = self.pipe.do_classifier_free_guidance
        moved = move_conditional(added["image_embeds"], move, guided)
        return inputs | {"added_cond_kwargs": added | {"image_embeds": moved}}
