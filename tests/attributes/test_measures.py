"""Measures against literal loops and against fairlearn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import roc_auc_score

from mms_apps.attributes.audit import wilson
from mms_apps.attributes.measures import (
    bootstrap_weights,
    estimate,
    estimate_share,
    group_accuracy,
    measure,
    weighted_mean,
)

CLASSES = ("no", "yes")


def predictions(n: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    truth = np.array(CLASSES)[rng.integers(2, size=n)]
    groups = np.array(["a", "b", "c"])[rng.choice(3, n, p=[0.5, 0.4, 0.1])]
    second = np.clip(np.where(truth == "yes", 0.7, 0.3) + rng.normal(0, 0.25, n), 0.01, 0.99)
    return truth, np.column_stack([1 - second, second]), groups


def test_values_are_those_of_literal_loops() -> None:
    truth, probabilities, groups = predictions()
    found = measure(truth, probabilities, groups, CLASSES, replicates=50)
    predicted = np.array(CLASSES)[probabilities.argmax(axis=1)]
    assert found.accuracy.value == pytest.approx(np.mean(predicted == truth))
    accuracies = {}
    for row in found.groups:
        inside = groups == row.group
        hits = [t == p for t, p, i in zip(truth, predicted, inside, strict=True) if i]
        accuracies[row.group] = sum(hits) / len(hits)
        assert row.accuracy.value == pytest.approx(accuracies[row.group])
        yes = [p for t, p, i in zip(truth, predicted, inside, strict=True) if i and t == "yes"]
        no = [p for t, p, i in zip(truth, predicted, inside, strict=True) if i and t == "no"]
        assert row.tpr["yes"].value == pytest.approx(yes.count("yes") / len(yes))
        assert row.fpr["yes"].value == pytest.approx(no.count("yes") / len(no))
        confidence = probabilities[inside].max(axis=1)
        error = 0.0
        for low in np.arange(10) / 10:
            here = (confidence >= low) & (confidence < low + 0.1)
            if here.any():
                gap = np.mean((predicted == truth)[inside][here]) - confidence[here].mean()
                error += here.mean() * abs(gap)
        assert row.calibration.value == pytest.approx(error)
    assert found.worst_accuracy.value == pytest.approx(min(accuracies.values()))
    assert accuracies[found.worst_group] == min(accuracies.values())
    assert found.gap.value == pytest.approx(found.accuracy.value - min(accuracies.values()))
    assert found.smallest_group == "c"


def test_differences_are_fairlearns() -> None:
    from fairlearn.metrics import (
        MetricFrame,
        false_positive_rate,
        selection_rate,
        true_positive_rate,
    )

    truth, probabilities, groups = predictions()
    found = measure(truth, probabilities, groups, CLASSES, replicates=20)
    frame = MetricFrame(
        metrics={"s": selection_rate, "t": true_positive_rate, "f": false_positive_rate},
        y_true=truth == "yes",
        y_pred=probabilities[:, 1] > 0.5,
        sensitive_features=groups,
    )
    # Of two classes the other class's rates are the complements, with tpr and fpr exchanged.
    difference = frame.difference()
    assert found.parity_difference.value == pytest.approx(difference["s"])
    assert found.tpr_difference.value == pytest.approx(max(difference["t"], difference["f"]))
    assert found.tpr_difference.value == pytest.approx(found.fpr_difference.value)
    assert found.parity_difference.low <= found.parity_difference.value


@pytest.mark.parametrize("count", [2, 3])
def test_the_auroc_is_scikit_learns_with_an_interval(count: int) -> None:
    rng = np.random.default_rng(1)
    classes = ("x", "y", "z")[:count]
    truth = np.array(classes)[rng.integers(count, size=90)]
    logits = rng.normal(size=(90, count)) + 1.5 * (truth[:, None] == classes)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    groups = np.array(["a", "b"])[rng.integers(2, size=90)]
    clusters = np.arange(90) // 2
    found = measure(truth, probabilities, groups, classes, clusters=clusters, replicates=100)
    weights = bootstrap_weights(90, 100, 0, clusters)
    for row in found.groups:
        inside = groups == row.group

        def area(weight: np.ndarray, inside: np.ndarray = inside) -> float:
            each = [
                roc_auc_score(truth[inside] == name, probabilities[inside, c], sample_weight=weight)
                for c, name in enumerate(classes)
            ]
            return float(np.mean(each))

        assert row.auroc.value == pytest.approx(area(np.ones(inside.sum())))
        literal = np.quantile([area(w) for w in weights[1:, inside]], [0.025, 0.975])
        assert (row.auroc.low, row.auroc.high) == pytest.approx(tuple(literal), abs=1e-6)


def test_a_group_of_one_is_listed_but_counts_in_no_gap() -> None:
    truth, probabilities, groups = predictions()
    groups = groups.astype(object)
    groups[0] = "alone"
    probabilities[0] = [0.9, 0.1] if truth[0] == "yes" else [0.1, 0.9]
    found = measure(truth, probabilities, groups, CLASSES, replicates=20)
    assert (found.smallest_group, found.smallest_samples) == ("alone", 1)
    assert found.worst_group != "alone"
    [row] = [row for row in found.groups if row.group == "alone"]
    assert not row.counted
    assert row.accuracy.value == 0.0
    assert math.isnan(row.auroc.value)


def test_a_group_of_few_pictures_counts_in_no_gap_however_many_captions_they_have() -> None:
    truth, probabilities, _ = predictions(120)
    groups, each = np.repeat(["a", "b", "c"], 40), np.arange(120)
    pictures = np.where(groups == "c", each // 5, each)
    found = measure(truth, probabilities, groups, CLASSES, clusters=pictures, permutations=9)
    assert [row.counted for row in found.groups] == [True, True, False]
    few = measure(truth, probabilities, groups, CLASSES, clusters=each // 5, permutations=9)
    assert few.worst_group == "" and math.isnan(few.gap.value)


def test_one_group_has_no_gap() -> None:
    truth, probabilities, _ = predictions()
    found = measure(truth, probabilities, np.repeat("a", len(truth)), CLASSES, replicates=20)
    assert found.worst_group == ""
    assert math.isnan(found.gap.value)


def test_clusters_are_drawn_together_and_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    hits = np.repeat(rng.random(40) < 0.7, 10)
    clusters = np.repeat(np.arange(40), 10)
    weights = bootstrap_weights(400, 200, 0, clusters)
    assert (weights[0] == 1).all()
    assert (weights.reshape(201, 40, 10) == weights.reshape(201, 40, 10)[:, :, :1]).all()
    assert (weights.sum(axis=1) == 400).all()
    together = estimate(group_accuracy(hits, np.repeat("a", 400), weights).overall)
    alone = bootstrap_weights(400, 200, 0)
    apart = estimate(group_accuracy(hits, np.repeat("a", 400), alone).overall)
    assert together.value == apart.value == hits.mean()
    assert together.high - together.low > 2 * (apart.high - apart.low)


@pytest.mark.parametrize("wrong", [False, True])
def test_predictions_that_are_all_right_or_all_wrong_leave_no_interval_of_width_0(
    wrong: bool,
) -> None:
    truth = np.tile(CLASSES, 32)
    groups = np.repeat(["a", "b"], 32)
    second = np.where((truth == "yes") ^ wrong, 0.9, 0.1)
    found = measure(
        truth, np.column_stack([1 - second, second]), groups, CLASSES, replicates=40, permutations=9
    )
    right = 0.0 if wrong else 1.0
    shares = [(found.accuracy, 64), (found.worst_accuracy, 32)]
    for row in found.groups:
        shares += [(row.accuracy, 32), *((row.tpr[name], 16) for name in CLASSES)]
        assert row.auroc.value == right and row.auroc.high - row.auroc.low > 0.05
    for share, samples in shares:
        bound = 0.025 ** (1 / samples)
        bounds = (0.0, 1 - bound) if wrong else (bound, 1.0)
        assert (share.value, share.low, share.high) == pytest.approx((right, *bounds))
    for difference in (found.gap, found.tpr_difference, found.fpr_difference):
        assert difference.value == difference.low == 0 and difference.high > 0.1


def test_clusters_that_are_all_right_count_once() -> None:
    truth = np.tile(CLASSES, 32)
    second = np.where(truth == "yes", 0.9, 0.1)
    given = (truth, np.column_stack([1 - second, second]), np.full(64, "a"), CLASSES)
    clusters = np.repeat(np.arange(8), 8)
    found = measure(*given, clusters=clusters, replicates=20, permutations=9)
    assert found.accuracy.low == pytest.approx(0.025 ** (1 / 8))


def test_few_samples_near_1_hold_the_true_accuracy() -> None:
    rng = np.random.default_rng(0)
    held = []
    for seed in range(300):
        hits = rng.random(20) < 0.95
        weights = bootstrap_weights(20, 200, seed)
        found = estimate_share(weights @ hits / weights.sum(1), 20)
        held.append(found.low <= 0.95 <= found.high)
    assert np.mean(held) > 0.9


@pytest.mark.parametrize("samples", [10, 20, 30])
def test_shares_of_few_samples_are_held_near_0_and_1_and_between(samples: int) -> None:
    weights = bootstrap_weights(samples, 300, 0)
    found = [
        estimate_share(weighted_mean(np.arange(samples) < hits, weights), samples)
        for hits in range(samples + 1)
    ]
    assert (np.diff([one.high for one in found]) > -0.03).all()  # of the draw
    for share in np.linspace(0.02, 0.98, 49):
        covering = [one.low <= share <= one.high for one in found]
        assert binom.pmf(np.arange(samples + 1), samples, share) @ covering >= 0.93


def test_clusters_of_equal_predictions_hold_the_true_share() -> None:
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(20), 5)
    held = []
    for seed in range(150):
        weights = bootstrap_weights(100, 200, seed, clusters.astype(str))
        found = estimate_share(weighted_mean((rng.random(20) < 0.9)[clusters], weights), 20)
        held.append(found.low <= 0.9 <= found.high)
    assert np.mean(held) >= 0.95


def test_wilson_is_not_certain_of_six_in_six() -> None:
    found = wilson(6, 6)
    assert found.value == 1.0
    assert found.low == pytest.approx(6 / (6 + 1.959964**2), abs=1e-4)


def test_an_interval_holds_what_it_is_of() -> None:
    """The worst of groups that are all alike is better than most resamples make it."""
    groups = np.repeat([*"wxyz"], 30)
    truth = np.array([*"ab"] * 60)
    predicted = np.where(np.arange(120) % 10 == 0, "b", truth)
    chosen = np.stack([predicted == "a", predicted == "b"], axis=1).astype(float)
    found = measure(truth, chosen, groups, [*"ab"])
    for one in (found.gap, found.worst_accuracy, found.calibration, found.tpr_difference):
        assert one.low <= one.value <= one.high
    raised = estimate(np.concatenate([[0.1], np.linspace(0.2, 0.3, 200)]))
    assert raised.low == raised.value == 0.1
    assert raised.high == pytest.approx(0.2975)
