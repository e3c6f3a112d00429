"""Encoders of images and texts: every model that can be loaded, behind one small class."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from features.distributed import resolve_device
from features.encoders.fingerprint import encoder_fingerprint
from features.encoders.transformers import ResizeAndCrop
from features.errors import UserError
from features.pairs.images import rgb


@dataclass(frozen=True)
class Preprocessing:
    """A model's image transform, cut in two where it can be.

    open_clip's transforms end in ToTensor and Normalize. What comes before gives 8-bit crops,
    which are small to hand from process to process; the end is applied to a whole batch at once.
    """

    transform: Callable[[Image.Image], Tensor]
    """The whole transform: RGB image -> `[3, height, width]`."""
    crop: Callable[[Image.Image], Image.Image] | None
    """The transform without its end; None where it does not end so."""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    untouched: tuple[int, int] | None = None
    """(width, height) of images that `crop` returns as they are."""
    short_side: int | None = None
    """Pixels to which `crop` begins by shrinking, by the short side or by both; None where it does
    not begin so."""

    @classmethod
    def of(cls, transform: Callable[[Image.Image], Tensor]) -> Preprocessing:
        from torchvision.transforms import Compose, Normalize, ToTensor

        steps = list(transform.transforms) if isinstance(transform, Compose) else []
        if len(steps) < 2 or not isinstance(steps[-2], ToTensor):
            return cls(transform, None)
        if not isinstance(steps[-1], Normalize):
            return cls(transform, None)
        crop, end = Compose(steps[:-2]), steps[-1]
        size = crop(Image.new("RGB", (512, 512))).size
        noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
        same = np.array_equal(np.asarray(crop(Image.fromarray(noise))), noise)
        for values in (end.mean, end.std):
            given = len(np.atleast_1d(values))
            if given not in (1, 3):
                raise ValueError(f"it normalises by {given} numbers, not one a channel")
        mean, std = (np.broadcast_to(values, 3).tolist() for values in (end.mean, end.std))
        untouched = size if same else None
        return cls(transform, crop, tuple(mean), tuple(std), untouched, _short_side(steps[0]))

    def pixels_of(self, image: Image.Image) -> Tensor:
        """One row of what `normalise` takes: uint8 `[height, width, 3]`, or the finished float32
        `[3, height, width]` where the transform cannot be cut."""
        if self.crop is None:
            return self.transform(image)
        return torch.from_numpy(
            np.array(image if image.size == self.untouched else self.crop(image))
        )

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """What `normalise` takes: `[n, ...]` of `pixels_of`."""
        return torch.stack([self.pixels_of(image) for image in images])

    def normalise(self, pixels: Tensor) -> Tensor:
        """The output of `pixels`, on any device, as float32 `[n, 3, height, width]`.

        Cut transforms give channels-last memory, in which convolutions are faster (a small ResNet
        on a CPU: 1.5 times) and the whole batch is one multiplication and one addition.
        """
        if self.crop is None:
            return pixels
        n, height, width, channels = pixels.shape
        mean = torch.tensor(self.mean, device=pixels.device)
        std = torch.tensor(self.std, device=pixels.device)
        scale = (1 / (255 * std)).repeat(width)  # [width * 3]
        shift = (mean / std).repeat(width)  # [width * 3]
        rows = pixels.view(n, height, width * channels).float().mul_(scale).sub_(shift)
        return rows.view(n, height, width, channels).permute(0, 3, 1, 2)


def _short_side(step: Callable) -> int | None:
    """The largest side that a transform's first step resizes to; None where it resizes to none."""
    from open_clip.transform import ResizeKeepRatio
    from torchvision.transforms import Resize

    if not isinstance(step, Resize | ResizeKeepRatio | ResizeAndCrop) or step.size is None:
        return None
    return max(step.size) if isinstance(step.size, Sequence) else step.size


class Encoder:
    """A model with its transform and tokenizer; embeddings come out with unit length.

    The model is in eval mode, and nothing is tracked for gradients.

    Attributes:
        id: as `load_encoder` takes it; of an absolute path only the last name.
        model: with `encode_image` and `encode_text`, as open_clip's have them.
        shared_space: whether images and texts are embedded in one space, as CLIP does.
    """

    def __init__(
        self,
        encoder_id: str,
        model: nn.Module,
        transform: Callable[[Image.Image], Tensor],
        tokenizer: Callable[[list[str]], Tensor],
        device: torch.device | str | None = None,
        *,
        shared_space: bool = True,
    ) -> None:
        """
        Args:
            device: to move the model to, as `resolve_device` takes it; None leaves it where it is.

        Raises:
            UserError: there is no such device.
        """
        self.id = encoder_id
        self.shared_space = shared_space
        if device is None:
            self.device = next(model.parameters()).device
        else:
            self.device = resolve_device(device)
        self.model = model.eval().requires_grad_(False).to(self.device)
        self.preprocessing = Preprocessing.of(transform)
        self.tokenizer = tokenizer

    @cached_property
    def dim(self) -> int:
        """Dimensions of an embedding."""
        return self.encode_texts(["a"]).shape[1]

    @cached_property
    def fingerprint(self) -> str:
        """What the encoder is known by (`features.encoders.fingerprint`): equal ones mean equal
        embeddings."""
        return encoder_fingerprint(self.model, self.preprocessing.transform, self.tokenizer)

    def preprocess(self, image: Image.Image) -> Tensor:
        """The model's own transform: RGB image -> float32 `[3, height, width]`."""
        return self.preprocessing.transform(image)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids `[n, context]`; texts that are too long are cut."""
        return self.tokenizer(list(texts))

    @property
    def dtype(self) -> torch.dtype:
        """Of the image tower's arithmetic: that of the first convolution, or of the first weight
        where there is none."""
        weights = [p for p in self.model.parameters() if p.is_floating_point()]
        return next((p for p in weights if p.ndim == 4), weights[0]).dtype

    def embed_image_tensors(self, pixels: Tensor) -> Tensor:
        """As `encode_image_tensors`; gradients flow back to the pixels."""
        ready = pixels.to(self.device, self.dtype)
        embedding = self.model.encode_image(ready)  # type: ignore[operator]
        return F.normalize(embedding.float(), dim=-1)

    def embed_token_tensors(self, tokens: Tensor) -> Tensor:
        """As `encode_token_tensors`; gradients flow back to the tokens' embeddings."""
        embedding = self.model.encode_text(tokens.to(self.device))  # type: ignore[operator]
        return F.normalize(embedding.float(), dim=-1)

    @torch.inference_mode()
    def encode_image_tensors(self, pixels: Tensor) -> Tensor:
        """Preprocessed images `[n, 3, height, width]` -> unit embeddings `[n, dim]` float32."""
        return self.embed_image_tensors(pixels)

    @torch.inference_mode()
    def encode_token_tensors(self, tokens: Tensor) -> Tensor:
        """Token ids `[n, context]` -> unit embeddings `[n, dim]` float32."""
        return self.embed_token_tensors(tokens)

    def encode_images(self, images: Sequence[Any] | Image.Image | Tensor | np.ndarray) -> Tensor:
        """Images of any mode (`features.pairs.images.rgb`), or one alone -> unit embeddings
        `[n, dim]` float32.

        Raises:
            UserError: an image is none, or too long and narrow.
        """
        pictures = [rgb(image) for image in pictures_of(images)]
        if not pictures:
            return torch.zeros(0, self.dim, device=self.device)
        pixels = self.preprocessing.pixels(pictures)
        return self.encode_image_tensors(self.preprocessing.normalise(pixels.to(self.device)))

    def encode_texts(self, texts: Iterable[str] | str) -> Tensor:
        """Texts, or one alone -> unit embeddings `[n, dim]` float32.

        Raises:
            UserError: one is no text.
        """
        words = texts_of(texts)
        if not words:
            return torch.zeros(0, self.dim, device=self.device)
        return self.encode_token_tensors(self.tokenize(words))


def pictures_of(given: Any) -> Sequence[Any]:
    """Several pictures as a sequence, or one alone: an array or a tensor is several where it has 4
    dimensions."""
    if hasattr(given, "ndim") and given.ndim != 1:
        alone = given.ndim < 4
    else:
        alone = isinstance(given, Image.Image | str | os.PathLike | bytes | Mapping)
        alone = alone or hasattr(given, "read") or not hasattr(given, "__iter__")
    if alone:
        return [given]
    return given if hasattr(given, "__getitem__") else list(given)


def texts_of(given: Any) -> list[str]:
    """Several texts as a list, or one alone.

    Raises:
        UserError: one is no text.
    """
    alone = isinstance(given, str | bytes | Mapping) or not hasattr(given, "__iter__")
    texts = [given] if alone else list(given)
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(
                f"text {place} is {text!r}, a {type(text).__name__}; give strings, and leave out "
                "what has none"
            )
    return texts
