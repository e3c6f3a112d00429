"""Projected gradient ascent on a loss of a model's embeddings, batch by batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mms_apps.robustness.ascent import pgd
from mms_apps.robustness.distances import Norm
from mms_apps.robustness.models import ZeroShot, require_float32, undisturbed


def climb(
    model: ZeroShot,
    loss: Callable[[Tensor, Tensor], Tensor],
    pixels: Tensor,
    goals: Tensor,
    eps: float,
    *,
    norm: Norm,
    steps: int,
    batch_size: int,
    seed: int,
) -> Tensor:
    """Images `[n, 3, height, width]` within eps whose loss is as high as was found.

    Args:
        loss: of images and their goals, one value each.
        pixels: float32, in [0, 1].
        goals: one row an image, `[n, dim]`.

    Raises:
        UserError: something is not float32.
    """
    require_float32(model, pixels)
    found = []
    with undisturbed(model, seed):
        pieces = zip(pixels.split(batch_size), goals.split(batch_size), strict=True)
        for images, goal in pieces:

            def of_batch(x: Tensor, goal: Tensor = goal) -> Tensor:
                return loss(x, goal)

            ascent = pgd(of_batch, images, eps, norm=norm, steps=steps, seed=seed)
            found.append(ascent.images)
    return torch.cat(found)
