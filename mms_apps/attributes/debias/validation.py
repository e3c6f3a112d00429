"""The rule by which every method's strength is chosen, on a validation split alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from features.errors import UserError
from mms_apps.attributes.labels import Samples
from mms_apps.attributes.measures import MIN_GROUP
from mms_apps.attributes.model import AttributeModel

COST = 0.02
"""Mean accuracy over the groups that a method may cost on the validation split."""
Setting = TypeVar("Setting")


@dataclass(frozen=True)
class Outcome:
    """What a method does on the validation split."""

    accuracy: float
    """Mean over the groups: where most samples have the shortcut, their own mean rewards it."""
    worst: float
    """Accuracy of the worst group."""
    loss: float
    """Mean negative log-likelihood in the group where it is greatest."""


@dataclass(frozen=True)
class Validation:
    """Samples that a model was not fitted on, in groups of which none should do worse.

    samples: with the model's attribute.
    groups: `[n]`; those of fewer than MIN_GROUP samples don't count.
    """

    samples: Samples
    groups: np.ndarray

    @property
    def large(self) -> np.ndarray:
        """The groups that count."""
        names, sizes = np.unique(self.groups, return_counts=True)
        return names[sizes >= MIN_GROUP]

    def require_groups(self, factor: str) -> None:
        """Raise a UserError where fewer than two groups count."""
        if len(self.large) < 2:
            raise UserError(
                f"{factor}: fewer than two groups have {MIN_GROUP} validation samples; give more "
                "pairs"
            )

    def outcome(self, model: AttributeModel, probabilities: np.ndarray) -> Outcome:
        """What predictions with these probabilities, `[n, classes]`, do."""
        truth = self.samples.columns[model.config.attribute].astype(str)
        hits = np.array(model.classes)[probabilities.argmax(axis=1)] == truth
        columns = [model.classes.index(label) for label in truth]
        losses = -np.log(np.clip(probabilities[np.arange(len(truth)), columns], 1e-12, None))
        inside = [self.groups == name for name in self.large]
        return Outcome(
            accuracy=float(np.mean([hits[g].mean() for g in inside])),
            worst=float(min(hits[g].mean() for g in inside)),
            loss=float(max(losses[g].mean() for g in inside)),
        )


def best(before: Outcome, candidates: Sequence[tuple[Setting, Outcome]]) -> Setting | None:
    """Of all settings that cost at most COST of the accuracy, that whose worst group has the
    smallest mean loss (rare groups are too small to tell by their accuracy), the first of equal
    ones; None where none has a smaller one than there was before."""
    allowed = [c for c in candidates if c[1].accuracy >= before.accuracy - COST]
    setting, outcome = min(allowed, key=lambda c: c[1].loss, default=(None, before))
    return setting if outcome.loss < before.loss else None
