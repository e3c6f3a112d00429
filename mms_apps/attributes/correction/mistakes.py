"""Wrong predictions in groups, by the feature that made them wrong.

What a feature adds to the logit of the wrong class less that of the right one (`explain.py`),
beyond what it adds where a sample of the same label is predicted rightly, is what it did to make a
prediction wrong. The feature that did most names the group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mms_apps.attributes.labels import Samples
from mms_apps.attributes.model import AttributeModel

if TYPE_CHECKING:
    from scipy.sparse import csc_matrix, csr_matrix

LEAST = 3
"""Wrong predictions that make a group."""


@dataclass(frozen=True, eq=False)
class Judged:
    """The predictions of samples whose labels are known.

    truth: place of the label among the model's classes, `[n]`.
    logits: `[n, classes]`.
    activations: `[n, features]`.
    weights: what one unit of a feature's activation adds to each logit, `[classes, features]`.
    """

    truth: np.ndarray
    logits: np.ndarray
    activations: csc_matrix
    weights: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """`[n]` bool"""
        found: np.ndarray = self.logits.argmax(axis=1) == self.truth
        return found

    @property
    def rival(self) -> np.ndarray:
        """Place of the most probable class that is not the label's, `[n]`: of a wrong prediction,
        the predicted one."""
        others = self.logits.copy()
        others[np.arange(len(self.truth)), self.truth] = -np.inf
        found: np.ndarray = others.argmax(axis=1)
        return found

    def right_without(self, features: Sequence[int], share: float = 1.0) -> np.ndarray:
        """Which predictions would be right, `[n]` bool, if features added so much less to the
        logits: a share of what they add is taken away."""
        chosen = list(features)
        taken = self.activations[:, chosen] @ self.weights[:, chosen].T  # [n, classes]
        found: np.ndarray = (self.logits - share * taken).argmax(axis=1) == self.truth
        return found

    def pushes(self) -> csr_matrix:
        """What each feature adds to the rival's logit less to the label's, `[n, features]`."""
        pushed = self.activations.tocsr().copy()
        row = np.repeat(np.arange(len(self.truth)), np.diff(pushed.indptr))
        column = pushed.indices
        pushed.data *= self.weights[self.rival[row], column] - self.weights[self.truth[row], column]
        return pushed


@dataclass(frozen=True, eq=False)
class MistakeGroup:
    """Wrong predictions that one feature made wrong.

    rows: of the samples, `[size]`, those first on which the feature did most.
    pushed: what it added to the wrong class's logit less the right one's, beyond what it adds to
        right predictions of that label, `[size]`.
    mended, broken: predictions of all samples that would become right, or wrong, if the feature
        added nothing.
    """

    feature: int
    rows: np.ndarray
    pushed: np.ndarray
    mended: int
    broken: int

    @property
    def size(self) -> int:
        return len(self.rows)


def mended_and_broken(before: np.ndarray, after: np.ndarray) -> tuple[int, int]:
    """How many predictions become right, and how many wrong, of those that are right before and
    after, `[n]` bool each."""
    return int((after & ~before).sum()), int((before & ~after).sum())


def judge(model: AttributeModel, samples: Samples) -> Judged:
    """Predict samples that have one of the model's classes as their label."""
    from scipy.sparse import csc_matrix

    truth = samples.columns[model.config.attribute].astype(str)
    return Judged(
        truth=np.searchsorted(np.array(model.classes), truth),
        logits=model.estimator.logits(model.inputs(samples.embeddings)).astype(float),
        activations=csc_matrix(model.activations(samples.embeddings).astype(float)),
        weights=feature_weights(model),
    )


def feature_weights(model: AttributeModel) -> np.ndarray:
    """What one unit of each feature's activation adds to each logit: `[classes, features]`."""
    coef: np.ndarray = model.estimator.coef_.astype(float)
    if model.estimator.inputs == "activations":
        return coef
    directions = model.space.dictionary.directions.detach().cpu().numpy().astype(float)
    return coef @ directions.T


def mistake_groups(judged: Judged, *, least: int = LEAST) -> list[MistakeGroup]:
    """The wrong predictions, each in the group of the feature that did most to make it wrong.

    Groups come in the order of what taking the feature away alone would mend, less what it would
    break, then of their size. Wrong predictions that no feature pushed, and groups of fewer than
    `least`, are left out.
    """
    right, pushes = judged.right, judged.pushes()
    usual = np.stack(
        [
            np.asarray(pushes[right & (judged.truth == place)].mean(axis=0)).ravel()
            if (right & (judged.truth == place)).any()
            else np.zeros(pushes.shape[1])
            for place in range(judged.logits.shape[1])
        ]
    )  # [classes, features]
    members: dict[int, list[tuple[int, float]]] = {}
    for row in np.flatnonzero(~right):
        inside = slice(pushes.indptr[row], pushes.indptr[row + 1])
        features, pushed = pushes.indices[inside], pushes.data[inside]
        beyond = np.where(pushed > 0, pushed - usual[judged.truth[row], features], 0.0)
        if len(beyond) and beyond.max() > 0:
            strongest = int(beyond.argmax())
            members.setdefault(int(features[strongest]), []).append(
                (int(row), float(beyond[strongest]))
            )
    groups = []
    for feature, found in members.items():
        if len(found) < least:
            continue
        rows, pushed = (np.array(column) for column in zip(*found, strict=True))
        order = np.argsort(-pushed, kind="stable")
        mended, broken = mended_and_broken(right, judged.right_without([feature]))
        groups.append(MistakeGroup(feature, rows[order], pushed[order], mended, broken))
    return sorted(groups, key=lambda g: (g.broken - g.mended, -g.size, g.feature))
