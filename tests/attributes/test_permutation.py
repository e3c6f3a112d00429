"""The permutation null of gaps and differences between groups."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mms_apps.attributes.measures import SMALL_GROUP, measure
from mms_apps.attributes.permutation import DIFFERENCES, p_value, permutation_tests

CLASSES = ("no", "yes", "maybe")


def draw(n: int, seed: int, *, share: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and predictions that are right in a share of the samples."""
    rng = np.random.default_rng(seed)
    truth = np.array(CLASSES)[rng.integers(3, size=n)]
    other = np.array(CLASSES)[rng.integers(3, size=n)]
    return truth, np.where(rng.random(n) < share, truth, other)


def literal(truth: np.ndarray, predicted: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    """Each statistic by loops over classes and groups."""
    names = sorted(set(groups))
    accuracy = [
        np.mean([t == p for t, p, g in zip(truth, predicted, groups, strict=True) if g == name])
        for name in names
    ]
    found = {"gap": np.mean(truth == predicted) - min(accuracy)}
    for statistic, among in (
        ("parity", lambda t, c: True),
        ("tpr", lambda t, c: t == c),
        ("fpr", lambda t, c: t != c),
    ):
        spreads = []
        for c in CLASSES:
            rates = []
            for name in names:
                chosen = [
                    p == c
                    for t, p, g in zip(truth, predicted, groups, strict=True)
                    if g == name and among(t, c)
                ]
                rates += [np.mean(chosen)] if chosen else []
            spreads += [max(rates) - min(rates)] if len(rates) > 1 else []
        found[statistic] = max(spreads, default=np.nan)
    return found


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(20, 80), st.integers(2, 4))
def test_values_are_those_of_literal_loops(seed: int, n: int, count: int) -> None:
    truth, predicted = draw(n, seed)
    groups = np.array([f"g{k}" for k in np.random.default_rng(seed).integers(count, size=n)])
    groups[:2] = "g0", "g1"
    found = permutation_tests(truth, predicted, groups, CLASSES, permutations=5)
    for name, value in literal(truth, predicted, groups).items():
        assert found[name].value == pytest.approx(value, nan_ok=True)
        assert np.isnan(value) or 1 / 6 <= found[name].p <= 1


def test_p_and_chance_are_those_of_all_assignments() -> None:
    from itertools import combinations

    truth, predicted = np.repeat("yes", 10), np.array(["yes"] * 6 + ["no"] * 4)
    groups = np.array(["a"] * 5 + ["b"] * 5)
    gaps = []
    for chosen in combinations(range(10), 5):
        inside = np.isin(np.arange(10), chosen)
        hits = truth == predicted
        gaps.append(hits.mean() - min(hits[inside].mean(), hits[~inside].mean()))
    expected = np.mean(np.array(gaps) >= 0.4 - 1e-9)
    found = permutation_tests(truth, predicted, groups, ("no", "yes"), permutations=4000)["gap"]
    assert found.value == pytest.approx(0.4)
    assert found.p == pytest.approx(expected, abs=0.015)
    assert found.chance == pytest.approx(np.mean(gaps), abs=0.01)


@pytest.mark.parametrize("sizes", [(30,) * 10, (200, 60, 40), (150, 150)])
def test_a_fair_predictor_is_seldom_found_unfair(sizes: tuple[int, ...]) -> None:
    groups = np.repeat([f"g{k}" for k in range(len(sizes))], sizes)
    below = dict.fromkeys(DIFFERENCES, 0)
    for seed in range(100):
        truth, predicted = draw(len(groups), seed)
        found = permutation_tests(truth, predicted, groups, CLASSES, permutations=99, seed=seed)
        for name in DIFFERENCES:
            below[name] += found[name].p < 0.05
    assert max(below.values()) <= 12  # of 100: five are expected, 12 or more in 4 of 1,000 tries
    assert min(below.values()) + max(below.values()) > 0


def test_unfairness_is_found() -> None:
    groups = np.repeat(["a", "b", "c"], 100)
    truth, predicted = draw(300, 0, share=0.9)
    worse, _ = draw(300, 1)
    predicted = np.where(groups == "c", worse, predicted)
    found = permutation_tests(truth, predicted, groups, CLASSES)
    assert {name for name in DIFFERENCES if found[name].p < 0.01} >= {"gap", "tpr", "fpr"}
    assert found["gap"].value > 4 * found["gap"].chance


def test_rates_given_the_label_are_fair_where_only_the_labels_differ() -> None:
    """A perfect predictor on groups of other base rates: other shares chosen, equal odds."""
    rng = np.random.default_rng(0)
    groups = np.repeat(["a", "b"], 200)
    truth = np.where(rng.random(400) < np.where(groups == "a", 0.8, 0.3), "yes", "no")
    flipped = rng.random(400) < np.where(truth == "yes", 0.3, 0.02)
    predicted = np.where(flipped, np.where(truth == "yes", "no", "yes"), truth)
    found = permutation_tests(truth, predicted, groups, ("no", "yes"))
    assert found["parity"].p < 0.01
    assert found["tpr"].p > 0.05
    assert found["fpr"].p > 0.05
    # Were the groups permuted over all samples, the labels' shares would differ from those seen.
    assert found["tpr"].chance < 0.1


def test_samples_of_one_cluster_move_together() -> None:
    """Ten copies of each drawing are no ten drawings."""
    below = {"apart": 0, "together": 0}
    for seed in range(60):
        truth, predicted = draw(40, seed)
        truth, predicted, ids = (np.repeat(v, 10) for v in (truth, predicted, np.arange(40)))
        groups = np.where(ids < 20, "a", "b")
        for name, clusters in (("apart", None), ("together", ids)):
            found = permutation_tests(
                truth, predicted, groups, CLASSES, clusters=clusters, permutations=99, seed=seed
            )
            below[name] += found["gap"].p < 0.05
    assert below["apart"] > 20
    assert below["together"] <= 8


@pytest.mark.parametrize("rate", ["tpr", "fpr"])
def test_a_rate_that_no_two_groups_have_is_not_known(rate: str) -> None:
    truth = np.repeat(["a", "b"], 30)
    predicted = np.where(np.arange(60) % 4 == 0, "a", truth)
    alone = permutation_tests(truth, predicted, truth, ["a", "b"], permutations=5)
    assert np.isnan([alone[rate].value, alone[rate].chance, alone[rate].p]).all()
    groups = np.char.add(truth, np.tile(["x", "y"], 30))
    crossed = permutation_tests(truth, predicted, groups, ["a", "b"], permutations=5)
    assert np.isfinite([crossed[rate].value, crossed[rate].p]).all()


@pytest.mark.parametrize("order", [("no", "yes", "maybe"), ("yes", "maybe", "no")])
def test_the_order_of_the_classes_does_not_matter(order: tuple[str, ...]) -> None:
    truth, predicted = draw(90, 3)
    groups = np.repeat(["a", "b", "c"], 30)
    found = permutation_tests(truth, predicted, groups, order, permutations=20)
    for name, value in literal(truth, predicted, groups).items():
        assert found[name].value == pytest.approx(value)


def test_p_is_never_zero_and_counts_ties() -> None:
    assert p_value(0.5, np.zeros(99)) == 0.01
    assert p_value(0.1 + 0.2, np.repeat(0.3, 99)) == 1.0


def test_measures_have_the_null_beside_the_interval_and_small_groups_apart() -> None:
    truth, predicted = draw(260, 0)
    groups = np.repeat(["a", "b", "rare"], [130, 130 - SMALL_GROUP + 1, SMALL_GROUP - 1])
    predicted[groups == "rare"] = np.where(truth[groups == "rare"] == "no", "yes", "no")
    probabilities = (predicted[:, None] == np.array(CLASSES)) * 0.8 + 0.1
    found = measure(truth, probabilities, groups, CLASSES, replicates=50, permutations=200)
    assert [row.counted for row in found.groups] == [True, True, False]
    assert found.worst_group in ("a", "b")
    assert found.smallest_group == "rare"
    large = groups != "rare"
    alone = permutation_tests(
        truth[large],
        predicted[large],
        groups[large],
        CLASSES,
        permutations=200,
    )
    for name, difference in (
        ("gap", found.gap),
        ("parity", found.parity_difference),
        ("tpr", found.tpr_difference),
        ("fpr", found.fpr_difference),
    ):
        assert difference.value == pytest.approx(alone[name].value)
        assert (difference.chance, difference.p) == (alone[name].chance, alone[name].p)
        assert 0 <= difference.low <= difference.value
