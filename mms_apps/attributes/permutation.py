"""What gaps and differences between groups chance alone gives: a permutation null.

The best and the worst of several groups always differ, so a bootstrap interval of their difference
excludes zero even where a predictor is fair. Under the null hypothesis the groups' labels can be
exchanged; the null distribution is that of the same statistic with the labels permuted (Good 2005,
Permutation, Parametric and Bootstrap Tests of Hypotheses, chapter 3).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from features.bootstrap import Estimate

PERMUTATIONS = 1000
CONDITIONAL = ("tpr", "fpr")
"""Statistics that condition on the label: for them groups are permuted within it."""
DIFFERENCES = ("gap", "parity", *CONDITIONAL)
ROUNDING = 1e-12
BLOCK = 50_000
"""Samples, over all its permutations, that are worked on at once."""


@dataclass(frozen=True)
class Chance:
    """A gap or difference between groups, beside what chance gives.

    chance: its mean over permutations of the groups' labels.
    p: how often a permutation gives at least as much, the data itself counted as one.
    """

    value: float
    chance: float
    p: float


@dataclass(frozen=True)
class Difference(Estimate):
    """A gap or difference between groups with its interval, and `chance` and `p` of `Chance`.

    The interval says how large it is, given that groups differ; `p` says whether they do.
    """

    chance: float
    p: float


NO_DIFFERENCE = Difference(*[float("nan")] * 5)


def permutation_tests(
    truth: np.ndarray,
    predicted: np.ndarray,
    groups: np.ndarray,
    classes: Sequence[str],
    *,
    clusters: np.ndarray | None = None,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> dict[str, Chance]:
    """The permutation test of each of DIFFERENCES.

    The gap is the overall accuracy less the worst group's; the others are the greatest difference
    between groups in a one-vs-rest rate, over the classes. All samples of one cluster and group
    are given one group together; clusters that lie in several groups make the test conservative.

    Args:
        truth: `[n]`, each one of the classes.
        predicted: `[n]`, likewise.
        groups: `[n]`, at least two.
        clusters: `[n]`, samples that are not independent; None for none.
    """
    names = np.asarray(classes)
    order = np.argsort(names)
    true, found = (
        order[np.searchsorted(names[order], np.asarray(v).astype(names.dtype))]
        for v in (truth, predicted)
    )
    group_names, group = np.unique(groups.astype(str), return_inverse=True)
    shape = (len(group_names), len(names), len(names))
    cluster = np.arange(len(group)) if clusters is None else _numbered(clusters.astype(str))

    def statistics(groups: np.ndarray) -> dict[str, np.ndarray]:
        """Of the groups of each permutation, `[permutations, n]`."""
        draw = np.arange(len(groups))[:, None]
        cell = np.ravel_multi_index((draw, groups, true, found), (len(groups), *shape))
        counts = np.bincount(cell.ravel(), minlength=len(groups) * math.prod(shape))
        return _statistics(counts.reshape(-1, *shape))

    null: dict[str, np.ndarray] = {}
    for strata, wanted in (
        (np.zeros_like(true), [name for name in DIFFERENCES if name not in CONDITIONAL]),
        (true, CONDITIONAL),
    ):
        drawn = [statistics(p) for p in _permuted(group, strata, cluster, permutations, seed)]
        null |= {name: np.concatenate([some[name] for some in drawn]) for name in wanted}
    observed = statistics(group[None])
    return {name: _chance(float(observed[name][0]), null[name]) for name in DIFFERENCES}


def gap_test(
    hits: np.ndarray,
    truth: np.ndarray,
    groups: np.ndarray,
    *,
    clusters: np.ndarray,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Chance:
    """The permutation test of the gap between groups that are compared at the same label.

    Args:
        hits: whether each prediction is right, `[variants, n]`; the gap is the mean over variants.
        truth: the labels within which groups are permuted, `[n]`.
        groups, clusters: as `permutation_tests` takes them.
    """
    group, stratum, cluster = (_numbered(v.astype(str)) for v in (groups, truth, clusters))
    overall, count = hits.mean(axis=1), group.max() + 1  # [variants], groups

    def gaps(groups: np.ndarray) -> np.ndarray:
        """Of the groups of each permutation, `[permutations, n]`."""
        shape = (len(groups), count)
        cell = (groups + count * np.arange(len(groups))[:, None]).ravel()
        sizes = np.bincount(cell, minlength=math.prod(shape)).reshape(shape)
        right = [
            np.bincount(cell, np.tile(row, len(groups)), math.prod(shape)).reshape(shape)
            for row in hits
        ]  # of each variant, [permutations, groups]
        return (overall[:, None] - (np.stack(right) / sizes).min(axis=2)).mean(axis=0)

    drawn = [gaps(permuted) for permuted in _permuted(group, stratum, cluster, permutations, seed)]
    return _chance(float(gaps(group[None])[0]), np.concatenate(drawn))


def p_value(observed: float, null: np.ndarray) -> float:
    """Share of a null distribution `[permutations]` that is at least `observed`, which itself
    counts as one of it (Phipson and Smyth 2010)."""
    return float((1 + (null >= observed - ROUNDING).sum()) / (1 + len(null)))


def _permuted(
    group: np.ndarray, stratum: np.ndarray, cluster: np.ndarray, permutations: int, seed: int
) -> Iterator[np.ndarray]:
    """The groups `[n]` permuted within each stratum, those of one cluster and group together; in
    blocks `[permutations, n]`."""
    rng = np.random.default_rng(seed)
    units, unit = np.unique(
        np.stack([stratum, cluster, group]), axis=1, return_inverse=True
    )  # [3, units], in the order of their strata
    unit = unit.reshape(-1)
    block = max(1, BLOCK // len(group))
    for start in range(0, permutations, block):
        keys = rng.random((min(block, permutations - start), units.shape[1]))
        order = np.lexsort((keys, np.broadcast_to(units[0], keys.shape)))
        yield units[2][order][:, unit]


def _chance(value: float, null: np.ndarray) -> Chance:
    if math.isnan(value):
        return Chance(value, value, value)
    return Chance(value, float(null.mean()), p_value(value, null))


def _numbered(names: np.ndarray) -> np.ndarray:
    return np.unique(names, return_inverse=True)[1]


def _statistics(counts: np.ndarray) -> dict[str, np.ndarray]:
    """DIFFERENCES `[...]` of counts `[..., groups, true classes, predicted classes]`."""
    size = counts.sum(axis=(-2, -1))  # [..., groups]
    right = np.diagonal(counts, axis1=-2, axis2=-1)  # [..., groups, classes]
    hits = right.sum(axis=-1)
    real, chosen = counts.sum(axis=-1), counts.sum(axis=-2)
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = {
            "parity": chosen / size[..., None],
            "tpr": right / real,
            "fpr": (chosen - right) / (size[..., None] - real),
        }
    gap = hits.sum(axis=-1) / size.sum(axis=-1) - (hits / size).min(axis=-1)
    return {"gap": gap} | {
        name: greatest_difference(np.swapaxes(rate, -2, -1)) for name, rate in rates.items()
    }


def greatest_difference(rates: np.ndarray) -> np.ndarray:
    """The greatest difference between groups over the classes, of rates `[..., classes, groups]`;
    a group that lacks what a rate is of (NaN) is left out of it. NaN where no class has the rate in
    two groups."""
    known = ~np.isnan(rates)
    highest = np.where(known, rates, -np.inf).max(axis=-1)  # [..., classes]
    lowest = np.where(known, rates, np.inf).min(axis=-1)
    compared = known.sum(axis=-1) >= 2
    spread = np.where(compared, highest, -1.0) - np.where(compared, lowest, 0.0)
    greatest = spread.max(axis=-1)
    return np.where(greatest >= 0, greatest, np.nan)
