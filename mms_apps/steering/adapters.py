"""Where an embedding enters a diffusers pipeline.

| pipeline | call argument | in the denoiser |
|---|---|---|
| StableUnCLIPImg2Img | image_embeds | class_labels: noised, then the noise level |
| KandinskyV22, img2img, ControlNet | image_embeds | added_cond_kwargs["image_embeds"] |
| IP-Adapter on SD 1.5, SDXL, ControlNet | ip_adapter_image_embeds | the same, in a list |
| IP-Adapter on FLUX | ip_adapter_image_embeds | joint_attention_kwargs, in a list |
| SDXL without an IP-Adapter | pooled_prompt_embeds | added_cond_kwargs["text_embeds"] |

Embeddings are raw, not normalised: the pipelines expect the length that the encoder gives.
"""

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
        pixels = extractor(images=image.convert("RGB"), return_tensors="pt").pixel_values
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


class StableUnCLIP(Adapter):
    """Stable unCLIP."""

    noise_level = 0

    def inputs(self, embedding: Tensor, prompt: str | list[str], guided: bool) -> dict[str, Any]:
        embedding = _like(embedding, self.denoiser)
        return {
            "prompt": _prompts(prompt, len(embedding)),
            "image_embeds": embedding,
            "noise_level": self.noise_level,
        }

    def shift(self, inputs: dict[str, Any], move: Tensor) -> dict[str, Any]:
        labels = inputs["class_labels"]
        kept = self.pipe.image_noising_scheduler.alphas_cumprod[self.noise_level].sqrt()
        moved = labels.clone()
        half = len(labels) // 2
        guided = len(labels) % 2 == 0 and not labels[:half].any()
        rows = slice(half, None) if guided else slice(None)
        part = moved[rows]
        step = move.repeat_interleave(len(part) // len(move), 0).to(part) * kept.to(part)
        part[:, : move.shape[1]] += step
        return inputs | {"class_labels": moved}


class Kandinsky22(Adapter):
    """The decoders of Kandinsky 2.2; the negative embedding is zero unless another is given."""

    def inputs(self, embedding: Tensor, prompt: str | list[str], guided: bool) -> dict[str, Any]:
        embedding = _like(embedding, self.denoiser)
        return {
            "image_embeds": embedding,
            "negative_image_embeds": torch.zeros_like(embedding),
        }

    def shift(self, inputs: dict[str, Any], move: Tensor) -> dict[str, Any]:
        added = inputs["added_cond_kwargs"]
        guided = self.pipe.do_classifier_free_guidance
        moved = _moved(added["image_embeds"], move, guided)
        return inputs | {"added_cond_kwargs": added | {"image_embeds": moved}}


class IPAdapter(Adapter):
    """An IP-Adapter on SD 1.5 or SDXL, of one image."""

    def inputs(self, embedding: Tensor, prompt: str | list[str], guided: bool) -> dict[str, Any]:
        positive = _like(embedding, self.denoiser)[:, None]  # [n, 1, dim]
        if guided:  # the pipeline then takes the first half for the negative one
            positive = torch.cat([torch.zeros_like(positive), positive])
        return {
            "prompt": _prompts(prompt, len(embedding)),
            "ip_adapter_image_embeds": [positive],
        }

    def shift(self, inputs: dict[str, Any], move: Tensor) -> dict[str, Any]:
        added = inputs["added_cond_kwargs"]
        guided = self.pipe.do_classifier_free_guidance
        moved = [_moved(e, move, guided, tiled=True) for e in added["image_embeds"]]
        return inputs | {"added_cond_kwargs": added | {"image_embeds": moved}}


class FluxIPAdapter(Adapter):
    """An IP-Adapter on FLUX, which has no guidance by a negative embedding."""

    def inputs(self, embedding: Tensor, prompt: str | list[str], guided: bool) -> dict[str, Any]:
        positive = _like(embedding, self.denoiser)[:, None]  # [n, 1, dim]
        return {
            "prompt": _prompts(prompt, len(embedding)),
            "ip_adapter_image_embeds": [positive],
        }

    def _place(self, timestep: Any, steps: Tensor) -> int:
        """The pipeline divides timesteps by the scheduler's number of them."""
        return super()._place(timestep * self.pipe.scheduler.config.num_train_timesteps, steps)

    def shift(self, inputs: dict[str, Any], move: Tensor) -> dict[str, Any]:
        joint = inputs["joint_attention_kwargs"]
        moved = [_moved(e, move, False, tiled=True) for e in joint["ip_adapter_image_embeds"]]
        return inputs | {"joint_attention_kwargs": joint | {"ip_adapter_image_embeds": moved}}


class SDXLPooledPrompt(Adapter):
    """The pooled embedding of SDXL's second text encoder."""

    modality = "text"

    def embed_image(self, image: Image.Image) -> Tensor:
        raise UserError(
            f"{type(self.pipe).__name__} without an IP-Adapter takes texts, not images; give a "
            "prompt, or load an IP-Adapter"
        )

    def inputs(self, embedding: Tensor, prompt: str | list[str], guided: bool) -> dict[str, Any]:
        with torch.no_grad():
            states, negative, _, negative_pooled = self.pipe.encode_prompt(
                _prompts(prompt, len(embedding)), device=self.pipe._execution_device
            )
        return {
            "prompt_embeds": states,
            "negative_prompt_embeds": negative,
            "pooled_prompt_embeds": _like(embedding, self.denoiser),
            "negative_pooled_prompt_embeds": negative_pooled,
        }

    def embed_prompt(self, prompt: str | list[str]) -> Tensor:
        with torch.no_grad():
            return self.pipe.encode_prompt(prompt, device=self.pipe._execution_device)[2]

    def shift(self, inputs: dict[str, Any], move: Tensor) -> dict[str, Any]:
        added = inputs["added_cond_kwargs"]
        guided = self.pipe.do_classifier_free_guidance
        moved = _moved(added["text_embeds"], move, guided)
        return inputs | {"added_cond_kwargs": added | {"text_embeds": moved}}


def adapter_for(pipe: Any) -> Adapter:
    """The adapter of a pipeline.

    Raises:
        UserError: none fits.
    """
    name = type(pipe).__name__
    if name == "StableUnCLIPImg2ImgPipeline":
        return StableUnCLIP(pipe)
    if name.startswith("KandinskyV22") and "Prior" not in name and "Combined" not in name:
        return Kandinsky22(pipe)
    denoiser = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    has_ip_adapter = getattr(denoiser, "encoder_hid_proj", None) is not None
    if name.startswith("Flux") and has_ip_adapter:
        return FluxIPAdapter(pipe)
    if name.startswith("StableDiffusion") and has_ip_adapter:
        return IPAdapter(pipe)
    if name.startswith("StableDiffusionXL"):
        return SDXLPooledPrompt(pipe)
    raise UserError(
        f"{name}: no image or pooled text embedding enters it; use Stable unCLIP, Kandinsky 2.2, "
        "SDXL, or load an IP-Adapter into Stable Diffusion or FLUX"
    )


def _like(embedding: Tensor, module: nn.Module) -> Tensor:
    first = next(module.parameters())
    return embedding.to(first.device, first.dtype)


def _prompts(prompt: str | list[str], count: int) -> list[str]:
    """One prompt an embedding.

    Raises:
        UserError: several prompts, but not one for each.
    """
    prompts = [prompt] * count if isinstance(prompt, str) else list(prompt)
    if len(prompts) != count:
        raise UserError(f"{len(prompts)} prompts for {count} embeddings; give one, or one for each")
    return prompts


def _moved(embeddings: Tensor, move: Tensor, guided: bool, *, tiled: bool = False) -> Tensor:
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
