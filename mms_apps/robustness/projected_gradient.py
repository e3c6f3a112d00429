"""Projected gradient ascent on any loss of the pixels (Madry et al. 2018, arXiv 1706.06083).

For what torchattacks cannot take, which knows the cross-entropy of labels alone: losses of
embeddings, of retrieval, of groups of features, and a radius of its own for every image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from features.errors import UserError
from mms_apps.robustness.distances import Norm, project, random_in_ball, read_eps, read_norm
from mms_apps.robustness.models import ZeroShot, require_float32, undisturbed

STEP = 2.5
"""Steps together go this many times the radius (their section 5)."""


class Ascent(NamedTuple):
    """What a projected gradient ascent found."""

    images: Tensor
    """Of each image's highest loss: `[n, 3, height, width]`."""
    loss: Tensor
    """`[n]`"""
    history: list[float]
    """Mean loss at every step of the first start, before the step."""


def pgd(
    loss: Callable[[Tensor], Tensor],
    clean: Tensor,
    eps: Tensor | float | str,
    *,
    norm: Norm = "Linf",
    steps: int = 40,
    restarts: int = 1,
    seed: int = 0,
) -> Ascent:
    """Climb a loss within eps of clean images; the best iterate of each image is kept.

    The first start is the clean image, further ones are random. The step falls linearly to zero.

    Args:
        loss: of images `[n, 3, height, width]` in [0, 1], one value each, `[n]`.
        clean: float32, `[n, 3, height, width]`, in [0, 1].
        eps: the radius, or one for each image, `[n]`.

    Raises:
        UserError: eps is none (`read_eps`), the norm is unknown, or the loss has no gradient.
    """
    norm = read_norm(norm)
    if isinstance(eps, Tensor):
        for extreme in (eps.min(), eps.max()):
            read_eps(float(extreme), norm)
    else:
        eps = read_eps(eps, norm)
    generator = torch.Generator().manual_seed(seed)
    radius = torch.as_tensor(eps, dtype=clean.dtype, device=clean.device).expand(len(clean))
    radius = radius.reshape(-1, 1, 1, 1)
    best = clean.clone()
    highest = torch.full((len(clean),), -torch.inf, device=clean.device)
    history: list[float] = []
    for start in range(restarts):
        images = clean if start == 0 else random_in_ball(clean, radius, norm, generator)
        for step in range(steps + 1):
            with torch.enable_grad():
                images = images.detach().requires_grad_()
                values = loss(images)
                gradient = None
                if step < steps:
                    gradient = _gradient(values, images)
            values = values.detach()
            better = values > highest
            best[better], highest[better] = images.detach()[better], values[better]
            if start == 0:
                history.append(float(values.mean()))
            if gradient is not None:
                size = 2 * STEP * radius / steps * (1 - step / steps)
                images = project(
                    images.detach() + size * _uphill(gradient, norm), clean, radius, norm
                )
    return Ascent(best, highest, history)


def _gradient(values: Tensor, images: Tensor) -> Tensor:
    if values.requires_grad:
        [gradient] = torch.autograd.grad(values.sum(), images, allow_unused=True)
        if gradient is not None:
            return gradient
    raise UserError(
        "no gradient of the loss reaches the images; leave out no_grad, inference_mode, detach and "
        "numpy within it"
    )


def _uphill(gradient: Tensor, norm: Norm) -> Tensor:
    """The direction of steepest ascent of unit length in the norm."""
    if norm == "Linf":
        return gradient.sign()
    return gradient / gradient.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)


def climb(
    model: ZeroShot,
    loss: Callable[[Tensor, Tensor], Tensor],
    pixels: Tensor,
    goals: Tensor,
    eps: float | str,
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
        goals: one for each image, `[n, ...]`.

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
