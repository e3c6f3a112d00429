"""The benchmark's rows on a small part of the embedded world."""

from __future__ import annotations

import math
from functools import cached_property

import pytest

from benchmarks import attributes
from benchmarks.attributes import (
    accuracy_rows,
    class_rows,
    false_alarm_rows,
    fresh_rows,
    planted_rows,
    real_rows,
)
from features.embedded.world import EmbeddedPairs
from features.space.space import FeatureSpace

METHODS = (
    "none",
    "features",
    "mean_difference",
    "debias_vl",
    "leace",
    "reweighting",
    "last_layer",
    "random",
)
ROLES = (
    "in motorized wheelchair",
    "kneeling",
    "lifting weights",
    "running",
    "walking",
    "with white cane",
)


class FewPairs(EmbeddedPairs):
    """Six roles of the embedded world."""

    @cached_property
    def rows(self) -> list[dict]:
        return [row for row in super().rows if row["role"] in ROLES]


@pytest.fixture(scope="module")
def embedded() -> FeatureSpace:
    return FeatureSpace.load("embedded-ssl", device="cpu")


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attributes, "EmbeddedPairs", FewPairs)
    monkeypatch.setattr(attributes, "TEST_DRAWS", [1])
    monkeypatch.setattr(attributes, "ROLE_PAIRS", 4)
    monkeypatch.setattr(attributes, "TIED", 0.7)


def test_probes_are_compared(embedded: FeatureSpace) -> None:
    rows = {row.name: row for row in accuracy_rows(embedded, "", seed=0)}
    for attribute in ("gender", "skin_tone"):
        both = [rows[f"accuracy/{attribute}/{m}_probe"] for m in ("sparse", "linear")]
        difference = rows[f"accuracy/{attribute}/sparse_less_linear"]
        assert difference.value == pytest.approx(both[0].value - both[1].value)
        assert difference.ci_low <= difference.value <= difference.ci_high
        assert rows[f"accuracy/{attribute}/sparse_features"].value <= 20
        assert rows[f"explain/{attribute}/largest_error"].value < 1e-4


def test_the_planted_case_has_a_row_for_each_method_and_seed(embedded: FeatureSpace) -> None:
    rows = {row.name: row for row in planted_rows(embedded, seed=0)}
    for method in METHODS:
        gap = rows[f"accuracy/{method}"].value - rows[f"worst_group/{method}"].value
        assert rows[f"gap/{method}"].value == pytest.approx(gap)
    assert rows["utility_cost/none"].value == 0
    fresh = {row.name: row for row in fresh_rows(embedded, [0, 1])}
    assert fresh["fresh/0/gap/none"].value == rows["gap/none"].value
    for method in METHODS:
        worst = fresh[f"fresh/worst_group/{method}"]
        assert worst.ci_low <= worst.value <= worst.ci_high
        less = worst.value - fresh["fresh/worst_group/features"].value
        assert fresh[f"fresh/worst_less_features/{method}"].value == pytest.approx(less)
    gaps = [fresh[f"fresh/{seed}/gap/features"].value for seed in (0, 1)]
    assert fresh["fresh/gap/features"].value == pytest.approx(sum(gaps) / 2)
    assert 0 <= fresh["fresh/gap_halved"].value <= 1


def test_a_fair_predictor_is_seldom_found_unfair_and_an_unfair_one_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attributes, "FAIR_DRAWS", 12)
    monkeypatch.setattr(attributes, "FAIR_GROUPS", 3)
    monkeypatch.setattr(attributes, "FAIR_GROUP", 120)
    rows = {row.name: row for row in false_alarm_rows(seed=0)}
    for statistic in ("gap", "parity", "tpr", "fpr"):
        assert rows[f"false_alarms/{statistic}"].n == 12
        assert rows[f"false_alarms/{statistic}"].value <= 3 / 12  # in 98 of 100 tries
    assert rows["found/gap"].value >= 10 / 12


def test_the_real_case_and_the_classes(embedded: FeatureSpace) -> None:
    rows = {row.name: row for row in [*real_rows(embedded, 0), *class_rows(embedded, 0)]}
    assert 0 <= rows["real/gap/features"].value <= 1
    for what in ("keep", "remove"):
        own = rows[f"class/{what}/CrossD"].value
        random = rows[f"class/{what}/CrossD/random"].value
        difference = rows[f"class/{what}/CrossD/less_random"].value
        assert difference == pytest.approx(own - random)
        assert not math.isnan(rows[f"class/background/{what}/ImgD"].value)
