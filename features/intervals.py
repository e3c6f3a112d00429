"""Bootstrap intervals."""

from __future__ import annotations

import numpy as np


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
    order = np.argsort(scores, kind="stable")
    positive, ordered = np.asarray(truth, dtype=bool)[order], np.asarray(scores)[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))  # of ties
    weights = np.empty(len(order))
    found = np.empty(replicates)
    for replicate in range(replicates):
        for group in (positive, ~positive):
            drawn = rng.integers(group.sum(), size=group.sum())
            weights[group] = np.bincount(drawn, minlength=group.sum())
        up = np.add.reduceat(weights * positive, starts)
        down = np.add.reduceat(weights * ~positive, starts)
        found[replicate] = (up * (down.cumsum() - down / 2)).sum() / (up.sum() * down.sum())
    return percentile_interval(found, level=level)
