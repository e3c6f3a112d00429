"""The benchmark's rows on a small part of the embedded world."""

from __future__ import annotations

import math
from functools import cached_property

import pytest

from benchmarks import attributes
from benchmarks.attributes import accuracy_rows, class_rows, fresh_rows, planted_rows, real_rows
from features.embedded.world import EmbeddedPairs
from features.space.space import FeatureSpace

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
    for method in ("none", "features", "debias_vl", "random", "mean_difference"):
        gap = rows[f"accuracy/{method}"].value - rows[f"worst_group/{method}"].value
        assert rows[f"gap/{method}"].value == pytest.approx(gap)
    assert rows["utility_cost/none"].value == 0
    fresh = {row.name: row for row in fresh_rows(embedded, [0, 1])}
    assert fresh["fresh/0/gap/none"].value == rows["gap/none"].value
    gaps = [fresh[f"fresh/{seed}/gap/features"].value for seed in (0, 1)]
    assert fresh["fresh/gap/features"].value == pytest.approx(sum(gaps) / 2)
    assert 0 <= fresh["fresh/gap_halved"].value <= 1


def test_the_real_case_and_the_classes(embedded: FeatureSpace) -> None:
    rows = {row.name: row for row in [*real_rows(embedded, 0), *class_rows(embedded, 0)]}
    assert 0 <= rows["real/gap/features"].value <= 1
    for what in ("keep", "remove"):
        own = rows[f"class/{what}/CrossD"].value
        random = rows[f"class/{what}/CrossD/random"].value
        difference = rows[f"class/{what}/CrossD/less_random"].value
        assert difference == pytest.approx(own - random)
        assert not math.isnan(rows[f"class/background/{what}/ImgD"].value)
