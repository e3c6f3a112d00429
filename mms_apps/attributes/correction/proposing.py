"""An edit for a group of wrong predictions, chosen on the half on which the group was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from mms_apps.attributes.correction.mistakes import Judged, MistakeGroup, mended_and_broken
from mms_apps.attributes.edits import NO_EDIT, EmbeddingEdit, RemoveFeatures
from mms_apps.attributes.estimators import LinearProbe
from mms_apps.attributes.labels import Samples
from mms_apps.attributes.measures import MIN_GROUP
from mms_apps.attributes.model import AttributeModel, Method, restored

if TYPE_CHECKING:
    from torch import Tensor

SHARES = (1.0, 0.75, 0.5, 0.25)
"""How much of what the features add may be taken away."""
COST = 3
"""Mended predictions that make up for a broken one."""
GAIN = 3
"""What one more feature must add to the mended predictions less COST times the broken ones."""
MOST = 8
"""Features of an edit."""
FOLDS = 5
"""In which a model that is fitted again is tried on what it was not fitted on."""


@dataclass(frozen=True, eq=False)
class Corrected:
    """A model behind an edit of the embeddings that it reads."""

    model: AttributeModel
    edit: EmbeddingEdit = NO_EDIT

    def right(self, samples: Samples) -> np.ndarray:
        """Which predictions are right, `[n]` bool."""
        truth = samples.columns[self.model.config.attribute].astype(str)
        found: np.ndarray = self.model.predict(samples.embeddings, self.edit) == truth
        return found


@dataclass(frozen=True)
class Proposal:
    """What to do about the features that made predictions wrong.

    share: of what they add that is taken away, in (0, 1]; 1 removes them.
    refitted: whether the model is then fitted again on what is left.
    mended, broken: predictions on the half on which it was chosen; of a model that is fitted again,
        on folds that it was not fitted on.
    """

    features: tuple[int, ...]
    share: float
    refitted: bool
    mended: int
    broken: int

    @property
    def score(self) -> int:
        return self.mended - COST * self.broken

    def in_words(self) -> str:
        """Such as "take 75% of features 19 and 199 away"."""
        *most, last = map(str, self.features)
        listed = f"features {', '.join(most)} and {last}" if most else f"feature {last}"
        if self.refitted:
            return f"remove {listed} and fit the model again on the kept ones"
        if self.share == 1:
            return f"remove {listed}"
        return f"damp {listed}: take {self.share:.0%} of what they add away"


def propose(
    model: AttributeModel,
    half: Samples,
    judged: Judged,
    group: MistakeGroup,
    groups: Sequence[MistakeGroup],
    *,
    seed: int = 0,
) -> tuple[Proposal, Corrected] | None:
    """The edit that mends most, less COST times what it breaks; None where none mends more.

    For each of SHARES features are added to the group's own, one by one, from those that made other
    predictions wrong, as long as each adds GAIN. Only where weakening does not help is the model
    fitted again without the group's own feature, for that changes every prediction.

    Args:
        half: on which the groups were found, judged by the model.
        groups: all of them.
        seed: of the folds.
    """
    pool = [other.feature for other in groups]
    tried = [grown(judged, group.feature, pool, share) for share in SHARES]
    weakened = max(tried, key=lambda proposal: proposal.score)
    if weakened.score > 0:
        return weakened, corrected(model, weakened)
    again = _refitted(model, half, judged, (group.feature,), seed)
    return again if again is not None and again[0].score > 0 else None


def grown(judged: Judged, first: int, pool: Sequence[int], share: float) -> Proposal:
    """Features to weaken by a share: the first one, and those of the pool that help."""
    right = judged.right

    def tried(features: tuple[int, ...]) -> Proposal:
        mended, broken = mended_and_broken(right, judged.right_without(features, share))
        return Proposal(features, share, False, mended, broken)

    best = tried((first,))
    while len(best.features) < MOST:
        more = [tried((*best.features, other)) for other in pool if other not in best.features]
        following = max(more, key=lambda proposal: proposal.score, default=best)
        if following.score < best.score + GAIN:
            break
        best = following
    return best


def corrected(model: AttributeModel, proposal: Proposal) -> Corrected:
    """The model behind the proposal's edit."""
    return Corrected(model, _weakening(model, proposal.features, proposal.share))


def _weakening(model: AttributeModel, features: Sequence[int], share: float) -> RemoveFeatures:
    """The edit that takes a share of what features add away."""
    return RemoveFeatures(
        model.space, torch.tensor(features), model.config.modality, "subtract", share=share
    )


def _refitted(
    model: AttributeModel, half: Samples, judged: Judged, features: tuple[int, ...], seed: int
) -> tuple[Proposal, Corrected] | None:
    """The model fitted again on the half without features; None where a class has too few samples
    for the folds."""
    truth = half.columns[model.config.attribute].astype(str)
    counts = [int((truth == name).sum()) for name in model.classes]
    if min(counts) < max(FOLDS, MIN_GROUP):
        return None
    from sklearn.model_selection import StratifiedGroupKFold

    edit = _weakening(model, features, 1.0)
    edited = edit.apply(half.embeddings)
    after = np.zeros(len(half), dtype=bool)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for fit, rest in folds.split(truth, truth, half.ids.astype(str)):
        if len(np.unique(truth[fit])) < len(model.classes):
            return None
        fitted = fit_again(model, edited[fit], truth[fit], features, seed)
        after[rest] = fitted.predictions(edited[rest]) == truth[rest]
    mended, broken = mended_and_broken(judged.right, after)
    fitted = fit_again(model, edited, truth, features, seed)
    return Proposal(features, 1.0, True, mended, broken), Corrected(fitted, edit)


def fit_again(
    model: AttributeModel, embeddings: Tensor, truth: np.ndarray, features: Sequence[int], seed: int
) -> AttributeModel:
    """The model's head fitted on edited embeddings `[n, dim]` of known labels `[n]`: on the
    embeddings, or of a sparse probe on the activations of those of its features that are kept."""
    probe = LinearProbe(strength=model.config.strength, random_state=seed)
    inputs = model.inputs(embeddings)
    if model.estimator.inputs == "activations":
        kept = np.setdiff1d(np.flatnonzero(model.estimator.coef_.any(axis=0)), features)
        coef = np.zeros_like(model.estimator.coef_)
        if len(kept):
            coef[:, kept] = probe.fit(inputs[:, kept], truth).coef_
            intercept = probe.intercept_
        else:
            intercept = model.estimator.intercept_
    else:
        probe.fit(inputs, truth)
        coef, intercept = probe.coef_, probe.intercept_
    return with_head(model, coef, intercept)


def with_head(model: AttributeModel, coef: np.ndarray, intercept: np.ndarray) -> AttributeModel:
    """The model with other weights `[classes, inputs]` and intercepts `[classes]`."""
    over_features = model.estimator.inputs == "activations"
    method: Method = "sparse_probe" if over_features else "linear_probe"
    config = replace(model.config, method=method, prompts=None)
    return AttributeModel(config, restored(config, coef, intercept), model.space)
