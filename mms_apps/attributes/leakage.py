"""What embeddings give away of a factor, by the accuracy of probes for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from features.bootstrap import NOT_KNOWN, Estimate
from mms_apps.attributes.labels import Samples, cells
from mms_apps.attributes.measures import (
    REPLICATES,
    bootstrap_weights,
    estimate_share,
    units_of,
    weighted_mean,
)

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

MAX_ITERATIONS = 2000
FOLDS = 5


def _probe() -> Pipeline:
    """A logistic regression on standardised embeddings."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=MAX_ITERATIONS))


def group_leakage(
    samples: Samples, groups: np.ndarray, *, seed: int = 0, replicates: int = REPLICATES
) -> tuple[Estimate, float]:
    """Accuracy of a cross-validated probe for the groups on embeddings, and the share of the
    largest group. Groups whose samples have one id are left out, since no probe could be fitted on
    some and tried on others; undefined where fewer than two are left."""
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

    units = {name: units_of(samples.ids, groups == name) for name in np.unique(groups)}
    names = [name for name, count in units.items() if count >= 2]
    if len(names) < 2:
        return NOT_KNOWN, float("nan")
    kept = np.isin(groups, names)
    left = groups[kept]
    names_of_ids, ids = np.unique(samples.ids[kept].astype(str), return_inverse=True)
    count = min(FOLDS, *(units[name] for name in names))
    folds = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    x = samples.embeddings.numpy()[kept]
    hits = cross_val_predict(_probe(), x, left, groups=ids, cv=folds) == left
    weights = bootstrap_weights(len(hits), replicates, seed, samples.ids[kept])
    accuracy = estimate_share(weighted_mean(hits, weights), len(names_of_ids))
    return accuracy, float(np.unique(left, return_counts=True)[1].max() / len(left))


def leakage_hits(
    train: Tensor, train_factor: np.ndarray, strata: np.ndarray, test: Tensor, factor: np.ndarray
) -> np.ndarray:
    """Whether a probe finds the factor in each test embedding: `[n]` bool.

    The cells of stratum and factor weigh the same in training, so that an attribute that goes with
    the factor there does not stand in for it.

    Args:
        train: embeddings `[m, dim]`, with their factor and stratum, `[m]` each.
        test: embeddings `[n, dim]`, with their factor, `[n]`.
    """
    names, place, sizes = np.unique(
        cells(strata, train_factor), return_inverse=True, return_counts=True
    )
    weight = len(place) / (len(names) * sizes[place])
    probe = _probe()
    probe.fit(train.numpy(), train_factor, logisticregression__sample_weight=weight)
    return probe.predict(test.numpy()) == factor
