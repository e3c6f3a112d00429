"""The methods that features are compared with, against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from features.space.space import FeatureSpace
from mms_apps.attributes.debias.erasure import independence_weights, leace, mean_difference
from mms_apps.attributes.debias.retraining import last_layer, refitted, reweighted
from mms_apps.attributes.debias.validation import COST, Outcome, Validation, best
from mms_apps.attributes.estimators import common_scale
from mms_apps.attributes.labels import Samples
from mms_apps.attributes.model import METHODS, fit_model

pytestmark = pytest.mark.usefixtures("few_strengths")


def tied(n: int, values: int, seed: int) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Embeddings `[n, 12]` with covariance, an attribute on axis 0, and a factor of several values
    on the axes from 1, which goes with the attribute."""
    rng = np.random.default_rng(seed)
    attribute = rng.integers(2, size=n)
    factor = np.where(rng.random(n) < 0.6, attribute, rng.integers(values, size=n))
    x = rng.normal(size=(n, 12)) @ rng.normal(size=(12, 12)) * 0.3
    x[:, 0] += attribute
    for value in range(1, values):
        x[:, value] += 2.0 * (factor == value)
    names = np.array([f"v{k}" for k in range(values)])
    return torch.from_numpy(x), np.array(["a", "b"])[attribute], names[factor]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 4), st.booleans())
def test_no_covariance_with_the_factor_is_left(seed: int, values: int, shrunk: bool) -> None:
    x, attribute, factor = tied(300, values, seed)
    weights = independence_weights(attribute, factor)
    for edit in (
        mean_difference(x, factor, weights),
        leace(x, factor, weights, 0.3 if shrunk else 0.0),
    ):
        edited = edit.apply(x.float()).double().numpy()
        total = np.average(edited, axis=0, weights=weights)
        for value in np.unique(factor):
            inside = factor == value
            own = np.average(edited[inside], axis=0, weights=weights[inside])
            assert own == pytest.approx(total, abs=1e-4)
        assert total == pytest.approx(np.average(x.numpy(), axis=0, weights=weights), abs=1e-4)


def test_leace_is_the_papers_formula_and_changes_the_least() -> None:
    x, _, factor = tied(400, 3, 0)
    even = np.ones(400)
    numbers = x.numpy()
    z = (factor[:, None] == np.unique(factor)).astype(float)
    centred, concept = numbers - numbers.mean(axis=0), z - z.mean(axis=0)
    sigma, cross = centred.T @ centred / 400, centred.T @ concept / 400
    values, vectors = np.linalg.eigh(sigma)
    whitening = vectors @ np.diag(values**-0.5) @ vectors.T
    columns = whitening @ cross
    projector = columns @ np.linalg.pinv(columns)
    expected = numbers - centred @ (np.linalg.inv(whitening) @ projector @ whitening).T
    found = leace(x, factor, even).apply(x.float()).numpy()
    assert found == pytest.approx(expected, abs=1e-4)

    def change(edited: np.ndarray) -> float:
        return float(((edited - numbers) ** 2).sum())

    orthogonal = mean_difference(x, factor, even).apply(x.float()).numpy()
    assert change(found) < change(orthogonal)
    assert leace(x, factor, even, 1.0).apply(x.float()).numpy() == pytest.approx(
        orthogonal, abs=1e-4
    )


def test_no_linear_probe_finds_the_erased_factor() -> None:
    x, _, factor = tied(600, 2, 1)
    probe = LogisticRegression(C=1e4, max_iter=5000)
    assert probe.fit(x.numpy(), factor).score(x.numpy(), factor) > 0.8
    edited = leace(x, factor, np.ones(600)).apply(x.float()).numpy()
    probe.fit(edited, factor)
    share = (factor == "v1").mean()
    assert probe.predict_proba(edited)[:, 1] == pytest.approx(np.full(600, share), abs=0.01)


def test_weights_keep_the_attribute_that_goes_with_the_factor() -> None:
    x, attribute, factor = tied(800, 2, 2)
    kept = leace(x, factor, independence_weights(attribute, factor)).apply(x.float()).numpy()
    lost = leace(x, factor, np.ones(800)).apply(x.float()).numpy()

    def apart(edited: np.ndarray) -> float:
        means = [edited[attribute == name].mean(axis=0) for name in ("a", "b")]
        return float(np.linalg.norm(means[0] - means[1]))

    assert apart(kept) > 1.3 * apart(lost)


def test_a_share_of_the_mean_difference() -> None:
    x, _, factor = tied(300, 2, 3)
    whole, half, none = (
        mean_difference(x, factor, np.ones(300), share).apply(x.float()) for share in (1, 0.5, 0)
    )
    assert half.numpy() == pytest.approx((whole.numpy() + x.float().numpy()) / 2, abs=1e-5)
    assert none.numpy() == pytest.approx(x.float().numpy(), abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")), min_size=1))
def test_weights_are_kamiran_and_calders(pairs: list[tuple[str, str]]) -> None:
    attribute, factor = (np.array([pair[side] for pair in pairs]) for side in (0, 1))
    found = independence_weights(attribute, factor)
    expected = []
    for a, f in pairs:
        both = sum(pair == (a, f) for pair in pairs)
        expected.append(sum(p[0] == a for p in pairs) * sum(p[1] == f for p in pairs) / both)
    assert found == pytest.approx(np.array(expected) / np.mean(expected))
    if len(set(pairs)) == len(set(attribute)) * len(set(factor)):  # all values meet
        for a in set(attribute):
            for f in set(factor):
                both = found[(attribute == a) & (factor == f)].sum() / found.sum()
                alone = [
                    found[names == v].sum() / found.sum()
                    for names, v in ((attribute, a), (factor, f))
                ]
                assert both == pytest.approx(alone[0] * alone[1])


def rare(count: int, seed: int) -> Samples:
    """`kind` weakly on axis 0, `place` strongly on axis 1; they go together in 9 of 10."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(2, size=count)
    place = np.where(rng.random(count) < 0.9, kind, 1 - kind)
    x = rng.normal(size=(count, 16)) * 0.3
    x[:, 0] += 0.6 * (2 * kind - 1)
    x[:, 1] += 1.2 * (2 * place - 1)
    columns = {
        "kind": np.array(["cat", "dog"], dtype=object)[kind],
        "place": np.array(["lawn", "sofa"], dtype=object)[place],
    }
    ids = np.array([f"{seed}-{i}" for i in range(count)], dtype=object)
    unit = torch.nn.functional.normalize(torch.from_numpy(x).float(), dim=-1)
    return Samples(unit, ids, columns)


def groups_of(samples: Samples) -> np.ndarray:
    return np.char.add(*(samples.columns[n].astype(str) for n in ("kind", "place")))


def test_reweighting_is_a_weighted_logistic_regression(space: FeatureSpace) -> None:
    samples = rare(500, 0)
    model = fit_model(space, samples, "kind", ["cat", "dog"], "linear_probe")
    found = reweighted(model, samples, "place", 0.5)
    x, y = samples.embeddings.numpy(), samples.columns["kind"].astype(str)
    weights = independence_weights(y, samples.columns["place"].astype(str))
    scale = common_scale(x)
    theirs = LogisticRegression(C=0.5, max_iter=2000).fit(x / scale, y, sample_weight=weights)
    assert found.predict_proba(samples.embeddings) == pytest.approx(
        theirs.predict_proba(x / scale), abs=1e-5
    )
    assert found.config.strength == 0.5


@pytest.mark.parametrize("method", METHODS)
def test_a_refitted_model_reads_what_the_first_one_reads(method: str, space: FeatureSpace) -> None:
    samples = rare(300, 0)
    prompts = {"cat": ["a red circle"], "dog": ["a blue square"]}
    model = fit_model(
        space, samples, "kind", ["cat", "dog"], method, prompts=prompts, max_features=4
    )
    found = refitted(model, samples, 1.0)
    assert found.predict_proba(samples.embeddings).shape == (300, 2)
    assert found.config.samples == 300
    if method == "sparse_probe":
        used = [set(np.flatnonzero(m.estimator.coef_.any(axis=0))) for m in (found, model)]
        assert used[0] <= used[1]
    else:
        assert found.config.method == "linear_probe"


def test_a_class_without_samples_is_never_predicted(space: FeatureSpace) -> None:
    samples = rare(300, 0)
    both = Samples(samples.embeddings, samples.ids, {"both": groups_of(samples).astype(object)})
    names = sorted(set(both.columns["both"]))
    model = fit_model(space, both, "both", names, "linear_probe")
    found = refitted(model, both.having("both", names[1:]), 1.0)
    assert found.predict_proba(both.embeddings)[:, 0].max() < 1e-6
    assert set(found.predict(both.embeddings)) == set(names[1:])


def test_the_last_layer_serves_the_rare_groups(space: FeatureSpace) -> None:
    fitted, validation, test = rare(1200, 0), rare(400, 1), rare(1500, 2)
    model = fit_model(space, fitted, "kind", ["cat", "dog"], "linear_probe")
    split = Validation(validation, groups_of(validation))
    found = last_layer(model, split, 0.1, seed=0)

    def worst(model) -> float:
        hits = model.predict(test.embeddings) == test.columns["kind"]
        return min(hits[groups_of(test) == name].mean() for name in set(groups_of(test)))

    assert worst(found) > worst(model) + 0.05
    again = last_layer(model, split, 0.1, seed=0)
    assert (again.estimator.coef_ == found.estimator.coef_).all()


@pytest.mark.parametrize("kept", [["cat"], []])
def test_the_last_layer_is_left_where_the_groups_have_one_class(
    kept: list[str], space: FeatureSpace
) -> None:
    samples = rare(400, 0)
    model = fit_model(space, samples, "kind", ["cat", "dog"], "linear_probe")
    few = samples.take(np.flatnonzero(~np.isin(samples.columns["kind"].astype(str), kept))[:3])
    cats = samples.having("kind", kept)
    both = Samples(
        torch.cat([cats.embeddings, few.embeddings]),
        np.concatenate([cats.ids, few.ids]),
        {name: np.concatenate([cats.columns[name], few.columns[name]]) for name in few.columns},
    )
    assert last_layer(model, Validation(both, groups_of(both)), 1.0, seed=0) is model


def test_the_rule_is_the_smallest_loss_among_those_that_cost_little() -> None:
    before = Outcome(accuracy=0.9, worst=0.5, loss=1.0)
    cheap, better = Outcome(0.9 - COST / 2, 0.6, 0.8), Outcome(0.95, 0.7, 0.6)
    dear, worse = Outcome(0.9 - 2 * COST, 0.9, 0.1), Outcome(0.95, 0.9, 1.1)
    assert best(before, [("cheap", cheap), ("dear", dear), ("worse", worse)]) == "cheap"
    assert best(before, [("cheap", cheap), ("better", better)]) == "better"
    assert best(before, [("dear", dear), ("worse", worse)]) is None
    assert best(before, [("same", before)]) is None
    assert best(before, []) is None
