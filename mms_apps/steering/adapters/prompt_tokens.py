"""The tokens of a prompt, in Stable Diffusion without an IP-Adapter."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from features.errors import UserError
from mms_apps.steering.adapters.base import (
    Call,
    TextAdapter,
    compute_device,
    compute_dtype,
    default,
    no_words,
    pseudo_inverse,
    refuse_negative,
    some_prompts,
    takes,
    token_ids,
)


class PromptTokens(TextAdapter):
    """Stable Diffusion, conditioned on the last states of a CLIP text encoder.

    CLIP's embedding of a text is the state at its end, projected: e = h P. A move of e is the
    move of h by its product with P's pseudo-inverse, the least that has this effect; every state
    from the end of the text on, which the padding repeats, moves by it.
    """

    paths = (("encoder_hidden_states",),)
    encoders = ("text_encoder",)

    @classmethod
    def takes_prompts(cls, pipe: Any) -> bool:
        return (
            takes(pipe, "prompt_embeds")
            and not takes(pipe, "pooled_prompt_embeds")
            and not takes(pipe, "image_embeds")
            and not takes(pipe, "source_prompt")  # cycles, which count prompts and no embeddings
            and default(pipe, "clip_skip") is None  # else it reads the states before the last
            and getattr(pipe, "unet", None) is not None
            and not hasattr(pipe, "prior")  # which would be left with the prompt as it was
        )

    @classmethod
    def reads(cls, encoder: Any) -> bool:
        kind = getattr(getattr(encoder, "config", None), "model_type", "")
        return kind.startswith("clip_text")

    @property
    def encoder(self) -> nn.Module:
        return self.pipe.text_encoder

    @property
    def dim(self) -> int:
        return self.projection.shape[1]

    @cached_property
    def projection(self) -> Tensor:
        """CLIP's projection of texts, which Stable Diffusion leaves out: `[width, dim]`.

        Raises:
            UserError: the FeatureSpace's encoder has none that fits.
        """
        name = type(self.pipe).__name__
        try:
            found = _projection_within(self.space.encoder.model)
        except UserError as error:
            raise UserError(
                f"{name} without an IP-Adapter is steered by its prompt, for which the "
                f"FeatureSpace's encoder is needed ({error}); or load an IP-Adapter"
            ) from None
        weight = found.weight.T if isinstance(found, nn.Linear) else found
        if weight is None or weight.shape[0] != self.pipe.text_encoder.config.hidden_size:
            raise UserError(
                f"{name} has a text encoder of another size than {self.space.config.encoder}; "
                "give the FeatureSpace of its text encoder (ViT-L-14/openai for Stable Diffusion "
                "1.5), or load an IP-Adapter"
            )
        return weight.detach().float()

    def embed_prompt(self, prompt: str | list[str]) -> Tensor:
        ids = self._tokens(some_prompts(prompt))
        with torch.no_grad():
            pooled = self.pipe.text_encoder(ids.to(compute_device(self.encoder))).pooler_output
        return pooled.float() @ self.projection.to(pooled.device)

    def arguments(self, steered: Tensor, plain: Tensor, call: Call) -> dict[str, Any]:
        refuse_negative(self, call)
        words = call.words(len(steered))
        return {
            **no_words(self.pipe),
            "prompt_embeds": self._states(steered, plain, words["prompt"]),
            **{key: value for key, value in words.items() if key != "prompt"},
        }

    def conditions(self, steered: Tensor, plain: Tensor, call: Call) -> list[Tensor]:
        prompts = call.words(len(steered))["prompt"]
        return [self.ready(self._states(steered, plain, prompts).flatten(1))]

    def _tokens(self, prompts: list[str]) -> Tensor:
        tokenizer = self.pipe.tokenizer
        return token_ids(self.pipe, tokenizer, prompts, tokenizer.model_max_length)

    def _states(self, steered: Tensor, plain: Tensor, prompts: list[str]) -> Tensor:
        """The prompts' states, moved: `[n, tokens, width]`."""
        ids = self._tokens(prompts)  # [n, tokens]
        with torch.no_grad():
            given = ids.to(compute_device(self.encoder))
            states = self.pipe.text_encoder(given).last_hidden_state.float()
        move = (steered - plain).float().to(states.device)  # [n, dim]
        step = move @ pseudo_inverse(self.projection).to(states.device)  # [n, width]
        end = (ids == self.pipe.tokenizer.eos_token_id).int().argmax(1, keepdim=True)
        moved = (torch.arange(ids.shape[1]) >= end).to(states.device)  # [n, tokens]
        states = states + moved[..., None] * step[:, None]
        return states.to(compute_dtype(self.denoiser))


def _projection_within(model: Any) -> Any:
    """The projection of texts of a model of open_clip, whose text tower may stand apart, or of
    transformers; None where it has none."""
    parts = (model, getattr(model, "text", None), getattr(model, "model", None))
    found = (getattr(part, "text_projection", None) for part in parts)
    return next((projection for projection in found if projection is not None), None)
