"""Prompts of SDXL and of Stable Diffusion 3, which are pooled."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mms_apps.steering.adapters.base import (
    Call,
    TextAdapter,
    controlnets,
    no_words,
    pseudo_inverse,
    refuse_negative,
    some_prompts,
    takes,
    token_ids,
)


class PooledPrompt(TextAdapter):
    """A pipeline without an IP-Adapter that takes a prompt's pooled and projected embedding."""

    @classmethod
    def reads(cls, encoder: Any) -> bool:
        return hasattr(encoder, "text_projection")

    def embed_prompt(self, prompt: str | list[str]) -> Tensor:
        prompts = some_prompts(prompt)
        return self.pooled(self.encoded(Call(prompts), len(prompts))[2])

    def encoded(self, call: Call, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The prompts' states, the negative ones', and what is pooled of both."""
        given: dict[str, Any] = call.words(count)
        names = inspect.signature(self.pipe.encode_prompt).parameters
        given |= {name: None for name in ("prompt_2", "prompt_3") if name in names}
        with torch.no_grad():
            return self.pipe.encode_prompt(**given, device=self.pipe._execution_device)

    @abstractmethod
    def pooled(self, whole: Tensor) -> Tensor:
        """The embeddings `[n, dim]` within what is pooled `[n, width]`."""

    @abstractmethod
    def put(self, embedding: Tensor, whole: Tensor) -> Tensor:
        """What is pooled `[n, width]`, with other embeddings `[n, dim]` in it."""

    def arguments(self, steered: Tensor, plain: Tensor, call: Call) -> dict[str, Any]:
        refuse_negative(self, call)
        states, negative, whole, negative_whole = self.encoded(call, len(steered))
        return {
            **no_words(self.pipe),
            "prompt_embeds": states,
            "negative_prompt_embeds": negative,
            "pooled_prompt_embeds": self.put(self.ready(steered), self.ready(whole)),
            "negative_pooled_prompt_embeds": negative_whole,
        }

    def conditions(self, steered: Tensor, plain: Tensor, call: Call) -> list[Tensor]:
        whole = self.ready(self.encoded(call, len(steered))[2])
        return [self.put(self.ready(steered), whole)]


class SDXLPrompt(PooledPrompt):
    """The pooled embedding of SDXL's second text encoder, and its states.

    The states are those before the encoder's last layer. A move of the embedding reaches them
    through the pseudo-inverse of the projection and through the last norm, to first order: the
    last layer adds to what it is given.
    """

    paths = (("added_cond_kwargs", "text_embeds"), ("encoder_hidden_states",))
    encoders = ("text_encoder_2",)

    @classmethod
    def takes_prompts(cls, pipe: Any) -> bool:
        return (
            takes(pipe, "prompt_embeds", "pooled_prompt_embeds")
            and getattr(pipe, "unet", None) is not None
            and hasattr(pipe, "text_encoder_2")
        )

    @property
    def dim(self) -> int:
        return self.pipe.text_encoder_2.config.projection_dim

    @property
    def encoder(self) -> nn.Module:
        return self.pipe.text_encoder_2

    def pooled(self, whole: Tensor) -> Tensor:
        return whole

    def put(self, embedding: Tensor, whole: Tensor) -> Tensor:
        return embedding

    def arguments(self, steered: Tensor, plain: Tensor, call: Call) -> dict[str, Any]:
        found = super().arguments(steered, plain, call)
        states = self._moved(found["prompt_embeds"], steered - plain, call)
        return found | {"prompt_embeds": states}

    def conditions(self, steered: Tensor, plain: Tensor, call: Call) -> list[Tensor]:
        states = self._moved(self.encoded(call, len(steered))[0], steered - plain, call)
        return [self.ready(steered), self.ready(states.flatten(1))]

    @cached_property
    def _back(self) -> Tensor:
        """From moves of the embedding to moves of a state of spread 1: `[dim, width]`."""
        from accelerate.utils import align_module_device

        parts: Any = self.encoder
        norm, projection = parts.text_model.final_layer_norm, parts.text_projection
        with align_module_device(norm), align_module_device(projection):  # which may be offloaded
            return pseudo_inverse(projection.weight.T) / norm.weight.detach().float().cpu()

    def _moved(self, states: Tensor, move: Tensor, call: Call) -> Tensor:
        """Both encoders' states side by side `[n, tokens, width]`, those of the second moved from
        the end of the text on by what moves the embedding by `[n, dim]`."""
        tokenizer, width = self.pipe.tokenizer_2, self.pipe.text_encoder_2.config.hidden_size
        prompts = call.words(len(states))["prompt"]
        ids = token_ids(self.pipe, tokenizer, prompts, states.shape[1])  # [n, tokens]
        end = (ids == tokenizer.eos_token_id).int().argmax(1)
        own = states[..., -width:].float()
        spread = own[torch.arange(len(own)), end.to(own.device)].std(1, unbiased=False)  # [n]
        step = move.to(own) @ self._back.to(own.device)
        after = (torch.arange(ids.shape[1]) >= end[:, None]).to(own)  # [n, tokens]
        own = own + after[..., None] * (spread[:, None] * step)[:, None]
        return torch.cat([states[..., :-width], own.to(states)], dim=-1)


class SD3PooledPrompt(PooledPrompt):
    """The pooled embedding of one of Stable Diffusion 3's two CLIP text encoders, which stand side
    by side: that of the FeatureSpace's encoder."""

    paths = (("pooled_projections",),)
    encoders = ("text_encoder", "text_encoder_2")

    @classmethod
    def takes_prompts(cls, pipe: Any) -> bool:
        return (
            takes(pipe, "prompt_embeds", "pooled_prompt_embeds")
            and getattr(pipe, "transformer", None) is not None
            and hasattr(pipe, "text_encoder_3")
        )

    def arguments(self, steered: Tensor, plain: Tensor, call: Call) -> dict[str, Any]:
        for module in (self.denoiser, *controlnets(self.pipe)):
            if for_pictures not in module._forward_pre_hooks.values():
                module.register_forward_pre_hook(for_pictures, with_kwargs=True)
        return super().arguments(steered, plain, call)

    @property
    def dim(self) -> int:
        return self._widths[self._which]

    @property
    def encoder(self) -> nn.Module:
        return (self.pipe.text_encoder, self.pipe.text_encoder_2)[self._which]

    @property
    def _widths(self) -> list[int]:
        encoders = (self.pipe.text_encoder, self.pipe.text_encoder_2)
        return [encoder.config.projection_dim for encoder in encoders]

    @property
    def _which(self) -> int:
        wanted = self.space.dictionary.config.dim
        return self._widths.index(wanted) if wanted in self._widths else 1

    @property
    def _place(self) -> slice:
        first = self._widths[0]
        return slice(0, first) if self._which == 0 else slice(first, None)

    def pooled(self, whole: Tensor) -> Tensor:
        return whole[:, self._place]

    def put(self, embedding: Tensor, whole: Tensor) -> Tensor:
        changed = whole.clone()
        changed[:, self._place] = embedding
        return changed


def for_pictures(
    module: nn.Module, positional: tuple, named: dict[str, Any]
) -> tuple[tuple, dict[str, Any]]:
    """What a transformer is called with, each prompt's embeddings as often as there are pictures of
    it: the pipeline repeats none that it is given."""
    pictures = len(named["hidden_states"] if "hidden_states" in named else positional[0])
    repeated = {
        name: rows.repeat_interleave(pictures // len(rows), 0)
        for name in ("encoder_hidden_states", "pooled_projections")
        if (rows := named.get(name)) is not None and len(rows) < pictures
    }
    return positional, named | repeated
