"""What an evaluation runs and what it gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from features.bootstrap import Estimate, mean_estimate
from features.errors import UserError
from features.files import jsonable
from mms_apps.robustness.attacks.base import AttackConfig
from mms_apps.robustness.checks import of_controls
from mms_apps.robustness.checks.base import Check, all_passed
from mms_apps.robustness.distances import EPS, read_eps

SCHEMA = 2
WORST = "worst case"
TRANSFER = "transfer"


@dataclass(frozen=True)
class EvaluationConfig:
    """What an evaluation runs."""

    attacks: tuple[str, ...] = ("noise", "fgsm", "pgd", "apgd", "square")
    eps: tuple[float, ...] = EPS["Linf"]
    """In pixel values of [0, 1]; what is given as text, such as 4/255, is read."""
    attack: AttackConfig = field(default_factory=AttackConfig)
    defences: tuple[str, ...] = ()
    """As `Defence.parse` reads them."""
    check_images: int = 64
    """Images on which checks that need attacks of their own run."""
    control_seeds: int = of_controls.MIN_CONTROL_SEEDS
    examples: int = 6

    def __post_init__(self) -> None:
        for name, example in (
            ("attacks", '("pgd", "square")'),
            ("eps", "(4 / 255, 8 / 255)"),
            ("defences", '("squeeze:3",)'),
        ):
            given = getattr(self, name)
            if isinstance(given, str) or not isinstance(given, Iterable):
                raise UserError(f"{name} {given!r}: give a tuple, such as {example}")
            object.__setattr__(self, name, tuple(given))
        if not self.eps:
            raise UserError("no eps given; name at least one")
        values = tuple(sorted({read_eps(eps, self.attack.norm) for eps in self.eps}))
        object.__setattr__(self, "eps", values)
        if not self.attacks:
            raise UserError("no attack given; name at least one")
        if self.check_images < 1:
            raise UserError(f"check_images {self.check_images}: must be at least 1")

    @property
    def middle(self) -> float:
        """The eps of the checks, drifts and defences."""
        return self.eps[len(self.eps) // 2]


@dataclass(frozen=True)
class GroupResult:
    """One feature group beside its controls."""

    group: str
    features: int
    energy_share: float
    """Of the activations' energy on clean images."""
    accuracy: Estimate
    """Of predictions restricted to the group, on clean images."""
    control_accuracy: dict[str, list[float]]
    """By kind of control, one a seed."""
    drift: Estimate
    """Of what the attack moved, the share in the group, over the images that it moved."""
    moved: int
    """How many these are."""
    control_drift: dict[str, list[float]]


@dataclass(frozen=True)
class DefenceResult:
    """One defence at the middle eps."""

    defence: str
    clean: Estimate
    nonadaptive: Estimate
    """Under images made against the undefended model: not evidence of robustness."""
    adaptive: Estimate
    """Attacked through the defence, by gradients."""
    square: Estimate
    """Attacked by Square, which needs no gradient that a defence could hide."""
    worst: Estimate
    """Image by image under all of these: what a defence is worth."""
    undefended: Estimate
    """The undefended model under the same attacks."""


@dataclass(frozen=True)
class Evaluation:
    """The result."""

    task: str
    pairs: str
    encoder: str
    classes: list[str]
    images: int
    config: EvaluationConfig
    clean: Estimate
    accuracy: dict[str, dict[float, Estimate]]
    """By attack and eps; "worst case" among them, "transfer" where there was another model."""
    minimal: list[float]
    """The smallest eps found at which each image is adversarial; 0 where it was wrong from the
    start, infinite where even the largest eps was withstood."""
    checks: list[Check]
    groups: list[GroupResult]
    moved: list[dict[str, Any]]
    """Features that the drift's attack moved most."""
    drift_attack: str | None
    defences: list[DefenceResult]
    surrogate: str | None
    """The other model from which images were transferred."""
    surrogate_clean: Estimate | None
    """Its accuracy on the clean images: one that is wrong anyway says nothing."""
    left_out: list[str]
    """What was not done, and why, in sentences."""
    seconds: float
    """That this run took; what an earlier one had finished is not in it."""
    shown: dict[str, Any] = field(default_factory=dict, repr=False)
    """Pictures for the report: not in the JSON."""

    @property
    def reliable(self) -> bool:
        """Whether all checks passed."""
        return all_passed(self.checks)

    def record(self) -> dict[str, Any]:
        """As JSON holds it."""
        kept = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        kept.pop("shown")
        record = jsonable({"schema": SCHEMA, "reliable": self.reliable, **kept})
        record["accuracy"] = {
            attack: [{"eps": eps, **jsonable(e)} for eps, e in sorted(curve.items())]
            for attack, curve in self.accuracy.items()
        }
        return record


def worst_case(
    withstood: Mapping[str, Mapping[float, Tensor]], right: Tensor
) -> dict[float, Tensor]:
    """Whether each image withstands every attack at an eps, by eps: `[n]` bool.

    Args:
        withstood: by attack and eps, `[n]` bool.
        right: whether each clean image is classified right, `[n]` bool.
    """
    every = sorted({eps for masks in withstood.values() for eps in masks})
    return {
        eps: torch.stack([right, *(m[eps] for m in withstood.values() if eps in m)]).all(0)
        for eps in every
    }


def image_estimate(values: Tensor, seed: int) -> Estimate:
    """Of one value an image, or whether one is hit (bool), `[n]`."""
    return mean_estimate(values.cpu().numpy(), seed=seed)
