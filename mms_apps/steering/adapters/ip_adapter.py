"""IP-Adapters on Stable Diffusion and on FLUX."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor

from features.errors import UserError
from mms_apps.steering.adapters.base import Adapter, Call, denoiser_of, project_exactly, takes


class IPAdapter(Adapter):
    """An IP-Adapter on SD 1.5 or SDXL, of one image."""

    paths = (("added_cond_kwargs", "image_embeds"),)

    @classmethod
    def fits(cls, pipe: Any) -> bool:
        return getattr(pipe, "unet", None) is not None and _loaded(pipe)

    @property
    def dim(self) -> int:
        return _dimensions(self.pipe)

    def arguments(self, steered: Tensor, plain: Tensor, call: Call) -> dict[str, Any]:
        positive = self.ready(steered)[:, None]  # [n, 1, dim]
        if call.guided:  # the pipeline then takes the first half for the negative one
            negative = torch.zeros_like(positive)
            if call.negative is not None:
                negative = self.ready(call.negative)[:, None].expand_as(positive)
            positive = torch.cat([negative, positive])
        _prepare(self.pipe, len(steered))
        return {**call.words(len(steered)), "ip_adapter_image_embeds": [positive]}


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
        given: dict[str, Any] = {**call.words(len(steered)), "ip_adapter_image_embeds": [positive]}
        if call.negative is not None:
            negative = self.ready(call.negative)[:, None].expand_as(positive).clone()
            given["negative_ip_adapter_image_embeds"] = [negative]
        elif self.encoder is None:  # else the pipeline encodes a black picture
            given["negative_ip_adapter_image_embeds"] = [torch.zeros_like(positive)]
        _prepare(self.pipe, len(steered))
        return given

    def timestep(self, given: Any) -> Any:
        """The pipeline divides and rounds timesteps before the transformer sees them."""
        scheduler = self.pipe.scheduler
        place = scheduler.begin_index if scheduler.step_index is None else scheduler.step_index
        return scheduler.timesteps[place or 0]


def _loaded(pipe: Any) -> bool:
    projection = getattr(denoiser_of(pipe), "encoder_hid_proj", None)
    return takes(pipe, "ip_adapter_image_embeds") and hasattr(projection, "image_projection_layers")


def _dimensions(pipe: Any) -> int:
    """Of the pooled embeddings that a single IP-Adapter reads.

    Raises:
        UserError: several are loaded, or one that reads something else.
    """
    from diffusers.models.embeddings import ImageProjection

    layers = denoiser_of(pipe).encoder_hid_proj.image_projection_layers
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


def _prepare(pipe: Any, count: int) -> None:
    """Make a pipeline ready for calls with so many embeddings."""
    project_exactly(denoiser_of(pipe).encoder_hid_proj.image_projection_layers[0])
    if count > 1:
        _one_embedding_a_picture(pipe)


def _one_embedding_a_picture(pipe: Any) -> None:
    """Let a pipeline give each picture its own of several embeddings.

    Diffusers repeats all embeddings for each picture, and its attention then mixes them (its issue
    9813). From here on this pipeline repeats an embedding as often as there are pictures of it;
    calls with one embedding stay as they are.
    """
    prepare = pipe.prepare_ip_adapter_image_embeds
    if getattr(prepare, "one_a_picture", False):
        return
    signature = inspect.signature(prepare)

    @functools.wraps(prepare)
    def one_a_picture(*positional: Any, **named: Any) -> list[Tensor]:
        given = signature.bind(*positional, **named).arguments
        embeddings, pictures = given["ip_adapter_image_embeds"], given["num_images_per_prompt"]
        halves = 2 if given.get("do_classifier_free_guidance") else 1
        if embeddings is None:
            return prepare(*positional, **named)
        embeddings = embeddings if isinstance(embeddings, list) else [embeddings]
        counts = {len(rows) // halves for rows in embeddings}
        if len(counts) != 1 or pictures % (several := counts.pop()):
            return prepare(*positional, **named)
        found = prepare(**{**given, "num_images_per_prompt": pictures // several})
        return [_in_runs(rows, several, halves) for rows in found]

    one_a_picture.one_a_picture = True  # type: ignore[attr-defined]
    pipe.prepare_ip_adapter_image_embeds = one_a_picture


def _in_runs(rows: Tensor, several: int, halves: int) -> Tensor:
    """Rows `[halves * times * several, ...]`, all embeddings in turns, to one after another in
    runs."""
    return rows.unflatten(0, (halves, -1, several)).transpose(1, 2).flatten(0, 2)
