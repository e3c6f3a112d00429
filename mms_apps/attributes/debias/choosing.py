"""Which features to take out of the embeddings, how many and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from features.analysis.concepts import feature_auroc
from features.errors import UserError
from mms_apps.attributes.debias.validation import Outcome, Validation, best
from mms_apps.attributes.edits import (
    NO_EDIT,
    WAYS,
    EmbeddingEdit,
    How,
    RemoveFeatures,
    reading_directions,
)
from mms_apps.attributes.labels import Samples
from mms_apps.attributes.model import AttributeModel

COUNTS = (1, 2, 3, 5, 8, 12, 20, 30)
"""How many features to take out, of which validation chooses."""


@dataclass(frozen=True)
class Candidate:
    """What one way of taking out so many features does on the validation split."""

    how: How
    count: int
    outcome: Outcome


@dataclass(frozen=True)
class ChosenFeatures:
    """The features to take out, and how."""

    how: How
    features: tuple[int, ...]
    association: tuple[float, ...]
    """Of each of the features with the factor, in [-0.5, 0.5] (`association`)."""
    before: Outcome
    """Without an edit."""
    candidates: tuple[Candidate, ...]


def association(activations: np.ndarray, factor: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """How each feature goes with a factor among samples that are alike otherwise: `[features]`.

    Within each stratum, the AUROC of the activation for each of the factor's values against the
    rest, less one half; averaged over the strata by their size; of the values, the one where it is
    largest in size. In [-0.5, 0.5]; 0 where no stratum has two values. Of a feature whose
    activations have both signs, the half that goes with the factor more.

    Args:
        activations: `[n, features]`.
        factor: `[n]`.
        strata: `[n]`, the attribute that the factor must not stand for.
    """
    from scipy.sparse import csr_matrix

    values = np.unique(factor)
    signs = (1, -1) if (activations < 0).any() else (1,)
    total = np.zeros((len(signs), len(values), activations.shape[1]))
    weight = np.zeros((len(values), 1))
    for stratum in np.unique(strata):
        inside = strata == stratum
        labels = factor[inside][:, None] == values  # [inside, values]
        known = labels.any(axis=0) & ~labels.all(axis=0)
        for place, sign in enumerate(signs):
            active = csr_matrix(np.maximum(sign * activations[inside], 0))
            auroc = feature_auroc(active, labels[:, known]) - 0.5
            total[place, known] += inside.sum() * sign * auroc
        weight[known] += inside.sum()
    mean = (total / np.maximum(weight, 1)).reshape(-1, activations.shape[1])
    return mean[np.abs(mean).argmax(axis=0), np.arange(mean.shape[1])]


def choose_edit(
    model: AttributeModel,
    validation: Samples,
    factor: str,
    groups: np.ndarray,
    *,
    counts: Sequence[int] = COUNTS,
    ways: Sequence[How] = WAYS,
) -> tuple[ChosenFeatures, RemoveFeatures]:
    """Choose which features to take out of the embeddings that a model reads, by the rule of
    `validation.best`: where nothing helps, nothing is taken out.

    Args:
        validation: samples that the model was not fitted on, with the model's attribute and the
            factor.
        groups: `[n]`, of which none should do worse.

    Raises:
        UserError: no two groups are large enough, or the factor has one value.
    """
    truth = validation.columns[model.config.attribute].astype(str)
    values = validation.columns[factor].astype(str)
    if len(np.unique(values)) < 2:
        raise UserError(
            f"{factor}: the validation samples have the one value {values[0]}; give pairs in which "
            "it varies"
        )
    split = Validation(validation, groups)
    split.require_groups(factor)
    found = association(model.activations(validation.embeddings), values, truth)
    order = np.argsort(-np.abs(found), kind="stable")
    order = order[np.abs(found[order]) > 0]
    counts = sorted(count for count in counts if count <= len(order))
    if not counts:
        raise UserError(f"{factor}: no feature goes with it; take another space or factor")
    top = torch.from_numpy(order[: max(counts)].copy())
    space, modality = model.space, model.config.modality
    readings = reading_directions(space, validation.embeddings, top, modality)

    def edit_of(how: How, count: int) -> RemoveFeatures:
        return RemoveFeatures(space, top[:count], modality, how, readings[:count])

    def outcome(edit: EmbeddingEdit) -> Outcome:
        return split.outcome(model, model.predict_proba(validation.embeddings, edit))

    before = outcome(NO_EDIT)
    candidates = [
        Candidate(how, count, outcome(edit_of(how, count))) for count in counts for how in ways
    ]
    how, count = best(before, [((c.how, c.count), c.outcome) for c in candidates]) or (
        "subtract",
        0,
    )
    chosen = order[:count]
    choice = ChosenFeatures(
        how=how,
        features=tuple(int(f) for f in chosen),
        association=tuple(float(found[f]) for f in chosen),
        before=before,
        candidates=tuple(candidates),
    )
    return choice, edit_of(how, count)
