"""What an attack is: its settings, its result, its kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import NamedTuple

from torch import Tensor, nn

from features.errors import UserError
from mms_apps.robustness.distances import Norm, read_norm
from mms_apps.robustness.models import BATCH


@dataclass(frozen=True)
class AttackConfig:
    """How long attacks run."""

    norm: Norm = "Linf"
    pgd_steps: int = 40
    steps: int = 100
    """Of APGD, FAB and CW."""
    queries: int = 500
    """Of Square; the reference's AutoAttack takes 5,000."""
    restarts: int = 1
    batch_size: int = BATCH
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "norm", read_norm(self.norm))
        for name in ("pgd_steps", "steps", "queries", "restarts", "batch_size", "seed"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool):
                raise UserError(f"{name} {value!r}: must be a whole number")
        for name in ("queries", "restarts", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)}: must be at least 1")
        for name in ("pgd_steps", "steps"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} {getattr(self, name)}: must not be negative")


class Attacked(NamedTuple):
    """What an attack found."""

    images: Tensor
    """`[n, 3, height, width]`; the clean image where the prediction was wrong from the start."""
    history: list[float]
    """Mean cross-entropy at each pass over the first batch; empty for attacks without gradients."""
    fooled: Tensor
    """Whether any image that the attack tried fooled the model: `[n]` bool."""


Run = Callable[[nn.Module, Tensor, Tensor, float, AttackConfig], Tensor]


@dataclass(frozen=True)
class AttackKind:
    """One attack: how it runs and what it needs."""

    run: Run
    passes: Callable[[AttackConfig], int]
    """About how many passes over the images it takes, for the progress."""
    norms: tuple[Norm, ...] = ("Linf", "L2")
    min_classes: int = 2
    gradients: bool = True
    iterated: bool = True
    keeps_last: bool = False
    """Whether it returns its last iterate, so that the best must be kept for it."""
    nearest: bool = False
    """Whether it looks for the nearest adversarial whatever eps is."""
