"""The benchmark of corrections, and what its results are said to show."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import attributes
from benchmarks.correction import CASES, FRESH_SEEDS, Case, Outcome, case_of, each_row, outcome_of
from features.embedded.evaluate import GENDERS
from features.embedded.world import EmbeddedPairs
from features.space.space import FeatureSpace
from mms_apps.attributes.labels import Samples

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "correction.json"


@pytest.fixture(scope="module")
def results() -> dict[str, dict]:
    return {row["name"]: row for row in json.loads(RESULTS.read_text())["results"]}


class MenAndWomen(EmbeddedPairs):
    """The drawings that the cases keep of the embedded world."""

    @cached_property
    def rows(self) -> list[dict]:
        return [row for row in super().rows if row["gender"] in GENDERS]


def test_one_seed_of_each_case_is_as_it_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attributes, "EmbeddedPairs", MenAndWomen)
    space = FeatureSpace.load("embedded-ssl", device="cpu")
    case = case_of("mislabelled", space, 7)
    assert not set(case.fitted.ids) & set(case.pairs.ids)
    assert not set(case.fitted.ids) & set(case.held_out.ids)
    ((background, victim),) = case.victims.items()
    there = case.fitted.columns["background"] == background
    assert there.any() and victim not in case.fitted.columns["gender"][there]
    assert victim in case.pairs.columns["gender"][case.pairs.columns["background"] == background]
    outcome = outcome_of(case, space, 7)
    assert outcome.mended + outcome.broken <= len(case.held_out)
    assert outcome.enough or not outcome.accepted


def test_planted_samples_are_those_of_the_victims() -> None:
    columns = {
        "gender": np.array(["man", "woman", "man", "woman"], dtype=object),
        "background": np.array(["red", "red", "blue", "green"], dtype=object),
    }
    samples = Samples(torch.zeros(4, 2), np.array(list("abcd"), dtype=object), columns)
    case = Case(samples, samples, samples, {"red": "man", "blue": "woman"})
    assert case.planted(samples).tolist() == [True, False, False, False]


def test_mended_for_each_broken_is_over_all_seeds() -> None:
    some = [Outcome(True, m, b, 0.0, 0.0, True, True, True) for m, b in ((9, 1), (0, 0), (3, 2))]
    row = each_row("each", some)
    assert row.value == 4 and row.n == 3
    assert row.ci_low <= 4 <= row.ci_high
    assert each_row("each", some[:1]).value == 9
    assert each_row("each", [Outcome(True, 5, 0, 0.0, 0.0, True, True, True)]).value == 5


def test_the_page_says_what_the_results_are(results: dict[str, dict]) -> None:
    def of(case: str, seed: int, key: str) -> float:
        return results[f"correction/{case}/{seed}/{key}"]["value"]

    planted = [(case, seed) for case in ("bias", "mislabelled") for seed in FRESH_SEEDS]
    assert all(of(*one, "found") == 1 for one in planted)  # "in all of twenty trials"
    enough = [
        one
        for one in planted
        if of(*one, "mended") >= 3 * of(*one, "broken") and of(*one, "mended") > 0
    ]
    assert len(enough) == 18
    assert sum(of(*one, "mended") + of(*one, "broken") == 0 for one in planted) == 1
    taken = [one for one in planted if of(*one, "foretold") == 1]
    assert set(taken) <= set(enough) and len(enough) - len(taken) == 2
    for case in CASES:
        for key in ("mended", "broken"):
            mean = np.mean([of(case, seed, key) for seed in FRESH_SEEDS])
            assert results[f"correction/{key}/{case}"]["value"] == pytest.approx(mean)
    assert results["correction/accepted/nothing"]["value"] == 0
