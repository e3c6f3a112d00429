"""Whether an accepted edit still does on new pairs what it did where it was accepted."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np

from features.bootstrap import Estimate, difference_interval
from features.errors import UserError
from mms_apps.attributes.correction.checking import Counts, count, mcnemar
from mms_apps.attributes.correction.correcting import OTHER_HALF
from mms_apps.attributes.correction.files import Accepted, SavedEdit
from mms_apps.attributes.labels import Samples

HOLDS, WEAKER, HARMS, OPEN = "holds", "weaker", "harms", "open"


@dataclass(frozen=True)
class Standing:
    """An accepted edit on new pairs.

    then: where it was accepted, on the half that played no part in choosing it; now: on new pairs.
    change: of the gain in accuracy, now less then, with a bootstrap interval.
    verdict: HOLDS; WEAKER, where the gain fell and the interval of the change lies below 0; HARMS,
        where it breaks at least as many as it mends; OPEN, where it changes too few predictions to
        say.
    """

    words: str
    then: Counts
    now: Counts
    change: Estimate
    verdict: str
    look_again: str

    @property
    def holds(self) -> bool:
        return self.verdict in (HOLDS, OPEN)

    @property
    def due(self) -> bool:
        """Whether the day has come to look at it again."""
        return date.today() >= date.fromisoformat(self.look_again)

    def in_words(self) -> str:
        said = {
            HOLDS: "does what it did",
            WEAKER: "does less than it did",
            HARMS: "no longer mends more than it breaks",
            OPEN: "changes too few predictions to say",
        }[self.verdict]
        return (
            f"{said}: it mends {self.now.mended} and breaks {self.now.broken} of "
            f"{self.now.samples}, then {self.then.mended} and {self.then.broken} of "
            f"{self.then.samples}; accuracy gained, now less then: {self.change.value:+.1%} "
            f"({self.change.low:+.1%} to {self.change.high:+.1%})"
        )


FEW = 5
"""Fewer changed predictions say nothing."""


def standing(accepted: Accepted, samples: Samples, *, seed: int = 0) -> Standing:
    """Compare an edit's counts on new pairs with those it was accepted by.

    Args:
        samples: labelled with the model's attribute; those of other labels are left out.

    Raises:
        UserError: none is left.
    """
    plain, edited = accepted.plain, accepted.edited
    attribute = accepted.saved.attribute
    labelled = samples.having(attribute, plain.model.classes)
    if not len(labelled):
        raise UserError(
            f"{attribute}: none of the pairs has one of the labels "
            f"{', '.join(plain.model.classes)}; give pairs that are labelled"
        )
    now = count(plain.right(labelled), edited.right(labelled), labelled.ids)
    return compared(accepted.saved, now, seed=seed)


def compared(saved: SavedEdit, now: Counts, *, seed: int = 0) -> Standing:
    """The saved counts beside new ones."""
    then = counts_of(saved.figures[OTHER_HALF]["counts"])
    changes = [_changes(then), _changes(now)]
    value = float(changes[1].mean() - changes[0].mean())
    change = Estimate(value, *difference_interval(*changes, seed=seed))
    verdict = HOLDS
    if now.mended + now.broken < FEW and not change.high < 0:
        verdict = OPEN
    elif now.broken >= now.mended:
        verdict = HARMS
    elif change.high < 0:
        verdict = WEAKER
    return Standing(saved.words, then, now, change, verdict, saved.look_again)


def counts_of(record: dict[str, Any]) -> Counts:
    """Counts as they are saved."""
    mended, broken = int(record["mended"]), int(record["broken"])
    return Counts(
        int(record["samples"]), int(record["right"]), mended, broken, mcnemar(mended, broken)
    )


def _changes(counts: Counts) -> np.ndarray:
    """What the edit does to each prediction, `[samples]`: 1 mended, -1 broken, 0 neither."""
    changes = np.zeros(counts.samples)
    changes[: counts.mended] = 1
    changes[counts.mended : counts.mended + counts.broken] = -1
    return changes
