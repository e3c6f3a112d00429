"""Bootstrap intervals."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import roc_auc_score

from features.bootstrap import (
    auroc_interval,
    bootstrap_interval,
    difference_interval,
    mean_estimate,
    share_difference_interval,
    weighted_auroc,
)


def test_weighted_auroc_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(80) < 0.3
    scores = (rng.normal(size=80) + truth).round(1)  # with ties
    weights = rng.exponential(size=(5, 80))
    found = weighted_auroc(truth, scores, weights)
    expected = [roc_auc_score(truth, scores, sample_weight=w) for w in weights]
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("positives", [20, 60])
@pytest.mark.parametrize("auroc", [0.6, 0.9, 0.97])
def test_auroc_intervals_hold_the_truth(positives: int, auroc: float) -> None:
    rng = np.random.default_rng(0)
    truth = np.arange(120) < positives
    distance = 2**0.5 * NormalDist().inv_cdf(auroc)
    bounds = np.array(
        [
            auroc_interval(truth, rng.normal(size=120) + distance * truth, seed=n, replicates=200)
            for n in range(150)
        ]
    )
    assert ((bounds[:, 0] <= auroc) & (auroc <= bounds[:, 1])).mean() >= 0.93


def test_perfect_scores_of_few_samples_are_not_certain() -> None:
    few, many = np.arange(40) < 20, np.arange(600) < 300
    low, high = auroc_interval(few, few.astype(float))
    assert 0.8 < low < 0.95 and high == 1
    assert 0.98 < auroc_interval(many, many.astype(float))[0] < 1
    assert auroc_interval(few, -few.astype(float))[0] == 0


@pytest.mark.parametrize("hit", [False, True])
@pytest.mark.parametrize("samples", [1, 10, 200])
def test_hits_that_are_all_alike_are_not_certain(hit: bool, samples: int) -> None:
    found = mean_estimate(np.full(samples, hit))
    bound = 0.025 ** (1 / samples)
    expected = (1.0, bound, 1.0) if hit else (0.0, 0.0, 1 - bound)
    assert (found.value, found.low, found.high) == pytest.approx(expected)


@pytest.mark.parametrize("samples", [5, 10, 20, 50])
def test_the_interval_of_hits_holds_every_share_at_least_95_times_in_100(samples: int) -> None:
    found = [mean_estimate(np.arange(samples) < hits) for hits in range(samples + 1)]
    for share in np.linspace(0.01, 0.99, 99):
        covering = [one.low <= share <= one.high for one in found]
        assert binom.pmf(np.arange(samples + 1), samples, share) @ covering >= 0.95
    for bounds in ([one.low for one in found], [one.high for one in found]):
        assert (np.diff(bounds) >= 0).all()  # one hit more is no worse


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_other_values_that_are_all_alike_are_not_taken_for_hits(value: float) -> None:
    found = mean_estimate(np.full(10, value))
    assert (found.value, found.low, found.high) == (value, value, value)


@pytest.mark.parametrize("samples", [2, 3, 5, 9])
def test_intervals_of_few_values_hold_the_truth(samples: int) -> None:
    rng = np.random.default_rng(0)
    means, differences = [], []
    for seed in range(300):
        first, second = rng.normal(size=samples), rng.normal(size=2 * samples)
        low, high = bootstrap_interval(first, seed=seed)
        means.append(low <= 0 <= high)
        low, high = difference_interval(first, second, seed=seed)
        differences.append(low <= 0 <= high)
    assert np.mean(means) >= 0.92 and np.mean(differences) >= 0.92


def test_one_value_says_nothing_of_how_others_vary() -> None:
    one, several = np.array([0.3]), np.array([0.5, 0.6, 0.7])
    found = mean_estimate(one)
    assert found.value == 0.3 and np.isnan([found.low, found.high]).all()
    for first, second in ((one, several), (several, one), (one, one)):
        assert np.isnan(difference_interval(first, second)).all()


@pytest.mark.parametrize(
    ("first", "second", "differs"),
    [
        ([0], [1], False),
        ([0, 0], [1, 1], False),
        ([0] * 4, [1] * 4, True),
        ([0] * 10, [1] * 10, True),
        ([0, 1] * 10, [0, 1] * 9 + [1, 1], False),
        ([0] * 300, [0] * 290 + [1] * 10, True),
    ],
)
def test_shares_of_few_samples_differ_only_where_they_surely_do(
    first: list[int], second: list[int], differs: bool
) -> None:
    low, high = share_difference_interval(np.array(first), np.array(second))
    assert low <= np.mean(second) - np.mean(first) <= high
    assert (low > 0) is differs
    other_low, other_high = share_difference_interval(np.array(second), np.array(first))
    assert (other_low, other_high) == pytest.approx((-high, -low))


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.05, 0.1), (0.9, 0.3)])
def test_intervals_of_differences_of_shares_hold_them(shares: tuple[float, float]) -> None:
    rng = np.random.default_rng(0)
    held = []
    for _ in range(300):
        low, high = share_difference_interval(rng.random(8) < shares[0], rng.random(20) < shares[1])
        held.append(low <= shares[1] - shares[0] <= high)
    assert np.mean(held) >= 0.95


def test_the_means_interval_covers_it_about_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        low, high = bootstrap_interval(rng.normal(size=60), seed=seed, replicates=300)
        covered += low <= 0 <= high
    assert 180 <= covered <= 198
