"""Encoders of the transformers library: CLIP, SigLIP, SigLIP 2, ALIGN, and whatever AutoModel gives
`get_image_features` and `get_text_features`.

Images and texts go through the model's own processor, with the padding that its model was trained
with; embeddings get unit length in `Encoder`, as all do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from features.encoders.towers import public_id
from features.errors import UserError, first_line

TRANSFORMERS = "transformers:"
NO_TOKEN = -1
"""Stands where the tokenizer masks its padding."""
MAX_TOKENS = 512
"""Context of tokenizers and models that name none."""
PADDED_TO_THE_END = ("siglip", "siglip2")
"""Model types that read a text's vector at its last place, padding and all."""
GEOMETRY = ("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_pad", "pad_size")
"""An image processor's settings that decide which pixels it makes."""
AS_IT_IS = {
    "do_rescale": True,
    "rescale_factor": 1.0,
    "image_mean": [0.0] * 3,
    "image_std": [1.0] * 3,
}
"""A rescaling and a normalisation that change nothing; some processors normalise even where they
need not, and only what was rescaled."""
AFFINE_DECIMALS = 6
"""To which mean and deviation are measured."""
UNFIT = "the model cannot embed what its processor makes"
ADVICE = "save the processor that belongs to it"
TOLERANCE = 1e-4
"""Of normalised pixels."""


class DualEncoder(nn.Module):
    """A transformers model behind the names that open_clip's models have.

    Args:
        model: with `get_image_features` and `get_text_features`.
        pad_token: the id of the tokenizer's padding.
    """

    def __init__(self, model: nn.Module, pad_token: int) -> None:
        super().__init__()
        self.model = model
        self.pad_token = pad_token

    @property
    def logit_scale(self) -> Tensor | None:
        """The logarithm of what the model multiplies cosines by, a scalar; None where it has none.

        ALIGN divides them by a temperature.
        """
        if hasattr(self.model, "temperature"):
            return -self.model.temperature.log().reshape(())  # type: ignore[operator]
        scale = getattr(self.model, "logit_scale", None)
        return None if scale is None else scale.reshape(())

    def encode_image(self, pixels: Tensor) -> Tensor:
        """`[n, 3, height, width]`, or `[n, patches + 1, values]` of `PatchTransform`; gives
        `[n, dim]`."""
        if pixels.ndim == 4:
            return _pooled(self.model.get_image_features(pixel_values=pixels))  # type: ignore[operator]
        patches, shapes = pixels[:, :-1], pixels[:, -1, :2].long()
        places = torch.arange(patches.shape[1], device=pixels.device)
        used = places < shapes.prod(1, keepdim=True)  # [n, patches]
        found = self.model.get_image_features(  # type: ignore[operator]
            pixel_values=patches, pixel_attention_mask=used.int(), spatial_shapes=shapes
        )
        return _pooled(found)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """`[n, length]` of `ProcessorTokens` -> `[n, dim]`."""
        masked = tokens == NO_TOKEN
        found = self.model.get_text_features(  # type: ignore[operator]
            input_ids=tokens.masked_fill(masked, self.pad_token),
            attention_mask=(~masked).long() if masked.any() else None,
        )
        return _pooled(found)


def _pooled(found: Any) -> Tensor:
    """The features, which newer versions of transformers wrap."""
    pooled: Tensor = getattr(found, "pooler_output", found)
    return pooled


class ProcessorTokens:
    """The texts' side of a processor: texts -> ids `[n, length]`, NO_TOKEN where padding is masked.

    Attributes:
        tokenizer: the transformers tokenizer.
        context_length: the longest text in tokens; longer ones are cut.
        padding_side: "left" or "right".
    """

    def __init__(self, processor: Any, config: Any) -> None:
        self.tokenizer = processor.tokenizer
        self.padding_side: str = self.tokenizer.padding_side
        self._processor = processor
        positions = getattr(
            getattr(config, "text_config", config), "max_position_embeddings", MAX_TOKENS
        )
        masks = "attention_mask" in self.tokenizer.model_input_names
        to_the_end = config.model_type in PADDED_TO_THE_END or not masks
        self._padding: str | bool = "max_length" if to_the_end else True
        self.context_length = min(self._longest(), positions)

    def _longest(self) -> int:
        """Where the processor, or its tokenizer, cuts."""
        row = self._processor(text=["a " * MAX_TOKENS], truncation=True)["input_ids"][0]
        return min(len(row), self.tokenizer.model_max_length)

    def __call__(self, texts: Sequence[str], context_length: int | None = None) -> Tensor:
        made = self._processor(
            text=list(texts),
            padding=self._padding,
            truncation=True,
            max_length=context_length or self.context_length,
        )
        ids = torch.tensor(made["input_ids"], dtype=torch.long)  # [n, length]
        if "attention_mask" not in made:
            return ids
        return ids.masked_fill(torch.tensor(made["attention_mask"]) == 0, NO_TOKEN)


class ResizeAndCrop:
    """What a processor does to an image before it rescales and normalises: RGB image -> RGB image.

    Attributes:
        settings: of the processor, as JSON, by which it is known.
    """

    def __init__(self, process: Any, settings: str, as_it_is: dict[str, Any]) -> None:
        self._process = process
        self.settings = settings
        self._as_it_is = as_it_is

    @property
    def size(self) -> list[int] | None:
        """The sides that it resizes to; None where it does not resize."""
        own = json.loads(self.settings)
        sides = [side for side in (own["size"] or {}).values() if side]
        return sides if own["do_resize"] and sides else None

    def __call__(self, image: Image.Image) -> Image.Image:
        made = self._process(images=[image], **self._as_it_is)
        pixels = np.asarray(made["pixel_values"][0])  # [3, height, width]
        return Image.fromarray(np.rint(pixels).astype(np.uint8).transpose(1, 2, 0))


class WholeTransform:
    """All that a processor does, where it cannot be cut: RGB image -> `[3, height, width]`."""

    def __init__(self, process: Any) -> None:
        self._process = process

    def __call__(self, image: Image.Image) -> Tensor:
        made = self._process(images=[image], return_tensors="pt")
        pixels: Tensor = made["pixel_values"][0].float()
        return pixels


class PatchTransform:
    """The processor of a model that takes images of any shape as patches (SigLIP 2 NaFlex): RGB
    image -> `[patches + 1, values]`; the last row begins with the rows and columns of patches.

    Attributes:
        settings: of the processor, as JSON, by which it is known.
    """

    def __init__(self, process: Any, settings: str) -> None:
        self._process = process
        self.settings = settings

    def __call__(self, image: Image.Image) -> Tensor:
        made = self._process(images=[image], return_tensors="pt")
        patches = made["pixel_values"][0]  # [patches, values]
        last = torch.zeros(1, patches.shape[1])
        last[0, :2] = made["spatial_shapes"][0]
        return torch.cat([patches.float(), last])


def image_transform(processor: Any, config: Any) -> Callable[[Image.Image], Tensor]:
    """A processor's transform of images, cut before it rescales and normalises where what follows
    is one multiplication and one addition a channel (`Preprocessing.of` then finds the cut).

    Args:
        config: of the model.
    """
    from torchvision.transforms import Compose, Normalize, ToTensor

    own = processor.image_processor.to_dict()
    settings = json.dumps({name: own.get(name) for name in GEOMETRY}, sort_keys=True, default=int)
    made = processor(images=[Image.new("RGB", (64, 64))], return_tensors="pt")
    if "spatial_shapes" in made:
        values = 3 * config.vision_config.patch_size**2
        fits = made["pixel_values"].shape[2] == values
        return PatchTransform(processor if fits else processor.image_processor, settings)
    whole = WholeTransform(processor)
    black, white = (whole(Image.new("RGB", (64, 64), c))[:, 0, 0] for c in ("black", "white"))
    std = 1 / (white - black)  # [3]
    mean = [round(value, AFFINE_DECIMALS) for value in (-black * std).tolist()]
    deviation = [round(value, AFFINE_DECIMALS) for value in std.tolist()]
    as_it_is = AS_IT_IS | ({"rescale_offset": False} if own.get("rescale_offset") else {})
    crop = ResizeAndCrop(processor, settings, as_it_is)
    cut = Compose([crop, ToTensor(), Normalize(mean, deviation)])
    noise = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    picture = Image.fromarray(noise)
    return cut if torch.allclose(cut(picture), whole(picture), atol=TOLERANCE) else whole


def load_transformers(
    encoder_id: str,
) -> tuple[str, DualEncoder, Callable[[Image.Image], Tensor], ProcessorTokens]:
    """What `Encoder` is made of.

    Args:
        encoder_id: `transformers:ID`, a folder or a hub id with or without `@REVISION`.

    Returns:
        What the encoder is called, its model in float32, image transform and tokenizer.

    Raises:
        UserError: it cannot be loaded, has no towers for images and texts, no weights for a part,
            or no processor.
    """
    name = encoder_id.removeprefix(TRANSFORMERS)
    place, revision = name, None
    if not Path(name).is_dir():
        place, _, revision = name.partition("@")
    loaded = _model(place, revision or None)
    processor = _processor(place, revision or None)
    pad_token = processor.tokenizer.pad_token_id
    model = DualEncoder(loaded, 0 if pad_token is None else pad_token)
    try:
        transform = image_transform(processor, loaded.config)
        tokens = ProcessorTokens(processor, loaded.config)
    except Exception as error:  # whatever the processor's code raises
        raise UserError(
            f"{TRANSFORMERS}{place}: {UNFIT} ({first_line(error)}); {ADVICE}"
        ) from error
    return TRANSFORMERS + public_id(name), model, transform, tokens


def _model(place: str, revision: str | None) -> Any:
    from transformers import AutoModel

    try:
        model, loading = AutoModel.from_pretrained(
            place, revision=revision, output_loading_info=True
        )
    except Exception as error:  # transformers and huggingface_hub each raise their own
        raise UserError(
            f"{TRANSFORMERS}{place}: cannot be loaded ({first_line(error)}); check the name and "
            "the network, or give the folder of a downloaded model with config.json and weights"
        ) from error
    for kind in ("image", "text"):
        if not hasattr(model, f"get_{kind}_features"):
            raise UserError(
                f"{TRANSFORMERS}{place}: a {type(model).__name__} embeds no {kind}s; give a model "
                "with both towers, such as CLIP, SigLIP or ALIGN"
            )
    if missing := sorted(loading["missing_keys"]):
        raise UserError(
            f"{TRANSFORMERS}{place}: no weights for {len(missing)} tensors ({missing[0]} ...); "
            "save the whole model again"
        )
    return model.float()


def _processor(place: str, revision: str | None) -> Any:
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(place, revision=revision)
    except Exception as error:  # transformers and huggingface_hub each raise their own
        raise _no_processor(place, first_line(error)) from error
    if not all(getattr(processor, name, None) for name in ("image_processor", "tokenizer")):
        raise _no_processor(place, f"found only a {type(processor).__name__}")
    return processor


def _no_processor(place: str, reason: str) -> UserError:
    return UserError(
        f"{TRANSFORMERS}{place}: no processor of images and texts ({reason}); save it beside the "
        "model with processor.save_pretrained"
    )
