"""Baselines that fit the probe again: reweighted samples, and a group-balanced last layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from mms_apps.attributes.debias.erasure import independence_weights
from mms_apps.attributes.debias.validation import Outcome, Validation
from mms_apps.attributes.estimators import logistic_weights
from mms_apps.attributes.labels import Samples
from mms_apps.attributes.measures import MIN_GROUP
from mms_apps.attributes.model import AttributeModel, restored

REFITS = 10
"""Balanced draws of a last layer whose weights are averaged (Kirichenko et al. 2023)."""
FOLDS = MIN_GROUP
"""Of the cross-validation; each group that counts has a sample for each."""


def reweighted(
    model: AttributeModel, fitted: Samples, factor: str, strength: float
) -> AttributeModel:
    """The probe fitted again on its own samples, weighted as if attribute and factor were
    independent (Kamiran and Calders 2012).

    Args:
        strength: inverse strength of the L2 penalty.
    """
    truth = fitted.columns[model.config.attribute].astype(str)
    weights = independence_weights(truth, fitted.columns[factor].astype(str))
    return refitted(model, fitted, strength, weights)


def last_layer(
    model: AttributeModel, validation: Validation, strength: float, seed: int
) -> AttributeModel:
    """Deep feature reweighting (Kirichenko et al. 2023, arXiv 2204.02937): the probe fitted on
    samples that it has not seen, as many of each group, the weights averaged over REFITS draws.
    The penalty is L2 as in the other probes, where the paper's is L1. Where all groups that are
    large enough have one class, the probe is left as it is."""
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(validation.groups == name) for name in validation.large]
    truth = validation.samples.columns[model.config.attribute].astype(str)
    if len(np.unique(truth[np.isin(validation.groups, validation.large)])) < 2:
        return model
    smallest = min(len(rows) for rows in groups)
    layers = []
    for _ in range(REFITS):
        rows = np.concatenate([rng.choice(rows, smallest, replace=False) for rows in groups])
        layers.append(refitted(model, validation.samples.take(np.sort(rows)), strength))
    return replaced(
        layers[0],
        np.mean([layer.estimator.coef_ for layer in layers], axis=0),
        np.mean([layer.estimator.intercept_ for layer in layers], axis=0),
    )


def last_layer_outcomes(
    model: AttributeModel, validation: Validation, strengths: Sequence[float], seed: int
) -> list[tuple[float, Outcome]]:
    """What `last_layer` does with each strength on validation samples that it was not fitted on,
    by cross-validation over ids; nothing where all have one id."""
    from sklearn.model_selection import StratifiedGroupKFold

    counted = np.isin(validation.groups, validation.large)
    validation = Validation(validation.samples.take(counted), validation.groups[counted])
    samples = validation.samples
    _, ids = np.unique(samples.ids.astype(str), return_inverse=True)
    if (count := min(FOLDS, len(np.unique(ids)))) < 2:
        return []
    folds = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    split = folds.split(np.zeros(len(ids)), validation.groups, ids)
    parts = [(inside, outside) for inside, outside in split if len(outside)]
    found = []
    for strength in strengths:
        probabilities = np.zeros((len(samples), len(model.classes)))
        for inside, outside in parts:
            part = Validation(samples.take(inside), validation.groups[inside])
            again = last_layer(model, part, strength, seed)
            rows = samples.embeddings[torch.from_numpy(outside)]
            probabilities[outside] = again.predict_proba(rows)
        found.append((strength, validation.outcome(model, probabilities)))
    return found


def refitted(
    model: AttributeModel,
    samples: Samples,
    strength: float,
    weights: np.ndarray | None = None,
) -> AttributeModel:
    """A model of the same inputs (of a sparse probe, the same features), fitted on other samples.

    Args:
        strength: inverse strength of the L2 penalty.
        weights: of the samples, `[n]` of mean 1; None weighs all alike.
    """
    inputs = model.inputs(samples.embeddings)  # [n, inputs]
    sparse = model.config.method == "sparse_probe"
    used = model.estimator.coef_.any(axis=0) if sparse else np.ones(inputs.shape[1], dtype=bool)
    truth = samples.columns[model.config.attribute].astype(str)
    few, constant = logistic_weights(inputs[:, used], truth, strength, weights, model.classes)
    coef = np.zeros((len(model.classes), inputs.shape[1]))
    coef[:, used] = few
    method = "linear_probe" if model.config.method == "zero_shot" else model.config.method
    config = replace(
        model.config, method=method, samples=len(samples), prompts=None, strength=strength
    )
    return replaced(AttributeModel(config, model.estimator, model.space), coef, constant)


def replaced(model: AttributeModel, coef: np.ndarray, intercept: np.ndarray) -> AttributeModel:
    """The model with other weights `[classes, inputs]` and intercepts `[classes]`."""
    return AttributeModel(model.config, restored(model.config, coef, intercept), model.space)
