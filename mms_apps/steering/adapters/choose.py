"""Which adapter a pipeline takes, and whether its encoder is the FeatureSpace's."""

from __future__ import annotations

import warnings
from typing import Any
from weakref import WeakKeyDictionary

import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn

from features.errors import UserError
from features.space.space import FeatureSpace
from mms_apps.steering.adapters.base import Adapter, TextAdapter
from mms_apps.steering.adapters.ip_adapter import FluxIPAdapter, IPAdapter
from mms_apps.steering.adapters.kandinsky import Kandinsky22
from mms_apps.steering.adapters.pooled_prompt import SD3PooledPrompt, SDXLPrompt
from mms_apps.steering.adapters.prompt_tokens import PromptTokens
from mms_apps.steering.adapters.stable_unclip import StableUnCLIP

ADAPTERS: tuple[type[Adapter], ...] = (
    StableUnCLIP,
    Kandinsky22,
    IPAdapter,
    FluxIPAdapter,
    SD3PooledPrompt,
    SDXLPrompt,
    PromptTokens,
)
SAME_EMBEDDING = 0.98
"""Least cosine of a probe's embeddings by the pipeline's encoder and by the space's."""
TRAINED_ON = 0.8
"""Least cosine where the pipeline's encoder is the space's, trained on (by DreamBooth or a LoRA);
those of encoders that were trained apart lie near 0."""
PROBE_TEXT = "a photograph of a red bicycle in front of a house"
_compared: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()
"""The fingerprints of the encoders that a pipeline's encoder was compared with."""


def adapter_for(pipe: Any, space: FeatureSpace) -> Adapter:
    """The adapter of a pipeline.

    Raises:
        UserError: none fits, or the pipeline takes embeddings of another encoder than the space's.
            One that seems to be the space's, trained on, is warned of.
    """
    if hasattr(pipe, "decoder_pipe") and hasattr(pipe, "prior_pipe"):
        raise UserError(
            f"{type(pipe).__name__} holds two pipelines; steer its decoder_pipe, with embeddings "
            "that its prior_pipe makes"
        )
    has_denoiser = any(getattr(pipe, name, None) is not None for name in ("unet", "transformer"))
    for kind in ADAPTERS if has_denoiser else ():
        if kind.fits(pipe):
            adapter = kind(pipe, space)
            _check_dimensions(adapter, space)
            _check_encoder(adapter, space)
            return adapter
    for kind in ADAPTERS if has_denoiser else ():
        if issubclass(kind, TextAdapter) and kind.takes_prompts(pipe):
            _check_text_encoders(pipe, kind)
    raise UserError(
        f"{type(pipe).__name__}: no image or text embedding of a CLIP enters it where steering "
        "knows to edit it; use Stable unCLIP's image variations, Kandinsky 2.2, Stable Diffusion "
        "(with or without an IP-Adapter), SDXL, Stable Diffusion 3, or FLUX with an IP-Adapter"
    )


def _check_text_encoders(pipe: Any, kind: type[TextAdapter]) -> None:
    """Raise a UserError where a pipeline that takes prompts was freed of its text encoders."""
    missing = [name for name in kind.encoders if getattr(pipe, name, None) is None]
    if missing:
        raise UserError(
            f"{type(pipe).__name__} without an IP-Adapter is steered by its prompt, but lacks its "
            f"{' and '.join(missing)}; load the pipeline with it"
        )


def _check_dimensions(adapter: Adapter, space: FeatureSpace) -> None:
    dim = space.dictionary.config.dim
    if adapter.dim != dim:
        raise UserError(
            f"{type(adapter.pipe).__name__} takes embeddings of {adapter.dim} dimensions, the "
            f"FeatureSpace's (of {space.config.encoder}) have {dim}; give the space of the "
            "pipeline's encoder"
        )


def _check_encoder(adapter: Adapter, space: FeatureSpace) -> None:
    """Compare both encoders' embeddings of one probe, once: equal dimensions say little."""
    if adapter.encoder is None:
        return
    known = _compared.setdefault(adapter.encoder, set())
    if space.config.encoder_fingerprint in known:
        return
    try:
        ours, theirs = _by_space(adapter, space), _by_pipeline(adapter).float().cpu()
    except UserError as error:
        warnings.warn(
            f"whether the pipeline's encoder is that of the FeatureSpace was not checked: {error}",
            stacklevel=2,
        )
        known.add(space.config.encoder_fingerprint)
        return
    cosine = F.cosine_similarity(ours, theirs).item() if ours.shape == theirs.shape else 0.0
    if cosine < TRAINED_ON:
        raise UserError(
            f"the FeatureSpace is of {space.config.encoder}, but {type(adapter.pipe).__name__} "
            f"reads embeddings of another encoder (cosine {cosine:.2f} for the same probe); give "
            "the space of the pipeline's encoder"
        )
    if cosine < SAME_EMBEDDING:
        warnings.warn(
            f"{type(adapter.pipe).__name__} reads embeddings of an encoder that is not quite "
            f"{space.config.encoder}, the FeatureSpace's (cosine {cosine:.2f} for the same probe), "
            "as one is that was trained on: features may mean something else to it; compare the "
            "pictures with and without edits",
            stacklevel=2,
        )
    known.add(space.config.encoder_fingerprint)


def _by_space(adapter: Adapter, space: FeatureSpace) -> Tensor:
    if adapter.modality == "image":
        return space.encoder.encode_images([_probe()]).cpu()
    return space.encoder.encode_texts([PROBE_TEXT]).cpu()


def _by_pipeline(adapter: Adapter) -> Tensor:
    if adapter.modality == "image":
        return adapter.embed_image(_probe())
    return adapter.embed_prompt(PROBE_TEXT)


def _probe() -> Image.Image:
    """A picture of large shapes: how it is resized hardly shows."""
    picture = Image.new("RGB", (256, 256), "skyblue")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 170, 256, 256), fill="darkgreen")
    draw.ellipse((60, 60, 180, 210), fill="firebrick", outline="black", width=6)
    draw.polygon([(150, 200), (245, 40), (250, 220)], fill="gold")
    return picture
