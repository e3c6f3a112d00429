"""Which adapter a pipeline takes."""

from __future__ import annotations

from typing import Any

from features.errors import UserError
from mms_apps.steering.adapters.base import Adapter
from mms_apps.steering.adapters.ip_adapter import FluxIPAdapter, IPAdapter
from mms_apps.steering.adapters.kandinsky import Kandinsky22
from mms_apps.steering.adapters.sdxl import SDXLPooledPrompt
from mms_apps.steering.adapters.stable_unclip import StableUnCLIP


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
