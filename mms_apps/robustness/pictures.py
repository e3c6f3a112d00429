"""Attacked pictures, drawn: pixels as images, and what an attack changed."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from features.reports.layers import AGAINST, FOR

PICTURE_SIDE = 128
RAISED, LOWERED = FOR, AGAINST
"""The colours of what an attack raised and lowered, which colour-blind people tell apart."""


def change_drawn(clean: Tensor, attacked: Tensor) -> tuple[Tensor, float]:
    """What an attack changed, `[n, 3, height, width]` in [0, 1], and the largest change of all.

    Of each pixel the channel is drawn that changed most: white where none did, RAISED or LOWERED in
    full where it changed by the largest change of all.

    Args:
        clean, attacked: pixels in [0, 1], `[n, channels, height, width]`.
    """
    change = attacked - clean
    most = change.gather(1, change.abs().argmax(1, keepdim=True))  # [n, 1, height, width]
    largest = float(change.abs().max())
    raised, lowered = (
        (torch.tensor(colour, device=change.device) / 255).view(1, 3, 1, 1)
        for colour in (RAISED, LOWERED)
    )
    share = most.abs() / max(largest, 1e-12)
    return 1 - share * (1 - torch.where(most > 0, raised, lowered)), largest


def readable_change(change: float) -> str:
    """A change of a pixel in 255ths, such as "4/255" or "3.6/255"."""
    return f"{255 * change:.2g}/255"


def picture(pixels: Tensor, side: int = PICTURE_SIDE) -> Image.Image:
    """Pixels `[channels, height, width]` in [0, 1] as an image whose longer side is at least
    `side`: of three channels in colour, of another number their mean."""
    if len(pixels) != 3:
        pixels = pixels.mean(0, keepdim=True).expand(3, -1, -1)
    eight_bit = (pixels.permute(1, 2, 0).cpu() * 255).round().to(torch.uint8)
    image = Image.fromarray(np.ascontiguousarray(eight_bit.numpy()))
    factor = max(1, math.ceil(side / max(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
