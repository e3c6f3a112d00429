"""One way into a pipeline."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from features.dictionary import Modality
from features.errors import UserError
from features.pairs.images import rgb


class Adapter(ABC):
    """One way in, for one pipeline."""

    modality: ClassVar[Modality] = "image"

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe

    @property
    def denoiser(self) -> nn.Module:
        """The UNet or transformer."""
        return self.pipe.unet if hasattr(self.pipe, "unet") else self.pipe.transformer

    def embed_image(self, image: Image.Image) -> Tensor:
        """The raw embedding `[1, dim]` of an image by the pipeline's own encoder.

        Raises:
            UserError: the pipeline has none.
        """
        encoder = getattr(self.pipe, "image_encoder", None)
        extractor = getattr(self.pipe, "feature_extractor", None)
        if encoder is None or extractor is None:
            raise UserError(
                f"{type(self.pipe).__name__} has no image encoder of its own; give the embedding"
            )
        pixels = extractor(images=rgb(image), return_tensors="pt").pixel_values
        first = next(encoder.parameters())
        with torch.no_grad():
            return encoder(pixels.to(first.device, first.dtype)).image_embeds

    def embed_prompt(self, prompt: str | list[str]) -> Tensor:
        """The raw embeddings `[n, dim]` of prompts, for pipelines that take those.

        Raises:
            UserError: the pipeline takes embeddings of images.
        """
        raise UserError(f"{type(self.pipe).__name__} takes images; give an image or an embedding")

    @abstractmethod
    def inputs(self, embedding: Tensor, prompt: str | list[str], guided: bool) -> dict[str, Any]:
        """The call arguments that stand for embeddings `[n, dim]`, the prompt among them.

        Args:
            prompt: one for all embeddings, or one for each.
            guided: whether the call uses classifier-free guidance.
        """

    @abstractmethod
    def shift(self, inputs: dict[str, Any], move: Tensor) -> dict[str, Any]:
        """The denoiser's keyword arguments with its embeddings moved.

        Args:
            inputs: the keyword arguments of one call.
            move: what is added to each embedding, `[n, dim]`.
        """

    @contextmanager
    def during(self, move: Tensor, begin: float, end: float) -> Iterator[None]:
        """Move the embeddings in all denoising steps but those between two shares of them.

        Afterwards the pipeline is as it was.

        Args:
            move: from what the pipeline was given to what conditions the other steps, `[n, dim]`.
            begin, end: in [0, 1].
        """

        def hook(module: nn.Module, positional: tuple, given: dict[str, Any]) -> Any:
            steps = self.pipe.scheduler.timesteps
            now = given["timestep"] if "timestep" in given else positional[1]
            share = self._place(now, steps) / len(steps)
            return None if begin <= share < end else (positional, self.shift(given, move))

        handle = self.denoiser.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _place(self, timestep: Any, steps: Tensor) -> int:
        """How many steps come before a timestep."""
        now = torch.as_tensor(timestep).flatten()[0].to(steps)
        return int((steps - now).abs().argmin())


def like_parameters(embedding: Tensor, module: nn.Module) -> Tensor:
    first = next(module.parameters())
    return embedding.to(first.device, first.dtype)


def prompts_for(prompt: str | list[str], count: int) -> list[str]:
    """One prompt an embedding.

    Raises:
        UserError: several prompts, but not one for each.
    """
    prompts = [prompt] * count if isinstance(prompt, str) else list(prompt)
    if len(prompts) != count:
        raise UserError(f"{len(prompts)} prompts for {count} embeddings; give one, or one for each")
    return prompts


def move_conditional(
    embeddings: Tensor, move: Tensor, guided: bool, *, tiled: bool = False
) -> Tensor:
    """Embeddings `[rows, dim]` or `[rows, 1, dim]`, the conditional ones moved.

    Args:
        move: `[n, dim]`; each embedding stands for one image or several.
        guided: the first half is unconditional.
        tiled: several images of an embedding follow one another in turns, not in runs.
    """
    first = len(embeddings) // 2 if guided else 0
    conditional = embeddings[first:]
    times = len(conditional) // len(move)
    step = move.repeat(times, 1) if tiled else move.repeat_interleave(times, 0)
    step = step.to(conditional)
    step = step[:, None] if conditional.ndim == 3 else step
    return torch.cat([embeddings[:first], conditional + step])
