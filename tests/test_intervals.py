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
    mean_estimate,
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


def test_the_means_interval_covers_it_about_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        low, high = bootstrap_interval(rng.normal(size=60), seed=seed, replicates=300)
        covered += low <= 0 <= high
    assert 180 <= covered <= 198
