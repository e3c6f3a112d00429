"""What changed in the features when a model, its dictionary or the data were updated."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from features.analysis.matching import Matching
from features.encoders.fingerprint import same_encoder
from features.errors import UserError
from features.modality import UNSCORED
from features.scores.monosemanticity import in_driving_modality
from features.space.space import FeatureSpace

SCHEMA = 1
KINDS = ("gone", "new", "moved", "lost", "parted")
LOST_MS = 0.1
"""A fall of the Monosemanticity Score by more than this is a loss."""


@dataclass(frozen=True)
class Change:
    """One change of one feature.

    kind: gone (scored before, without a counterpart now), new (the other way round), moved (to
        another class, with MDS intervals that lie apart), lost (its Monosemanticity Score, in the
        modality that drives it, fell by more than LOST_MS), parted (its agreement lay above its
        floor and no longer does, with intervals that lie apart: images and texts drive it in other
        pairs).
    old, new: the feature's numbers; None where there is none.
    """

    kind: str
    name: str
    old: int | None
    new: int | None
    what: str
    """In words."""


@dataclass(frozen=True)
class Drift:
    """What changed from one space to another.

    share: of the old space's scored features that are gone, moved, lost or parted, in [0, 1].
    new_share: of the new space's scored features that are new, in [0, 1].
    compared_by: "feature number" for one dictionary on two data sets, else "activations".
    judges_differ: the Monosemanticity Scores are of different judges, and were not compared.
    """

    share: float
    new_share: float
    old_scored: int
    new_scored: int
    compared_by: str
    judges_differ: bool
    changes: list[Change]

    @property
    def counts(self) -> dict[str, int]:
        """Changes by kind."""
        found = Counter(change.kind for change in self.changes)
        return {kind: found[kind] for kind in KINDS}

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {"schema": SCHEMA, **asdict(self), "counts": self.counts}


def same_dictionary(old: FeatureSpace, new: FeatureSpace) -> bool:
    """Whether feature i of both is the same direction of the same encoder."""
    return old.config.dictionary_fingerprint == new.config.dictionary_fingerprint and same_encoder(
        old.config.encoder_fingerprint, new.config.encoder_fingerprint
    )


def find_drift(old: FeatureSpace, new: FeatureSpace, matching: Matching | None = None) -> Drift:
    """Compare the features of two spaces.

    Args:
        matching: of the old space's features with the new one's; None where both have one
            dictionary.

    Raises:
        UserError: the dictionaries differ, and no matching is given.
    """
    if matching is None:
        if not same_dictionary(old, new):
            raise UserError(
                "the two spaces have different encoders or dictionaries; name pairs on which "
                "their features can be matched (--pairs)"
            )
        partner = np.arange(len(old))
    else:
        partner = matching.partner
    judges_differ = not same_encoder(old.config.judge_fingerprint, new.config.judge_fingerprint)
    before, after = old.features.to_pylist(), new.features.to_pylist()
    changes: list[Change] = []
    changed: set[int] = set()
    found: set[int] = set()
    for feature, row in enumerate(before):
        counterpart = after[partner[feature]] if partner[feature] >= 0 else None
        if counterpart is not None and counterpart["class_fixed"] == UNSCORED:
            counterpart = None
        if row["class_fixed"] == UNSCORED:
            continue
        if counterpart is not None:
            found.add(counterpart["feature"])
        own = _changes(row, counterpart, judges_differ)
        changes += own
        if own:
            changed.add(feature)
    scored_after = [row for row in after if row["class_fixed"] != UNSCORED]
    for row in scored_after:
        if row["feature"] not in found:
            what = f"{row['class_fixed']}, MDS {row['mds']:.2f}"
            changes.append(Change("new", row["name"], None, row["feature"], what))
    old_scored = sum(row["class_fixed"] != UNSCORED for row in before)
    counts = Counter(change.kind for change in changes)
    return Drift(
        share=len(changed) / max(1, old_scored),
        new_share=counts["new"] / max(1, len(scored_after)),
        old_scored=old_scored,
        new_scored=len(scored_after),
        compared_by="feature number" if matching is None else "activations",
        judges_differ=judges_differ,
        changes=sorted(changes, key=lambda change: KINDS.index(change.kind)),
    )


def _changes(
    row: dict[str, Any], counterpart: dict[str, Any] | None, judges_differ: bool
) -> list[Change]:
    """What happened to one scored feature of the old space."""
    if counterpart is None:
        what = f"was {row['class_fixed']}, MDS {row['mds']:.2f}"
        return [Change("gone", row["name"], row["feature"], None, what)]
    numbers = (row["name"], row["feature"], counterpart["feature"])
    changes = []
    apart = row["mds_high"] < counterpart["mds_low"] or counterpart["mds_high"] < row["mds_low"]
    if row["class_fixed"] != counterpart["class_fixed"] and apart:
        what = (
            f"{row['class_fixed']} to {counterpart['class_fixed']}, "
            f"MDS {row['mds']:.2f} to {counterpart['mds']:.2f}"
        )
        changes.append(Change("moved", *numbers, what))
    fell = counterpart["agreement_high"] < row["agreement_low"]
    if row["shared"] and not counterpart["shared"] and fell:
        what = f"agreement {row['agreement']:.2f} to {counterpart['agreement']:.2f}"
        changes.append(Change("parted", *numbers, what))
    then, now = (_ms(each, row["class_fixed"]) for each in (row, counterpart))
    if not judges_differ and math.isfinite(then) and not now >= then - LOST_MS:
        changes.append(Change("lost", *numbers, f"MS {then:.2f} to {now:.2f}"))
    return changes


def _ms(row: dict[str, Any], modality_class: str) -> float:
    """MS in the modality that drives a class; NaN where it is undefined."""
    return float(in_driving_modality(row["ms_image"], row["ms_text"], modality_class))
