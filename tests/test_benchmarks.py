"""The benchmarks' own arithmetic and files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from benchmarks.common import Result, write_results
from benchmarks.features import auroc_row
from benchmarks.planted import align, auroc_by_value


def test_auroc_is_scikit_learns_with_ties() -> None:
    rng = np.random.default_rng(0)
    activations = np.maximum(0, rng.normal(size=(60, 5))).round(1)
    labels = rng.choice(["red", "green", "blue"], size=60).tolist()
    ours = auroc_by_value(activations, labels)
    for row, value in enumerate(["blue", "green", "red"]):
        for feature in range(5):
            truth = [label == value for label in labels]
            assert np.isclose(ours[row, feature], roc_auc_score(truth, activations[:, feature]))


def test_features_align_with_the_factor_that_they_carry() -> None:
    rng = np.random.default_rng(1)
    attributes: list[dict[str, str | None]] = [
        {
            "background": str(rng.choice(["red", "blue"])),
            "pattern": str(rng.choice(["plain", "dots"])),
            "scale": str(rng.choice(["small", "large"])),
            "register": str(rng.choice(["plain", "polite"])),
            "wording": str(rng.choice(["a", "b"])),
        }
        for _ in range(200)
    ]
    image = rng.normal(size=(200, 3)) * 0.1
    text = rng.normal(size=(200, 3)) * 0.1
    image[:, 0] += [a["background"] == "red" for a in attributes]
    text[:, 1] += [a["register"] == "polite" for a in attributes]
    alignment = align(image, text, attributes)
    assert alignment.vision_only.tolist() == [True, False, False]
    assert alignment.text_only.tolist() == [False, True, False]


def test_the_scores_auroc_has_an_interval_and_is_undefined_without_a_group() -> None:
    row = auroc_row(np.array([0.9, 0.8, 0.3]), np.array([0.1, 0.4]), seed=0, replicates=200)
    assert np.isclose(row.value, 5 / 6)
    assert row.ci_low <= row.value <= row.ci_high
    assert np.isnan(auroc_row(np.array([0.9]), np.array([]), seed=0).value)


def test_results_are_written_with_machine_versions_and_seed(tmp_path: Path) -> None:
    rows = [Result("a/b", 0.5, 0.4, 0.6, 10, "share"), Result("c", 1.0, float("nan"), 2.0, 1, "s")]
    write_results(tmp_path / "deep" / "out.json", rows, seed=7)
    record = json.loads((tmp_path / "deep" / "out.json").read_text())
    assert record["seed"] == 7
    assert record["machine"]["cores"] >= 1
    assert record["versions"]["torch"]
    assert record["results"][0] == {
        "name": "a/b",
        "value": 0.5,
        "ci_low": 0.4,
        "ci_high": 0.6,
        "n": 10,
        "unit": "share",
    }
    assert record["results"][1]["ci_low"] is None
