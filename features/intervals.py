"""Bootstrap intervals."""

from __future__ import annotations

import numpy as np


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
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
