"""Classifiers that are linear in embeddings or in features, compatible with scikit-learn."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.feature_selection import RFE, SelectKBest, f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from features.embedded.evaluate import class_vectors
from features.encoders.encoder import Encoder
from features.modality import Modality
from features.space.space import FeatureSpace

STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Inverse strengths of the L2 penalty among which cross-validation chooses, the inputs being scaled
to a mean variance of 1."""
SCREENED = 1024
"""Features, the best by F test, among which recursive elimination searches."""
ELIMINATED = 0.2
"""Share of all features that a step of the elimination drops at most."""
MAX_ITERATIONS = 2000
NEVER = -1e3
"""Intercept of a class that a probe has not seen."""
DEFAULT_SCALE = 100.0
"""Scale of the logits where an encoder tells none: CLIP's own bound (Radford et al. 2021)."""
TEMPLATES = ("a picture of {}", "an image of {}", "a photo of {}")
Inputs = Literal["embeddings", "activations"]


class LinearClassifier(ClassifierMixin, BaseEstimator):
    """Softmax over linear logits.

    Attributes:
        classes_: `[classes]`, sorted.
        coef_: `[classes, inputs]`, of mean zero over the classes.
        intercept_: `[classes]`.
    """

    inputs: ClassVar[Inputs]
    """What it is fitted on: unit embeddings `[n, dim]`, or activations `[n, features]`."""
    classes_: np.ndarray
    coef_: np.ndarray
    intercept_: np.ndarray

    @abstractmethod
    def fit(self, X: np.ndarray, y: np.ndarray) -> LinearClassifier:
        """Learn from inputs `[n, inputs]` and labels `[n]`."""

    def logits(self, X: np.ndarray) -> np.ndarray:
        """`[n, classes]`; softmax gives the probabilities."""
        check_is_fitted(self, "coef_")
        X = validate_data(self, X, reset=False)
        return X @ self.coef_.T + self.intercept_

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """The logits `[n, classes]`; of two classes the log-odds of the second, `[n]`."""
        logits = self.logits(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """`[n, classes]`"""
        from scipy.special import softmax

        return softmax(self.logits(X), axis=1)

    def predict(self, X: np.ndarray) -> np.ndarray:
        """The most probable classes `[n]`."""
        places = self.logits(X).argmax(axis=1)
        return self.classes_[places]

    def logit_of(self, label: str) -> tuple[np.ndarray, float]:
        """Weights `[inputs]` and intercept of a class's logit; of two classes, of its log-odds.

        Raises:
            ValueError: there is no such class.
        """
        check_is_fitted(self, "coef_")
        found = np.flatnonzero(self.classes_ == label)
        if len(found) == 0:
            raise ValueError(f"{label}: no class; classes are {', '.join(map(str, self.classes_))}")
        row = int(found[0])
        if len(self.classes_) == 2:
            weights = self.coef_[row] - self.coef_[1 - row]
            return weights, float(self.intercept_[row] - self.intercept_[1 - row])
        return self.coef_[row], float(self.intercept_[row])

    def _take(self, probe: LogisticRegression, scale: float) -> None:
        """Take the weights of a logistic regression that was fitted on inputs / `scale`."""
        self.classes_ = probe.classes_
        self.coef_, self.intercept_ = _symmetric(probe.coef_ / scale, probe.intercept_)

    def _checked(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        X, y = validate_data(self, X, y)
        check_classification_targets(y)
        if len(np.unique(y)) < 2:
            raise ValueError(f"y has the one class {y[0]}; a probe needs at least two")
        return X, y


class ZeroShot(LinearClassifier):
    """Cosine similarity to one vector a class (Radford et al. 2021); nothing is learnt.

    Args:
        classes: labels, in any order.
        vectors: of each of them, `[classes, dim]`, of unit length.
        scale: of the cosines, before the softmax.
    """

    inputs = "embeddings"

    def __init__(
        self, classes: Sequence[str], vectors: np.ndarray, scale: float = DEFAULT_SCALE
    ) -> None:
        self.classes = classes
        self.vectors = vectors
        self.scale = scale

    def fit(self, X: np.ndarray | None = None, y: np.ndarray | None = None) -> ZeroShot:
        """Nothing is learnt, neither from X nor from y.

        Raises:
            ValueError: there is not one vector a class, a class is given twice, or X has embeddings
                of another size.
        """
        vectors = check_array(self.vectors)
        self.classes_, order = np.unique(self.classes, return_index=True)
        if not len(self.classes_) == len(self.classes) == len(vectors):
            raise ValueError(
                f"{len(vectors)} vectors for {len(self.classes)} classes, {len(self.classes_)} of "
                "them different; give one vector a class"
            )
        vectors = vectors[order]
        self.n_features_in_ = vectors.shape[1]
        if X is not None:
            validate_data(self, X, reset=False)
        self.coef_ = self.scale * (vectors - vectors.mean(axis=0))
        self.intercept_ = np.zeros(len(vectors))
        return self


class LinearProbe(LinearClassifier):
    """Logistic regression on embeddings.

    Args:
        strength: inverse strength of the L2 penalty; None chooses among STRENGTHS by
            cross-validation.
        folds: of the cross-validation, at most as many as the rarest class has samples.
        random_state: of the folds.
    """

    inputs = "embeddings"

    def __init__(
        self, strength: float | None = None, folds: int = 5, random_state: int = 0
    ) -> None:
        self.strength = strength
        self.folds = folds
        self.random_state = random_state

    def fit(self, X: np.ndarray, y: np.ndarray) -> LinearProbe:
        X, y = self._checked(X, y)
        scale = common_scale(X)
        probe = LogisticRegression(max_iter=MAX_ITERATIONS)
        if self.strength is None:
            found = _search(probe, {"C": STRENGTHS}, X / scale, y, self.folds, self.random_state)
            self.strength_, probe = found.best_params_["C"], found.best_estimator_
        else:
            self.strength_ = self.strength
            probe = probe.set_params(C=self.strength).fit(X / scale, y)
        self._take(probe, scale)
        return self


class SparseProbe(LinearClassifier):
    """Logistic regression on the activations of a few features.

    The features are found by recursive elimination (Guyon et al. 2002): fit, drop those with the
    smallest weights, fit again. Cross-validation repeats the whole of it in every fold.

    Args:
        max_features: how many features may have a weight.
        strength: inverse strength of the L2 penalty; None chooses among STRENGTHS by
            cross-validation.
        folds: of the cross-validation, at most as many as the rarest class has samples.
        random_state: of the folds.

    Attributes:
        features_: numbers of the features with a weight, ascending.
    """

    inputs = "activations"

    def __init__(
        self,
        max_features: int = 20,
        strength: float | None = None,
        folds: int = 5,
        random_state: int = 0,
    ) -> None:
        self.max_features = max_features
        self.strength = strength
        self.folds = folds
        self.random_state = random_state

    def fit(self, X: np.ndarray, y: np.ndarray) -> SparseProbe:
        X, y = self._checked(X, y)
        scale = common_scale(X)
        active = np.flatnonzero(X.any(axis=0))
        if len(active) == 0:
            raise ValueError("no feature is active on any sample; give other samples")
        screened = min(SCREENED, len(active))
        ranking = LogisticRegression(max_iter=MAX_ITERATIONS)
        pipeline = make_pipeline(
            SelectKBest(_f_scores, k=screened),
            RFE(ranking, n_features_to_select=min(self.max_features, screened), step=ELIMINATED),
            LogisticRegression(max_iter=MAX_ITERATIONS),
        )
        inputs = X[:, active] / scale
        if self.strength is None:
            strengths = [
                {"rfe__estimator__C": [ranking_strength], "logisticregression__C": STRENGTHS}
                for ranking_strength in STRENGTHS[1:-1]
            ]
            with TemporaryDirectory() as found_features:  # by all strengths of the last regression
                pipeline.set_params(memory=found_features)
                found = _search(pipeline, strengths, inputs, y, self.folds, self.random_state)
            self.strength_ = found.best_params_["logisticregression__C"]
            pipeline = found.best_estimator_
        else:
            self.strength_ = self.strength
            names = ("rfe__estimator__C", "logisticregression__C")
            pipeline.set_params(**dict.fromkeys(names, self.strength)).fit(inputs, y)
        self.features_ = active[np.flatnonzero(pipeline[0].get_support())[pipeline[1].support_]]
        self._take(pipeline[2], scale)
        few = self.coef_
        self.coef_ = np.zeros((len(self.classes_), X.shape[1]))
        self.coef_[:, self.features_] = few
        return self


class Activations(TransformerMixin, BaseEstimator):
    """Embeddings `[n, dim]` -> activations `[n, features]`, for scikit-learn's pipelines.

    Args:
        space: not copied by `sklearn.base.clone`.
        modality: of the embeddings.
    """

    def __init__(self, space: FeatureSpace, modality: Modality = "image") -> None:
        self.space = space
        self.modality = modality

    def __sklearn_clone__(self) -> Activations:
        return Activations(self.space, self.modality)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    @property
    def n_features_in_(self) -> int:
        return self.space.dictionary.config.dim

    def fit(self, X: np.ndarray, y: np.ndarray | None = None) -> Activations:
        """Nothing is learnt."""
        validate_data(self, X, reset=False)
        return self

    @torch.no_grad()
    def transform(self, X: np.ndarray) -> np.ndarray:
        X = validate_data(self, X, reset=False, dtype=np.float32, ensure_min_samples=0)
        embeddings = torch.from_numpy(X)
        return self.space.encode(embeddings, self.modality).cpu().numpy()


def zero_shot(encoder: Encoder, prompts: Mapping[str, Sequence[str]]) -> ZeroShot:
    """A fitted zero-shot classifier.

    Args:
        prompts: by class; a class's vector is the normalised mean over its prompts.
    """
    vectors = class_vectors(encoder, list(prompts.values())).cpu().numpy()
    scale = getattr(encoder.model, "logit_scale", None)
    return ZeroShot(
        list(prompts), vectors, DEFAULT_SCALE if scale is None else float(scale.exp())
    ).fit()


def default_prompts(classes: Sequence[str]) -> dict[str, list[str]]:
    """Prompts that name the class in TEMPLATES."""
    return {name: [template.format(name) for template in TEMPLATES] for name in classes}


def common_scale(X: np.ndarray) -> float:
    """What to divide all inputs by for a mean variance of 1. One number for all, since embeddings
    and activations are lengths in one space (the dictionary's rows have unit length)."""
    return float(np.sqrt(X.var(axis=0)[X.any(axis=0)].mean())) or 1.0


def logistic_weights(
    X: np.ndarray,
    y: np.ndarray,
    strength: float,
    sample_weight: np.ndarray | None,
    classes: Sequence[str],
) -> tuple[np.ndarray, np.ndarray]:
    """Weights `[classes, inputs]` and intercepts `[classes]` of a logistic regression under sample
    weights; a class that no sample has is never predicted.

    Args:
        strength: inverse strength of the L2 penalty, the inputs being scaled to a mean variance
            of 1.
        sample_weight: `[n]` of mean 1; None weighs all alike.
        classes: all that there may be in y, sorted.

    Raises:
        ValueError: y has one class.
    """
    scale = common_scale(X)
    probe = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS)
    probe.fit(X / scale, y, sample_weight=sample_weight)
    known = np.isin(classes, probe.classes_)
    coef, intercept = np.zeros((len(classes), X.shape[1])), np.full(len(classes), NEVER)
    coef[known], intercept[known] = _symmetric(probe.coef_ / scale, probe.intercept_)
    return coef, intercept


def _symmetric(coef: np.ndarray, intercept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's weights as `[classes, inputs]` and `[classes]`, of mean zero over classes."""
    if len(coef) == 1:  # scikit-learn keeps the log-odds of the second class alone
        coef, intercept = np.vstack([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    return coef - coef.mean(axis=0), intercept - intercept.mean()


def _f_scores(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """F test of each input; 0 for one that is constant in a fold."""
    varying = np.ptp(X, axis=0) > 0
    scores, p = np.zeros(X.shape[1]), np.ones(X.shape[1])
    scores[varying], p[varying] = f_classif(X[:, varying], y)
    return scores, p


def _search(
    probe: BaseEstimator, grid: Any, X: np.ndarray, y: np.ndarray, folds: int, seed: int
) -> GridSearchCV:
    rarest = np.unique(y, return_counts=True)[1].min()
    if rarest < 2:
        raise ValueError("a class has one sample; cross-validation needs two (or give a strength)")
    cv = StratifiedKFold(min(folds, int(rarest)), shuffle=True, random_state=seed)
    return GridSearchCV(probe, grid, cv=cv).fit(X, y)
