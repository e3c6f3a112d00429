"""IP-Adapters on Stable Diffusion and on FLUX."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mms_apps.steering.adapters.base import Adapter, like_parameters, move_conditional, prompts_for


class IPAdapter(Adapter):
    """An IP-Adapter on SD 1.5 or SDXL, of one image."""

    def inputs(self, embedding: Tensor, prompt: str | list[str], guided: bool) -> dict[str, Any]:
        positive = like_parameters(embedding, self.denoiser)[:, None]  # [n, 1, dim]
        if guided:  # the pipeline then takes the first half for the negative one
            positive = torch.cat([torch.zeros_like(positive), positive])
        return {
            "prompt": prompts_for(prompt, len(embedding)),
            "ip_adapter_image_embeds": [positive],
        }

    def shift(self, inputs: dict[str, Any], move: Tensor) -> dict[str, Any]:
        added = inputs["added_cond_kwargs"]
        guided = self.pipe.do_classifier_free_guidance
        moved = [move_conditional(e, move, guided, tiled=True) for e in added["image_embeds"]]
        return inputs | {"added_cond_kwargs": added | {"image_embeds": moved}}


class FluxIPAdapter(Adapter):
    """An IP-Adapter on FLUX, which has no guidance by a negative embedding."""

    def inputs(self, embedding: Tensor, prompt: str | list[str], guided: bool) -> dict[str, Any]:
        positive = like_parameters(embedding, self.denoiser)[:, None]  # [n, 1, dim]
        return {
            "prompt": prompts_for(prompt, len(embedding)),
            "ip_adapter_image_embeds": [positive],
        }

    def _place(self, timestep: Any, steps: Tensor) -> int:
        """The pipeline divides timesteps by the scheduler's number of them."""
        return super()._place(timestep * self.pipe.scheduler.config.num_train_timesteps, steps)

    def shift(self, inputs: dict[str, Any], move: Tensor) -> dict[str, Any]:
        joint = inputs["joint_attention_kwargs"]
        moved = [
            move_conditional(e, move, False, tiled=True) for e in joint["ip_adapter_image_embeds"]
        ]
        return inputs | {"joint_attention_kwargs": joint | {"ip_adapter_image_embeds": moved}}
