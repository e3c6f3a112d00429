"""Judges made of two models that never saw each other: an image model, and a text model.

They share no space: an image's embedding says nothing about a text's. What they have in common is
that neither is the encoder whose features they judge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from features.encoders.towers import TIMM, load_image_tower, public_id, unloadable_text_tower
from features.encoders.vocabulary import require_words
from features.errors import UserError

TEXT = "+text:"
MAX_TOKENS = 512
NO_TOKEN = -1
"""Fills up shorter texts."""


class TwoModels(nn.Module):
    """`encode_image` by one model and `encode_text` by another, the shorter output padded with
    zeros to the longer one's length, which changes no cosine.

    Args:
        image_model: images -> `[n, image dim]`.
        text_model: a transformers model; its last hidden states are averaged over the tokens.
        image_dim: of the image model's output.
        text_dim: of the text model's hidden states.
    """

    def __init__(
        self, image_model: nn.Module, text_model: nn.Module, image_dim: int, text_dim: int
    ) -> None:
        super().__init__()
        self.image_model = image_model
        self.text_model = text_model
        self.padding = (max(0, text_dim - image_dim), max(0, image_dim - text_dim))

    def encode_image(self, pixels: Tensor) -> Tensor:
        """`[n, 3, height, width]` -> `[n, dim]`."""
        return F.pad(self.image_model(pixels), (0, self.padding[0]))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """`[n, length]`, filled up with NO_TOKEN -> `[n, dim]`."""
        mask = (tokens != NO_TOKEN).long()
        states = self.text_model(input_ids=tokens.clamp(min=0), attention_mask=mask)
        hidden = states.last_hidden_state  # [n, length, text dim]
        mean = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return F.pad(mean, (0, self.padding[1]))


def load_two_models(
    judge_id: str,
) -> tuple[str, TwoModels, Callable[[Image.Image], Tensor], Callable[[list[str]], Tensor]]:
    """What `Encoder` is made of.

    Args:
        judge_id: `timm:NAME+text:ID`; NAME as timm takes it (a name with its tag, hf-hub:org/name,
            local-dir:path), ID a folder or a hub id of a transformers text model.

    Returns:
        What the judge is called, its model, image transform and tokenizer.

    Raises:
        UserError: a model is missing from the id, cannot be loaded, or its tokenizer has no words.
    """
    image_id, _, text_id = judge_id.removeprefix(TIMM).partition(TEXT)
    if not image_id or not text_id:
        raise UserError(
            f"{judge_id}: an image model alone says nothing about texts; name a text model too: "
            "timm:NAME+text:ID, ID being a folder or a hub id of a transformers model"
        )
    image_model, transform = _load_image_model(image_id)
    text_model, tokenizer = _load_text_model(text_id)
    model = TwoModels(
        image_model,
        text_model,
        int(image_model.num_features),  # type: ignore[arg-type]
        int(text_model.config.hidden_size),  # type: ignore[union-attr, arg-type]
    )
    name = f"{TIMM}{public_id(image_id)}{TEXT}{public_id(text_id)}"
    return name, model, transform, tokenizer


def _load_image_model(image_id: str) -> tuple[nn.Module, Callable[[Image.Image], Tensor]]:
    import timm

    model = load_image_tower(image_id, num_classes=0)
    settings = timm.data.resolve_model_data_config(model)
    return model, timm.data.create_transform(**settings, is_training=False)


def _load_text_model(text_id: str) -> tuple[nn.Module, Callable[[list[str]], Tensor]]:
    from transformers import AutoModel, AutoTokenizer

    try:
        model = AutoModel.from_pretrained(text_id)
        tokenize = Tokenize(AutoTokenizer.from_pretrained(text_id))
        require_words(tokenize, text_id)
    except UserError:
        raise
    except Exception as error:  # transformers and huggingface_hub each raise their own
        raise unloadable_text_tower(text_id, error) from error
    return model, tokenize


class Tokenize:
    """A transformers tokenizer whose ids are filled up with NO_TOKEN: texts -> `[n, length]`."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.context_length = min(MAX_TOKENS, tokenizer.model_max_length)

    def __call__(self, texts: Sequence[str], context_length: int | None = None) -> Tensor:
        most = context_length or self.context_length
        rows = self.tokenizer(list(texts), truncation=True, max_length=most)["input_ids"]
        rows = [torch.tensor(row, dtype=torch.long) for row in rows]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=NO_TOKEN)
