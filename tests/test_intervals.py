"""Bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from features.bootstrap import auroc_interval, bootstrap_interval


def test_auroc_interval_is_the_literal_bootstraps() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(80) < 0.3
    scores = (rng.normal(size=80) + truth).round(1)  # with ties
    low, high = auroc_interval(truth, scores, replicates=2000)
    groups = [np.flatnonzero(truth), np.flatnonzero(~truth)]
    literal = []
    for _ in range(2000):
        drawn = np.concatenate([rng.choice(group, len(group)) for group in groups])
        literal.append(roc_auc_score(truth[drawn], scores[drawn]))
    assert (low, high) == pytest.approx(tuple(np.quantile(literal, [0.025, 0.975])), abs=0.02)
    assert auroc_interval(truth, truth.astype(float)) == (1, 1)


def test_the_means_interval_covers_it_about_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        low, high = bootstrap_interval(rng.normal(size=60), seed=seed, replicates=300)
        covered += low <= 0 <= high
    assert 180 <= covered <= 198
