"""Bootstrap intervals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval; NaN where it is undefined."""

    value: float
    low: float
    high: float


NOT_KNOWN = Estimate(float("nan"), float("nan"), float("nan"))


def mean_estimate(values: np.ndarray, *, seed: int = 0) -> Estimate:
    """The mean of one value a sample, `[n]`, with its bootstrap interval."""
    if len(values) == 0:
        return NOT_KNOWN
    low, high = bootstrap_interval(values, seed=seed)
    return Estimate(float(np.mean(values)), low, high)


def percentile_interval(replicates: np.ndarray, *, level: float = 0.95) -> tuple[float, float]:
    """The lower and the upper bound of what `replicates` `[n]` of an estimate leave at `level`."""
    tail = (1 - level) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_interval(
    values: np.ndarray, *, seed: int = 0, replicates: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean.

    Args:
        values: one value a sample, `[n]`.
        level: coverage, in (0, 1).

    Returns:
        The lower and the upper bound; NaN for no samples.
    """
    values = np.asarray(values, dtype=float)
    if len(values) == 0:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    means = np.array(
        [values[rng.integers(len(values), size=len(values))].mean() for _ in range(replicates)]
    )
    return percentile_interval(means, level=level)


def difference_interval(
    first: np.ndarray,
    second: np.ndarray,
    *,
    seed: int = 0,
    replicates: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of mean(second) - mean(first), of independent samples.

    Args:
        first: `[n]`.
        second: `[m]`.
        level: coverage, in (0, 1).

    Returns:
        The lower and the upper bound; NaN where either has no samples.
    """
    first, second = (np.asarray(values, dtype=float) for values in (first, second))
    if len(first) == 0 or len(second) == 0:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    means = [
        np.array([v[rng.integers(len(v), size=len(v))].mean() for _ in range(replicates)])
        for v in (first, second)
    ]
    return percentile_interval(means[1] - means[0], level=level)


def auroc_interval(
    truth: np.ndarray,
    scores: np.ndarray,
    *,
    seed: int = 0,
    replicates: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the area under the ROC curve, positives and negatives drawn
    apart.

    Args:
        truth: `[n]` bool, with both values.
        scores: `[n]`; ties count one half.
        level: coverage, in (0, 1).
    """
    rng = np.random.default_rng(seed)
    truth = np.asarray(truth, dtype=bool)

    def drawn() -> Iterator[np.ndarray]:
        weights = np.empty(len(truth))
        for _ in range(replicates):
            for side in (truth, ~truth):
                weights[side] = np.bincount(
                    rng.integers(side.sum(), size=side.sum()), minlength=side.sum()
                )
            yield weights

    return percentile_interval(weighted_auroc(truth, scores, drawn()), level=level)


def weighted_auroc(
    truth: np.ndarray, scores: np.ndarray, weights: Iterable[np.ndarray]
) -> np.ndarray:
    """The area under the ROC curve under each of several weightings of the samples: `[weightings]`;
    NaN where one leaves no positive or no negative.

    Args:
        truth: `[n]` bool.
        scores: `[n]`; ties count one half.
        weights: each `[n]`.
    """
    order = np.argsort(scores, kind="stable")
    positive, ordered = np.asarray(truth, dtype=bool)[order], np.asarray(scores)[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))  # of ties
    areas = []
    for weighting in weights:
        weight = weighting[order].astype(float)
        up = np.add.reduceat(weight * positive, starts)
        down = np.add.reduceat(weight * ~positive, starts)
        pairs = up.sum() * down.sum()
        areas.append((up * (down.cumsum() - down / 2)).sum() / pairs if pairs else np.nan)
    return np.array(areas)
