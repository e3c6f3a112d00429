"""The decoders of Kandinsky 2.2."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from features.errors import UserError
from mms_apps.steering.adapters.base import Adapter, Call, denoiser_of, project_exactly, takes


class Kandinsky22(Adapter):
    """The decoders of Kandinsky 2.2, which read no words."""

    paths = (("added_cond_kwargs", "image_embeds"),)

    @classmethod
    def fits(cls, pipe: Any) -> bool:
        return (
            takes(pipe, "image_embeds", "negative_image_embeds")
            and denoiser_of(pipe).config.get("encoder_hid_dim_type") == "image_proj"
        )

    @property
    def dim(self) -> int:
        return self.denoiser.config.encoder_hid_dim

    def arguments(self, steered: Tensor, plain: Tensor, call: Call) -> dict[str, Any]:
        if call.negative_prompt is not None:
            raise UserError(
                f"{type(self.pipe).__name__} reads no words; give negative_embedding, what it is "
                "to be guided away from"
            )
        project_exactly(self.denoiser.encoder_hid_proj)
        embedding = self.ready(steered)
        negative = self._empty() if call.negative is None else call.negative
        return {
            "image_embeds": embedding,
            "negative_image_embeds": self.ready(negative).expand_as(embedding).clone(),
        }

    def _empty(self) -> Tensor:
        """The raw embedding `[1, dim]` of pixels that are zero after preprocessing, which
        Kandinsky's prior gives as the negative one (its `get_zero_embed`)."""
        try:
            encoder = self.space.encoder
        except UserError as error:
            warnings.warn(
                f"zeros stand for the negative embedding: {error}; or give negative_embedding: "
                "get_zero_embed() of Kandinsky's prior",
                stacklevel=2,
            )
            return torch.zeros(1, self.dim)
        pixels = torch.zeros_like(encoder.preprocess(Image.new("RGB", (64, 64))))
        ready = pixels[None].to(encoder.device, encoder.dtype)
        with torch.no_grad():
            return encoder.model.encode_image(ready)  # type: ignore
