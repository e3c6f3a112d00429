"""What an edit mends and breaks on pairs that played no part in choosing it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.bootstrap import Estimate, share_estimate
from mms_apps.attributes.correction.mistakes import mended_and_broken
from mms_apps.attributes.correction.proposing import Corrected
from mms_apps.attributes.labels import Samples
from mms_apps.attributes.measures import (
    REPLICATES,
    SMALL_GROUP,
    bootstrap_weights,
    estimate,
    units_of,
    weighted_mean,
)

ENOUGH = 3
"""Predictions that an edit must mend for each that it breaks."""
CLEAR = 0.05
"""A smaller p of McNemar's test is no chance."""


@dataclass(frozen=True)
class Counts:
    """Predictions before and after an edit.

    mended: wrong before, right after; broken: the other way round.
    p: of McNemar's exact test (`mcnemar`), in which samples of one id, a picture's say, are one:
        mended where more of them are mended than broken.
    """

    samples: int
    right: int
    mended: int
    broken: int
    p: float

    @property
    def before(self) -> Estimate:
        """Accuracy without the edit, with its exact (Clopper-Pearson) interval."""
        return _share(self.right, self.samples)

    @property
    def after(self) -> Estimate:
        """Accuracy with the edit."""
        return _share(self.right + self.mended - self.broken, self.samples)

    @property
    def share_mended(self) -> Estimate:
        """Of the predictions that changed between right and wrong."""
        return _share(self.mended, self.mended + self.broken)

    @property
    def each(self) -> Estimate:
        """Predictions mended for each one broken; infinite where none is broken."""
        share = self.share_mended
        return Estimate(*(_odds(value) for value in (share.value, share.low, share.high)))

    @property
    def enough(self) -> bool:
        """Whether it mends ENOUGH for each one that it breaks, and more than by chance."""
        return self.mended >= ENOUGH * self.broken and self.mended > 0 and self.p < CLEAR

    @property
    def harms(self) -> bool:
        """Whether it breaks more than it mends, and not by chance."""
        return self.broken > self.mended and self.p < CLEAR


@dataclass(frozen=True)
class GroupCounts:
    """The counts of one protected group.

    counted: whether it has SMALL_GROUP samples of different ids, and so may be the worst one.
    """

    group: str
    counted: bool
    counts: Counts


@dataclass(frozen=True)
class Check:
    """An edit on one set of samples.

    gain: accuracy after less before, with a bootstrap interval over the samples' ids.
    groups: by the protected attribute, sorted.
    worst_before, worst_after: of the groups that count, the one of least accuracy; None where none
        counts.
    """

    counts: Counts
    gain: Estimate
    groups: tuple[GroupCounts, ...]

    @property
    def worst_before(self) -> GroupCounts | None:
        counted = [row for row in self.groups if row.counted]
        return min(counted, key=lambda row: row.counts.before.value, default=None)

    @property
    def worst_after(self) -> GroupCounts | None:
        counted = [row for row in self.groups if row.counted]
        return min(counted, key=lambda row: row.counts.after.value, default=None)


@dataclass(frozen=True)
class Advice:
    """Whether to take an edit, and why, in words."""

    accept: bool
    why: str


def mcnemar(mended: int, broken: int) -> float:
    """The p-value of McNemar's exact test that an edit mends as often as it breaks: two-sided,
    binomial over the predictions that changed (McNemar 1947); 1 where none did."""
    from scipy.stats import binomtest

    changed = mended + broken
    return float(binomtest(mended, changed, 0.5).pvalue) if changed else 1.0


def count(before: np.ndarray, after: np.ndarray, ids: np.ndarray | None = None) -> Counts:
    """Counts of predictions that are right before, `[n]` bool, and after, `[n]` bool.

    Args:
        ids: of the samples, `[n]`; None where each is its own.
    """
    mended, broken = mended_and_broken(before, after)
    places = np.arange(len(before))
    if ids is not None:
        places = np.unique(ids.astype(str), return_inverse=True)[1]
    changes = np.bincount(places, after.astype(float) - before.astype(float))
    p = mcnemar(int((changes > 0).sum()), int((changes < 0).sum()))
    return Counts(len(before), int(before.sum()), mended, broken, p)


def check(plain: Corrected, edited: Corrected, samples: Samples, group: str, seed: int) -> Check:
    """Predict samples with an edit and without.

    Args:
        samples: labelled, that the edit was not chosen on.
        group: attribute whose values are the groups; samples without one are in none.
    """
    before, after = plain.right(samples), edited.right(samples)
    weights = bootstrap_weights(len(samples), REPLICATES, seed, samples.ids)
    gain = weighted_mean(after, weights) - weighted_mean(before, weights)
    values = samples.columns[group]
    rows = []
    for name in sorted({str(value) for value in values if value}):
        inside = values == name
        counted = units_of(samples.ids, inside) >= SMALL_GROUP
        counts = count(before[inside], after[inside], samples.ids[inside])
        rows.append(GroupCounts(name, counted, counts))
    return Check(count(before, after, samples.ids), estimate(gain), tuple(rows))


def advise(checks: dict[str, Check]) -> Advice:
    """Take an edit that, on each set of pairs, mends ENOUGH predictions for each one it breaks, by
    more than chance, and that breaks clearly more than it mends in no group.

    Args:
        checks: by what the pairs are called.
    """
    for name, found in checks.items():
        counts = found.counts
        said = f"on {name} it mends {counts.mended} and breaks {counts.broken}"
        if counts.mended < ENOUGH * counts.broken or not counts.mended:
            return Advice(False, f"{said}, fewer than {ENOUGH} for each one broken")
        if counts.p >= CLEAR:
            return Advice(False, f"{said}, which may be chance (p = {counts.p:.2g})")
        harmed = [row for row in found.groups if row.counts.harms]
        if harmed:
            worst = harmed[0]
            return Advice(
                False,
                f"{said}, but in {worst.group} it mends {worst.counts.mended} and breaks "
                f"{worst.counts.broken}",
            )
    sums = [
        f"on {name} it mends {found.counts.mended} and breaks {found.counts.broken} "
        f"(p = {found.counts.p:.2g})"
        for name, found in checks.items()
    ]
    return Advice(True, "; ".join(sums))


def _share(hits: int, samples: int) -> Estimate:
    return share_estimate(np.arange(samples) < hits)


def _odds(share: float) -> float:
    return float("inf") if share == 1 else share / (1 - share)
