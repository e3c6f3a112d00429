"""An open_clip image tower as the image encoder of a diffusers pipeline."""

from __future__ import annotations

from typing import Any

import open_clip
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.clip.modeling_clip import CLIPVisionModelOutput

NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 1, "heads": 1, "layers": 1}


class OpenClipVisionConfig(PretrainedConfig):
    """`embed_dim` and `vision_cfg` as open_clip_config.json has them."""

    model_type = "open_clip_vision"

    def __init__(
        self, embed_dim: int = 128, vision_cfg: dict[str, Any] | None = None, **others: Any
    ) -> None:
        super().__init__(**others)
        self.embed_dim = embed_dim
        self.vision_cfg = vision_cfg or {}


class OpenClipVisionModel(PreTrainedModel):
    """Gives what `transformers.CLIPVisionModelWithProjection` gives: raw image embeddings."""

    config_class = OpenClipVisionConfig
    main_input_name = "pixel_values"

    def __init__(self, config: OpenClipVisionConfig) -> None:
        super().__init__(config)
        self.visual = open_clip.CLIP(config.embed_dim, config.vision_cfg, NO_TEXT).visual
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """The tower has initialised itself."""

    def forward(self, pixel_values: Tensor) -> CLIPVisionModelOutput:
        """Preprocessed images `[n, 3, height, width]` -> `image_embeds` `[n, embed_dim]`."""
        return CLIPVisionModelOutput(image_embeds=self.visual(pixel_values))
