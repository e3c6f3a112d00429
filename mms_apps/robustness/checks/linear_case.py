"""A linear model, whose nearest adversarials are known."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mms_apps.robustness.attacks.base import AttackConfig
from mms_apps.robustness.attacks.run import run_attack
from mms_apps.robustness.checks.base import Check, check
from mms_apps.robustness.distances import Norm
from mms_apps.robustness.models import correct
from mms_apps.robustness.nearest_adversarial import minimal_eps

NEAREST_RATIO = 1.25


class LinearModel(nn.Module):
    """Two classes and logits linear in the pixels, whose nearest adversarial is known."""

    def __init__(self, weight: Tensor, bias: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)  # [3, height, width]
        self.bias = nn.Parameter(torch.tensor(bias))

    def forward(self, pixels: Tensor) -> Tensor:
        value = (pixels * self.weight).flatten(1).sum(1) + self.bias  # [n]
        return torch.stack([-value, value], dim=1)

    def nearest(self, pixels: Tensor, norm: Norm) -> Tensor:
        """Distance of each image to the boundary where no pixel meets 0 or 1: `[n]`."""
        dual = self.weight.abs().sum() if norm == "Linf" else self.weight.norm()
        return ((pixels * self.weight).flatten(1).sum(1) + self.bias).abs() / dual


def linear_case(count: int, seed: int) -> tuple[LinearModel, Tensor, Tensor]:
    """A linear model with images near its boundary, and what it predicts for them."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 8, 8, generator=generator)
    pixels = 0.5 + 0.05 * torch.randn(count, 3, 8, 8, generator=generator).clamp(-2, 2)
    model = LinearModel(weight, float(-0.5 * weight.sum()))
    with torch.no_grad():
        return model, pixels, model(pixels).argmax(1)


def analytic(norm: Norm, seed: int = 0, count: int = 16) -> Check:
    """On a linear model, PGD at 1.25 times the known distance fools every image, and the search for
    the smallest eps ends within 1.25 times it: the largest ratio of the two."""
    model, pixels, labels = linear_case(count, seed)
    with torch.no_grad():
        nearest = model.nearest(pixels, norm)
    found = minimal_eps(model, pixels, labels, norm=norm, high=0.5 if norm == "Linf" else 5.0)
    ratios = [float((found / nearest).max())]
    config = AttackConfig(norm=norm, seed=seed)
    for image in range(count):
        eps = NEAREST_RATIO * float(nearest[image])
        one = slice(image, image + 1)
        attacked = run_attack(model, pixels[one], labels[one], "pgd", eps, config)
        if bool(correct(model, attacked.images, labels[one])):
            ratios.append(math.inf)
    return check(
        "a known nearest adversarial is found",
        max(ratios),
        NEAREST_RATIO,
        "The attack misses an adversarial image that is known to be there: it is not to be used.",
    )
