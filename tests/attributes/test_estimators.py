"""The estimators as scikit-learn uses them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import get_scorer
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

from features.space.space import FeatureSpace
from mms_apps.attributes.estimators import (
    Activations,
    LinearClassifier,
    LinearProbe,
    SparseProbe,
    ZeroShot,
    common_scale,
    zero_shot,
)
from mms_apps.attributes.labels import Samples

PROBES = [LinearProbe(strength=1.0), SparseProbe(max_features=3, strength=1.0)]


# Cross-validation runs in a LinearProbe; in a SparseProbe it would take minutes here.
CHECKED = [LinearProbe(folds=2), *PROBES]


def data(samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    return samples.embeddings.numpy(), samples.columns["kind"].astype(str)


@pytest.mark.parametrize("probe", CHECKED, ids=repr)
def test_scikit_learns_own_checks(probe: LinearClassifier) -> None:
    check_estimator(probe, on_skip=None)


@pytest.mark.parametrize(
    "probe", [*CHECKED, SparseProbe(), ZeroShot(["b", "a"], np.eye(16)[:2])], ids=repr
)
@pytest.mark.parametrize("method", ["predict", "predict_proba", "decision_function", "logits"])
def test_nothing_is_predicted_before_a_fit(
    probe: LinearClassifier, method: str, samples: Samples
) -> None:
    with pytest.raises(NotFittedError):
        getattr(clone(probe), method)(data(samples)[0])


def test_scorers_read_zero_shot_classes_in_their_order(samples: Samples) -> None:
    x, y = data(samples)
    vectors = np.array([np.eye(16)[0], -np.eye(16)[0]])  # of dog, of cat
    model = ZeroShot(["dog", "cat"], vectors, 5.0).fit(x, y)
    assert get_scorer("roc_auc")(model, x, y) > 0.95
    assert get_scorer("neg_log_loss")(model, x, y) > -0.3
    assert get_scorer("accuracy")(model, x, y) > 0.95


@pytest.mark.parametrize("bad", ["size", "nan", "one dimension"])
def test_estimators_of_one_size_say_what_they_cannot_take(bad: str, space: FeatureSpace) -> None:
    x = np.ones((5, 16))
    if bad == "nan":
        x[2, 3] = np.nan
    x = {"size": x[:, :15], "nan": x, "one dimension": x[0]}[bad]
    for estimator in (ZeroShot(["b", "a"], np.eye(16)[:2]).fit(), Activations(space)):
        assert estimator.n_features_in_ == 16
        use = estimator.predict if isinstance(estimator, ZeroShot) else estimator.transform
        with pytest.raises(ValueError, match=r"15 features|NaN|2D array"):
            use(x)
        with pytest.raises(ValueError, match=r"15 features|NaN|2D array"):
            estimator.fit(x)


@pytest.mark.parametrize("classes", [["a", "a"], ["a", "b", "c"], ["a"]])
def test_zero_shot_wants_one_vector_a_class(classes: list[str]) -> None:
    with pytest.raises(ValueError, match="one vector a class"):
        ZeroShot(classes, np.eye(16)[:2]).fit()


@pytest.mark.parametrize("probe", PROBES, ids=lambda p: type(p).__name__)
def test_clone_and_cross_validation(probe: LinearClassifier, samples: Samples) -> None:
    x, y = data(samples)
    copy = clone(probe)
    assert copy.get_params() == probe.get_params()
    assert not hasattr(copy, "coef_")
    assert cross_val_score(copy, x, y, cv=3).min() > 0.9
    fitted = copy.fit(x, y)
    assert fitted.predict_proba(x).sum(axis=1) == pytest.approx(np.ones(len(x)))
    assert fitted.score(x, y) == (fitted.predict(x) == y).mean()


def test_two_classes_are_scikit_learns_logistic_regression(samples: Samples) -> None:
    x, y = data(samples)
    scale = common_scale(x)
    theirs = LogisticRegression(C=0.5, max_iter=2000).fit(x / scale, y)
    mine = LinearProbe(strength=0.5).fit(x, y)
    assert mine.decision_function(x) == pytest.approx(theirs.decision_function(x / scale), abs=1e-5)
    assert mine.predict_proba(x) == pytest.approx(theirs.predict_proba(x / scale), abs=1e-5)
    weights, intercept = mine.logit_of("dog")
    assert expit(x @ weights + intercept) == pytest.approx(mine.predict_proba(x)[:, 1], abs=1e-6)


def test_three_classes_are_scikit_learns_logistic_regression(samples: Samples) -> None:
    x, _ = data(samples)
    y = np.array(["a", "b", "c"])[(x[:, 0] > 0).astype(int) + (x[:, 1] > 0)]
    scale = common_scale(x)
    theirs = LogisticRegression(C=2.0, max_iter=2000).fit(x / scale, y)
    mine = LinearProbe(strength=2.0).fit(x, y)
    assert mine.predict_proba(x) == pytest.approx(theirs.predict_proba(x / scale), abs=1e-6)
    assert mine.decision_function(x).shape == (len(x), 3)


def test_the_sparse_probe_keeps_few_features_and_the_right_one(samples: Samples) -> None:
    x, y = data(samples)
    probe = SparseProbe(max_features=2, strength=1.0).fit(x, y)
    assert np.flatnonzero(probe.coef_.any(axis=0)).tolist() == probe.features_.tolist()
    assert len(probe.features_) == 2
    assert 0 in probe.features_


def test_the_penalty_is_chosen_within_the_training_data(samples: Samples) -> None:
    x, y = data(samples)
    first = LinearProbe().fit(x[:100], y[:100])
    again = LinearProbe().fit(x[:100], y[:100])
    assert first.strength_ == again.strength_
    assert first.score(x[100:], y[100:]) > 0.9


def test_zero_shot_is_the_nearest_vector_in_whatever_order(samples: Samples) -> None:
    x, _ = data(samples)
    vectors = np.eye(16)[:3]
    model = clone(ZeroShot(["b", "a", "c"], vectors, 7.0)).fit()
    expected = [["b", "a", "c"][k] for k in (x @ vectors.T).argmax(axis=1)]
    assert model.predict(x).tolist() == expected
    assert model.classes_.tolist() == ["a", "b", "c"]
    logits = 7.0 * x @ vectors[[1, 0, 2]].T
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert model.predict_proba(x) == pytest.approx(shares, abs=1e-6)


def test_zero_shot_from_prompts_takes_the_encoders_scale(space: FeatureSpace) -> None:
    model = zero_shot(space.encoder, {"red": ["a red circle"], "blue": ["a blue circle"]})
    assert model.scale == pytest.approx(float(space.encoder.model.logit_scale.exp()))
    assert np.linalg.norm(model.vectors, axis=1) == pytest.approx(np.ones(2))


def test_a_pipeline_from_embeddings_over_features(space: FeatureSpace) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 16)).astype(np.float32)
    y = np.where(x[:, 0] > 0, "up", "down")
    pipeline = make_pipeline(Activations(space), SparseProbe(max_features=8, strength=1.0))
    assert clone(pipeline)[0].space is space
    assert cross_val_score(pipeline, x, y, cv=3).mean() > 0.5
    assert pipeline.fit(x, y).predict(x).shape == (80,)


@pytest.mark.parametrize("probe", PROBES, ids=lambda p: type(p).__name__)
def test_one_value_is_refused(probe: LinearClassifier, samples: Samples) -> None:
    x, _ = data(samples)
    with pytest.raises(ValueError, match="one class cat"):
        clone(probe).fit(x, np.repeat("cat", len(x)))


def test_an_unknown_class_and_other_inputs_are_refused(samples: Samples) -> None:
    x, y = data(samples)
    probe = LinearProbe(strength=1.0).fit(x, y)
    with pytest.raises(ValueError, match="classes are cat, dog"):
        probe.logit_of("cow")
    for labels, known in ((y == "dog", "False, True"), (np.where(y == "dog", 3, 4), "3, 4")):
        numbered = LinearProbe(strength=1.0).fit(x, labels)
        with pytest.raises(ValueError, match=f"cow: no class; classes are {known}"):
            numbered.logit_of("cow")
    with pytest.raises(ValueError, match="features"):
        probe.predict(x[:, :3])
    with pytest.raises(ValueError, match="one sample"):
        LinearProbe().fit(x[:3], np.array(["cat", "cat", "dog"]))
