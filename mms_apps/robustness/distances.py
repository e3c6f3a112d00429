"""Distances between images, and the ball within which an attack stays."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from features.errors import UserError

Norm = Literal["Linf", "L2"]
NORMS: tuple[Norm, ...] = get_args(Norm)
EPS: dict[Norm, tuple[float, ...]] = {
    "Linf": (1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255),
    "L2": (0.25, 0.5, 1.0, 2.0, 4.0),
}
"""Usual sizes, in pixel values of [0, 1]."""
TOLERANCE = 1e-6
"""Relative, and in pixel values of [0, 1]: what float32 arithmetic may add to a distance."""


def read_norm(given: str) -> Norm:
    """A norm as a user writes it, in any case.

    Raises:
        UserError: it is unknown.
    """
    for norm in NORMS:
        if norm.lower() == str(given).strip().lower():
            return norm
    raise UserError(f"{given}: unknown norm; use {' or '.join(NORMS)}")


def distances(clean: Tensor, other: Tensor, norm: Norm) -> Tensor:
    """Distance of each image `[n, 3, height, width]` to its clean one: `[n]`."""
    difference = (other - clean).flatten(1)  # [n, pixels]
    return difference.abs().amax(1) if read_norm(norm) == "Linf" else difference.norm(dim=1)


def within(clean: Tensor, other: Tensor, eps: Tensor | float, norm: Norm) -> Tensor:
    """Whether each image is inside its ball, up to rounding: `[n]` bool."""
    return distances(clean, other, norm) <= eps * (1 + TOLERANCE) + TOLERANCE


def project(images: Tensor, clean: Tensor, eps: Tensor, norm: Norm) -> Tensor:
    """The images moved into their balls and into [0, 1].

    Args:
        images: `[n, 3, height, width]`.
        clean: the balls' centres, in [0, 1], of the same shape.
        eps: the balls' radii, `[n, 1, 1, 1]`.
    """
    difference = images - clean
    if read_norm(norm) == "Linf":
        difference = torch.maximum(torch.minimum(difference, eps), -eps)
    else:
        length = difference.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        difference = difference * (eps / length.clamp(min=1e-12)).clamp(max=1)
    return (clean + difference).clamp(0, 1)


def random_in_ball(clean: Tensor, eps: Tensor, norm: Norm, generator: torch.Generator) -> Tensor:
    """A random image in each ball, and in [0, 1].

    L-inf: uniform; L2: a uniform direction, and a uniform share of the radius.
    """
    shape, device = clean.shape, clean.device
    if read_norm(norm) == "Linf":
        move = 2 * torch.rand(shape, generator=generator).to(device) - 1
    else:
        move = torch.randn(shape, generator=generator).to(device)
        share = torch.rand(len(clean), generator=generator).to(device)
        length = move.flatten(1).norm(dim=1).clamp(min=1e-12)
        move = move * (share / length).view(-1, 1, 1, 1)
    return (clean + eps * move).clamp(0, 1)


def read_eps(given: str | float | Tensor, norm: Norm) -> float:
    """An eps as a user gives it: a number, a tensor of one, or text such as 4/255 or 0.5.

    Raises:
        UserError: it is no positive number, or more than the pixels' whole range in L-inf; or the
            norm is unknown.
    """
    norm = read_norm(norm)
    one = given.item() if isinstance(given, Tensor) and given.numel() == 1 else given
    upper, _, lower = str(one).partition("/")
    try:
        value = float(upper) / float(lower or 1)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not 0 < value < math.inf:
        several = "; give several one by one" * ("," in str(given))
        raise UserError(f"eps {given}: must be a positive number, such as 4/255 or 0.5{several}")
    if norm == "Linf" and value > 1:
        raise UserError(
            f"eps {given}: pixels are in [0, 1], so no change is above 1 in L-inf; {value:g}/255?"
        )
    return value


def readable_eps(eps: float) -> str:
    """An eps in 255ths where it is some of them, or where that is shorter, such as 0.25/255."""
    plain, steps = f"{eps:g}", round(255 * eps, 2)
    if eps >= 1 or abs(steps - 255 * eps) > 1e-6:
        return plain
    in_255ths = f"{steps:g}/255"
    return in_255ths if steps == int(steps) else min(plain, in_255ths, key=len)
