"""IP-Adapters on Stable Diffusion and on FLUX."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from features.errors import UserError
from mms_apps.steering.adapters.base import Adapter, Call, denoiser_of, project_exactly, takes
from mms_apps.steering.adapters.one_a_picture import OneAPicture


class IPAdapter(Adapter):
    """An IP-Adapter on SD 1.5 or SDXL, of one image."""

    paths = (("added_cond_kwargs", "image_embeds"),)

    @classmethod
    def fits(cls, pipe: Any) -> bool:
        return getattr(pipe, "unet", None) is not None and _loaded(pipe)

    @property
    def dim(self) -> int:
        if takes(self.pipe, "image_guidance_scale"):
            raise UserError(
                f"{type(self.pipe).__name__} hands an IP-Adapter images alone and no embedding; "
                "unload_ip_adapter(), to steer its prompt"
            )
        return _dimensions(self.pipe)

    def arguments(self, steered: Tensor, plain: Tensor, call: Call) -> dict[str, Any]:
        positive = self.ready(steered)[:, None]  # [n, 1, dim]
        negative = torch.zeros_like(positive) if call.guided else None
        if call.negative is not None:
            negative = self.ready(call.negative)[:, None].expand_as(positive)
        project_exactly(_projections(self.pipe)[0])
        embeddings = OneAPicture.of(positive, negative)
        return {**call.words(len(steered)), "ip_adapter_image_embeds": [embeddings]}


class FluxIPAdapter(Adapter):
    """An IP-Adapter on FLUX; with true guidance, a second call holds the negative embedding."""

    paths = (("joint_attention_kwargs", "ip_adapter_image_embeds"),)

    @classmethod
    def fits(cls, pipe: Any) -> bool:
        return getattr(pipe, "transformer", None) is not None and _loaded(pipe)

    @property
    def dim(self) -> int:
        return _dimensions(self.pipe)

    def arguments(self, steered: Tensor, plain: Tensor, call: Call) -> dict[str, Any]:
        positive = self.ready(steered)[:, None]  # [n, 1, dim]
        given = {**call.words(len(steered)), "ip_adapter_image_embeds": [OneAPicture.of(positive)]}
        negative = None
        if call.negative is not None:
            negative = self.ready(call.negative)[:, None].expand_as(positive).clone()
        elif self.encoder is None:  # else the pipeline encodes a black picture
            negative = torch.zeros_like(positive)
        if negative is not None:
            given["negative_ip_adapter_image_embeds"] = [OneAPicture.of(negative)]
        project_exactly(_projections(self.pipe)[0])
        return given

    def timestep(self, given: Any) -> Any:
        """The pipeline divides and rounds timesteps before the transformer sees them."""
        scheduler = self.pipe.scheduler
        place = scheduler.begin_index if scheduler.step_index is None else scheduler.step_index
        return scheduler.timesteps[place or 0]


def _loaded(pipe: Any) -> bool:
    projection = getattr(denoiser_of(pipe), "encoder_hid_proj", None)
    return takes(pipe, "ip_adapter_image_embeds") and hasattr(projection, "image_projection_layers")


def _projections(pipe: Any) -> Any:
    return denoiser_of(pipe).encoder_hid_proj.image_projection_layers


def _dimensions(pipe: Any) -> int:
    """Of the pooled embeddings that a single IP-Adapter reads.

    Raises:
        UserError: several are loaded, or one that reads something else.
    """
    from diffusers.models.embeddings import ImageProjection

    layers = _projections(pipe)
    if len(layers) != 1:
        raise UserError(
            f"{len(layers)} IP-Adapters are loaded; steering edits the embedding of one: "
            "unload_ip_adapter(), then load the one to steer"
        )
    (layer,) = layers
    if not isinstance(layer, ImageProjection):
        raise UserError(
            f"the IP-Adapter that is loaded (its projection is a {type(layer).__name__}) reads "
            "no pooled image embedding, as Plus, Full and FaceID don't; load a plain one, such as "
            "ip-adapter_sd15 or ip-adapter_sdxl_vit-h"
        )
    return layer.image_embeds.in_features
