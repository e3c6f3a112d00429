"""Figures over several trainings: intervals that hold how trainings vary."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest, t, ttest_ind

from features.analysis.seeds import (
    SeedFigure,
    difference_over_seeds,
    mean_figure,
    over_seeds,
)
from features.bootstrap import share_estimate


def figures(values: list[float], error: float = 0.0) -> list[SeedFigure]:
    return [SeedFigure(value, error) for value in values]


def test_the_interval_is_students() -> None:
    values = [0.3, 0.5, 0.46]
    found = over_seeds(figures(values))
    low, high = t.interval(0.95, 2, np.mean(values), np.std(values, ddof=1) / 3**0.5)
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(values), low, high))


def test_the_difference_is_welchs() -> None:
    first, second = [0.3, 0.5, 0.46], [0.6, 0.61, 0.59, 0.64]
    found = difference_over_seeds(figures(first), figures(second))
    expected = ttest_ind(second, first, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.value == pytest.approx(np.mean(second) - np.mean(first))


def test_trainings_that_happen_to_agree_feign_no_certainty() -> None:
    found = over_seeds(figures([0.4, 0.4, 0.4], error=0.03))
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.03 / 3**0.5, rel=1e-3)
    apart = difference_over_seeds(figures([0.4] * 3, 0.03), figures([0.41] * 3, 0.03))
    assert apart.low < 0 < apart.high
    assert difference_over_seeds(figures([0.4] * 2), figures([0.5] * 2)).low == pytest.approx(0.1)


def test_one_training_has_no_interval_and_undefined_ones_are_left_out() -> None:
    assert math.isnan(over_seeds(figures([0.4])).value)
    assert math.isnan(difference_over_seeds(figures([0.4]), figures([0.4, 0.5])).low)
    assert over_seeds(figures([0.4, math.nan, 0.6])).value == pytest.approx(0.5)
    assert math.isnan(mean_figure(np.zeros(0)).value)


def test_intervals_over_three_seeds_hold_the_truth() -> None:
    rng = np.random.default_rng(0)
    covered = differ = 0
    for _ in range(400):
        first, second = rng.normal(0.5, 0.05, (2, 3)).tolist()
        found = over_seeds(figures(first, 0.01))
        covered += found.low <= 0.5 <= found.high
        apart = difference_over_seeds(figures(first, 0.01), figures(second, 0.01))
        differ += apart.low > 0 or apart.high < 0
    assert covered / 400 > 0.92
    assert differ / 400 < 0.08


@pytest.mark.parametrize(("found", "n"), [(0, 12), (12, 12), (5, 12), (1, 200)])
def test_shares_have_exact_intervals(found: int, n: int) -> None:
    estimate = share_estimate(np.arange(n) < found)
    exact = binomtest(found, n).proportion_ci(0.95, "exact")
    assert (estimate.low, estimate.high) == pytest.approx((exact.low, exact.high))
    assert estimate.low < estimate.high and estimate.value == found / n
    assert math.isnan(share_estimate(np.zeros(0, bool)).value)
