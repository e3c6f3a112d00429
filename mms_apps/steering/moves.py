"""How far an embedding moves."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

HALVINGS = 50
"""Of the scale of a move: 20 to find where it ends, the others where it is far too large."""
LONGEST = 1e6
"""Of a move of a unit vector: one as long ends, within rounding, where any longer one would."""


def within(unit: Tensor, move: Tensor, degrees: float) -> tuple[Tensor, Tensor]:
    """Unit vectors moved, by less where they would turn by more than so many degrees.

    Args:
        unit: `[n, dim]`.
        move: `[n, dim]`.

    Returns:
        The turned unit vectors `[n, dim]`, and what each move was scaled by `[n]`.
    """
    least = math.cos(math.radians(degrees))
    move, shortened = _at_most_longest(move)

    def turned(scale: Tensor) -> Tensor:
        return F.normalize(unit + scale[:, None] * move, dim=1)

    whole = torch.ones(len(unit), device=unit.device)
    low, high = torch.zeros_like(whole), whole.clone()
    for _ in range(HALVINGS):  # the angle grows with the scale
        middle = (low + high) / 2
        inside = (turned(middle) * unit).sum(1) >= least
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    fits = (turned(whole) * unit).sum(1) >= least
    scale = torch.where(fits, whole, low)
    return turned(scale), torch.where(fits, whole, low * shortened)


def _at_most_longest(move: Tensor) -> tuple[Tensor, Tensor]:
    """Moves `[n, dim]`, none longer than LONGEST, and what each was scaled by `[n]`."""
    length = move.double().norm(dim=1)  # of large moves, float32 does not hold the squares
    scale = (LONGEST / length.clamp(min=LONGEST)).float()
    return move * scale[:, None], scale


def until(unit: Tensor, move: Tensor, weight: Tensor, bias: float, probability: float) -> Tensor:
    """Moves, each shortened to where a logistic probe of the moved unit vector reaches a
    probability; those that never reach it stay as they are.

    Args:
        unit: `[n, dim]`.
        move: `[n, dim]`.
        weight: of the probe, `[dim]`.
        bias: of its log-odds.

    Returns:
        `[n, dim]`.
    """
    wanted = math.log(probability / (1 - probability))
    move, _ = _at_most_longest(move)

    def reaches(scale: Tensor) -> Tensor:
        return F.normalize(unit + scale[:, None] * move, dim=1) @ weight + bias >= wanted

    low = torch.zeros(len(unit), device=unit.device)
    high = torch.ones_like(low)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        reached = reaches(middle)
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    return torch.where(reaches(low), low, high)[:, None] * move
