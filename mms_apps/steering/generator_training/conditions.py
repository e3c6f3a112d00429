"""What conditions the denoiser: embeddings of images, states of prompts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from features.encoders.encoder import Encoder


def as_seen(encoder: Encoder, pictures: Tensor) -> Tensor:
    """Pictures `[n, 3, h, w]` in [-1, 1] as the encoder's image tower takes them; gradients flow
    back."""
    from torchvision.transforms.functional import normalize

    return normalize((pictures + 1) / 2, encoder.preprocessing.mean, encoder.preprocessing.std)


@torch.no_grad()
def raw_embeddings(encoder: Encoder, pixels: Tensor) -> Tensor:
    """The encoder's image embeddings as they leave the model, not normalised: `[n, dim]`."""
    found = []
    for batch in pixels.split(256):
        ready = encoder.preprocessing.normalise(batch.to(encoder.device))
        found.append(encoder.model.encode_image(ready).float().cpu())  # type: ignore[operator]
    return torch.cat(found)


@torch.no_grad()
def text_states(
    text_encoder: nn.Module, tokenizer: Any, captions: list[str]
) -> tuple[Tensor, Tensor]:
    """The text encoder's last hidden states of the empty prompt and of each distinct caption:
    fp16 `[distinct, tokens, width]`, and each caption's place there, `[n]`."""
    distinct = {text: place for place, text in enumerate(dict.fromkeys(["", *captions]))}
    texts = list(distinct)
    device = next(text_encoder.parameters()).device
    found = []
    for start in range(0, len(texts), 256):
        ids = tokenizer(
            texts[start : start + 256],
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).input_ids
        found.append(text_encoder(ids.to(device)).last_hidden_state.half().cpu())
    return torch.cat(found), torch.tensor([distinct[text] for text in captions])
