"""A linear model, whose nearest adversarials are known, and what attacks make of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from mms_apps.robustness.attacks.base import AttackConfig
from mms_apps.robustness.attacks.registry import ATTACKS
from mms_apps.robustness.attacks.run import run_attack
from mms_apps.robustness.checks.base import Check, check
from mms_apps.robustness.distances import Norm
from mms_apps.robustness.models import correct
from mms_apps.robustness.nearest_adversarial import minimal_eps

NEAREST_RATIO = 1.25
RESCALED = ((1.0, -20.0), (1.0, 100.0), (1 / 64, 0.0), (64.0, 0.0))
"""Scales and shifts of logits, which change no prediction."""
STEPS, QUERIES = 40, 100
"""Enough on a linear model."""
EXTREME: dict[Norm, float] = {"Linf": 0.05, "L2": 0.5}
"""Distance of the nearest adversarial of an image of zeros and ones."""
ENOUGH_CLASSES = 4
"""For every attack."""


class LinearModel(nn.Module):
    """Logits linear in the pixels, whose nearest adversarial is known; of more than two classes
    the others never win."""

    def __init__(self, weight: Tensor, bias: float, classes: int = 2) -> None:
        super().__init__()
        self.classes = classes
        self.weight = nn.Parameter(weight)  # [3, height, width]
        self.bias = nn.Parameter(torch.tensor(bias))

    def forward(self, pixels: Tensor) -> Tensor:
        value = (pixels * self.weight).flatten(1).sum(1) + self.bias  # [n]
        others = [-value.abs() - 1] * (self.classes - 2)
        return torch.stack([-value, value, *others], dim=1)

    def nearest(self, pixels: Tensor, norm: Norm) -> Tensor:
        """Distance of each image to the boundary where no pixel meets 0 or 1: `[n]`."""
        dual = self.weight.abs().sum() if norm == "Linf" else self.weight.norm()
        return ((pixels * self.weight).flatten(1).sum(1) + self.bias).abs() / dual


class Rescaled(nn.Module):
    """A model with its logits scaled and shifted: its predictions are the same."""

    def __init__(self, model: nn.Module, scale: float, shift: float) -> None:
        super().__init__()
        self.model, self.scale, self.shift = model, scale, shift

    def forward(self, pixels: Tensor) -> Tensor:
        return self.scale * self.model(pixels) + self.shift


def linear_case(count: int, seed: int, classes: int = 2) -> tuple[LinearModel, Tensor, Tensor]:
    """A linear model with images near its boundary, and what it predicts for them."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 8, 8, generator=generator)
    pixels = 0.5 + 0.05 * torch.randn(count, 3, 8, 8, generator=generator).clamp(-2, 2)
    model = LinearModel(weight, float(-0.5 * weight.sum()), classes)
    with torch.no_grad():
        return model, pixels, model(pixels).argmax(1)


def analytic(norm: Norm, seed: int = 0, count: int = 8) -> Check:
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


def rescaling_is_nothing(
    names: Sequence[str], norm: Norm, *, classes: int = 2, seed: int = 0, count: int = 16
) -> Check:
    """No attack fools more or fewer images of a linear model where its logits are shifted or
    scaled: the largest difference of the accuracies that it leaves.

    Args:
        names: attacks that can be run on so many classes.
    """
    model, pixels, labels = linear_case(count, seed, classes)
    with torch.no_grad():
        distances = model.nearest(pixels, norm).sort().values
    eps = float(distances[count // 2 - 1 : count // 2 + 1].mean())
    config = AttackConfig(norm=norm, steps=STEPS, queries=QUERIES, seed=seed)
    differences = {}
    for name in names:
        left = [
            float(correct(other, run_attack(other, pixels, labels, name, eps, config).images,
                          labels).float().mean())
            for other in (model, *(Rescaled(model, *way) for way in RESCALED))
        ]  # fmt: skip
        differences[name] = max(left) - min(left)
    moved = [name for name, difference in differences.items() if difference > 1 / count]
    return check(
        "a shift or scale of the logits is nothing",
        max(differences.values(), default=math.nan),
        1 / count,
        "Predictions don't hang on them, so neither may an attack's result: mend the attack's loss"
        f"{_named(moved)}.",
    )


def extremes_move(names: Sequence[str], norm: Norm, *, classes: int = 2, seed: int = 0) -> Check:
    """Every attack by gradients fools a linear model with an image of zeros and ones at 1.25 times
    the known distance: the share that does not.

    Args:
        names: attacks by gradients that can be run on so many classes.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 8, 8, generator=generator)
    dual = weight.abs().sum() if norm == "Linf" else weight.norm()
    bias = EXTREME[norm] * dual - weight.clamp(min=0).sum()
    model = LinearModel(weight, float(bias), classes)
    pixels, labels = (weight > 0).float()[None], torch.ones(1, dtype=torch.int64)
    eps = NEAREST_RATIO * EXTREME[norm]
    config = AttackConfig(norm=norm, steps=STEPS, seed=seed)
    failed = [
        name
        for name in names
        if bool(correct(model, run_attack(model, pixels, labels, name, eps, config).images, labels))
    ]
    return check(
        "pixels at 0 and 1 can move",
        len(failed) / len(names) if names else math.nan,
        0.0,
        "Much of a drawing is pure black and white; an attack that cannot move such pixels misses "
        f"what is there{_named(failed)}.",
    )


def of_attacks(names: Sequence[str], norm: Norm, classes: int, seed: int) -> Iterator[Check]:
    """The checks of attacks that need no model: of single attacks by name, of as many classes as
    they are run on."""
    few = min(classes, ENOUGH_CLASSES)
    yield rescaling_is_nothing(names, norm, classes=few, seed=seed)
    seeing = [name for name in names if ATTACKS[name].gradients]
    if seeing:
        yield extremes_move(seeing, norm, classes=few, seed=seed)


def _named(names: Sequence[str]) -> str:
    return f" ({', '.join(names)})" if names else ""
