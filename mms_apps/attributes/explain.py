"""Which features made a prediction.

A logit w.x + b of an embedding x = mean + sum_i a_i d_i + error is the sum of a_i (w.d_i) over the
features (activation a_i, direction d_i), of the constant w.mean + b, and of w.error, what the
dictionary does not explain. Over features (`sparse_probe`) there is no error.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mms_apps.attributes.model import AttributeModel

if TYPE_CHECKING:
    from mms_apps.attributes.edits import EmbeddingEdit


@dataclass(frozen=True)
class Contribution:
    """What one active feature adds to a logit."""

    feature: int
    name: str
    modality_class: str
    """By the relative rule."""
    mds: float
    activation: float
    contribution: float


@dataclass(frozen=True)
class Explanation:
    """One sample's logit of one class (of two classes, its log-odds), taken apart.

    contributions: of the active features, the largest in size first.
    constant: what every sample gets.
    unexplained: the dictionary's error along the logit's weights; 0 over features.
    logit: as the estimator gives it.
    """

    label: str
    probability: float
    logit: float
    constant: float
    unexplained: float
    contributions: tuple[Contribution, ...]

    @property
    def total(self) -> float:
        """The sum of all parts, which is the logit."""
        return self.constant + self.unexplained + sum(c.contribution for c in self.contributions)

    def without(self, classes: Collection[str]) -> float:
        """The logit if the features of these modality classes were taken away."""
        return self.total - sum(
            c.contribution for c in self.contributions if c.modality_class in classes
        )


def feature_contributions(
    model: AttributeModel, embeddings: Tensor, label: str
) -> tuple[np.ndarray, float, np.ndarray]:
    """What each feature adds to a class's logit of each embedding `[n, dim]`, as
    `AttributeModel.read` gives them.

    Returns:
        Contributions `[n, features]`, the constant, and what is unexplained `[n]`.

    Raises:
        ValueError: the model has no such class.
    """
    weights, intercept = model.estimator.logit_of(label)
    activations = model.activations(embeddings).astype(float)  # [n, features]
    if model.estimator.inputs == "activations":
        return activations * weights, intercept, np.zeros(len(embeddings))
    dictionary, modality = model.space.dictionary, model.config.modality
    directions = dictionary.directions.detach().cpu().numpy().astype(float)  # [features, dim]
    mean = dictionary.mean(modality).cpu().numpy().astype(float)  # [dim]
    error = embeddings.cpu().numpy().astype(float) - activations @ directions - mean  # [n, dim]
    contributions = activations * (directions @ weights)
    return contributions, float(mean @ weights + intercept), error @ weights


@torch.no_grad()
def explain(
    model: AttributeModel,
    embeddings: Tensor | np.ndarray,
    labels: list[str] | None = None,
    edit: EmbeddingEdit | None = None,
) -> list[Explanation]:
    """Explain the predictions of embeddings `[n, dim]` of any length.

    Args:
        labels: whose logit to explain, one a sample; None takes the predicted classes.
        edit: of the embeddings of unit length, before the model sees them.

    Raises:
        UserError: as `AttributeModel.read`.
    """
    embeddings = model.read(embeddings, edit)
    probabilities = model.probabilities(embeddings)
    labels = labels or [model.classes[k] for k in probabilities.argmax(axis=1)]
    inputs = model.inputs(embeddings)
    activations = model.activations(embeddings)
    table = model.space.features.select(["name", "class", "mds"]).to_pylist()
    found = []
    for row, label in enumerate(labels):
        parts, constant, unexplained = feature_contributions(
            model, embeddings[row : row + 1], label
        )
        weights, intercept = model.estimator.logit_of(label)
        active = np.flatnonzero(parts[0])
        order = active[np.argsort(-np.abs(parts[0][active]), kind="stable")]
        found.append(
            Explanation(
                label=label,
                probability=float(probabilities[row, model.classes.index(label)]),
                logit=float(inputs[row].astype(float) @ weights + intercept),
                constant=constant,
                unexplained=float(unexplained[0]),
                contributions=tuple(
                    Contribution(
                        feature=int(i),
                        name=table[i]["name"] or f"feature {i}",
                        modality_class=table[i]["class"],
                        mds=table[i]["mds"],
                        activation=float(activations[row, i]),
                        contribution=float(parts[0][i]),
                    )
                    for i in order
                ),
            )
        )
    return found


def logit_scores(
    model: AttributeModel, label: str, edit: EmbeddingEdit | None = None
) -> Callable[[Tensor], Tensor]:
    """A class's logit (of two classes, its log-odds) as a function of embeddings `[n, dim]` of any
    length: `[n]`.

    Args:
        edit: of the embeddings of unit length, before the model sees them; most edits let no
            gradient through.
    """
    weights, intercept = model.estimator.logit_of(label)
    along = torch.from_numpy(np.asarray(weights)).float()  # [inputs]

    def logits(embeddings: Tensor) -> Tensor:
        embeddings = F.normalize(embeddings, dim=1)
        if edit is not None:
            embeddings = edit.apply(embeddings)
        if model.estimator.inputs == "activations":
            embeddings = model.space.encode(embeddings, model.config.modality)  # [n, features]
        return embeddings @ along.to(embeddings) + intercept

    return logits


def probabilities_without(
    model: AttributeModel, embeddings: Tensor, modality_classes: Collection[str]
) -> np.ndarray:
    """Probabilities `[n, classes]` of embeddings `[n, dim]` of any length, if the features of these
    modality classes added nothing."""
    from scipy.special import softmax

    estimator, embeddings = model.estimator, model.read(embeddings)
    activations = model.activations(embeddings).astype(float)  # [n, features]
    off = np.isin(model.space.features["class"].to_numpy(), list(modality_classes))
    weights = estimator.coef_
    if estimator.inputs == "embeddings":
        weights = weights @ model.space.dictionary.directions.detach().cpu().numpy().T
    logits = estimator.logits(model.inputs(embeddings))  # [n, classes]
    return softmax(logits - (activations * off) @ weights.T, axis=1)
