"""CW: the nearest adversarial in L2 (Carlini and Wagner 2017, arXiv 1608.04644)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mms_apps.robustness.attacks.base import AttackConfig
from mms_apps.robustness.losses import margin

ROUNDS = 5
"""Of the search for the constant."""
FIRST_CONSTANT = 1.0
STEP = 0.1
"""Length of a first step in units of eps, where it goes along every pixel alike."""
CONFIDENCE = 0.05
"""Margin by which a wrong class is to win, of logits whose usual margin is `losses.MARGIN`."""


def cw(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, config: AttackConfig
) -> Tensor:
    """Minimise |x' - x|^2 / eps^2 + c max(Z_right - max Z_wrong, -k) by Adam, with c searched for
    each image; eps sets the units alone.

    The loss knows differences of logits alone, so no shift of them matters. Pixels are kept in
    [0, 1] by clipping (their section V.B, projected gradient descent) and not by a tanh, under
    which pixels that are 0 or 1 cannot move.
    """
    shape = (-1, 1, 1, 1)
    rate = STEP * eps / images[0].numel() ** 0.5
    nearest = images.clone()
    shortest = torch.full((len(images),), torch.inf, device=images.device)
    constant = torch.full_like(shortest, FIRST_CONSTANT)
    low, high = torch.zeros_like(constant), torch.full_like(constant, torch.inf)
    for _ in range(ROUNDS):
        moved = nearest.clone().requires_grad_()
        adam = torch.optim.Adam([moved], lr=rate)
        found = torch.zeros_like(shortest, dtype=torch.bool)
        for step in range(config.steps):
            adam.param_groups[0]["lr"] = rate * (1 - step / config.steps)
            wrong = margin(model(moved), labels)  # [n], positive where fooled
            squared = (moved - images).flatten(1).square().sum(1)  # [n]
            with torch.no_grad():
                better = (wrong > 0) & (squared < shortest.square())
                found |= wrong > 0
                nearest = torch.where(better.view(shape), moved.detach(), nearest)
                shortest = torch.where(better, squared.sqrt(), shortest)
            loss = squared / eps**2 + constant * (-wrong).clamp(min=-CONFIDENCE)
            [moved.grad] = torch.autograd.grad(loss.sum(), moved)
            adam.step()
            with torch.no_grad():
                moved.clamp_(0, 1)
        high = torch.where(found, constant, high)
        low = torch.where(found, low, constant)
        constant = torch.where(high.isfinite(), (low + high) / 2, 10 * constant)
    return nearest
