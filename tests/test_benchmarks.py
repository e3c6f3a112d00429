"""The benchmarks' own arithmetic and files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score

from benchmarks import peers
from benchmarks.common import Result, write_results
from benchmarks.generator_sheet import COLUMNS, GAP, sheet
from benchmarks.planted import align, auroc_by_value, auroc_row, cross_share_row
from benchmarks.scale import closed_form_row


def test_auroc_is_scikit_learns_with_ties() -> None:
    rng = np.random.default_rng(0)
    activations = np.maximum(0, rng.normal(size=(150, 5))).round(1)
    labels = ["red", "green", "blue"] * 45 + ["None"] * 10 + ["rare"] * 5
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
            "gender": str(rng.choice(["man", "woman"])),
            "skin_tone": None,
            "subgroup": "rare" if place < 5 else "person",
        }
        for place in range(200)
    ]
    image = rng.normal(size=(200, 4)) * 0.1
    text = rng.normal(size=(200, 4)) * 0.1
    image[:, 0] += [a["background"] == "red" for a in attributes]
    text[:, 1] += [a["register"] == "polite" for a in attributes]
    image[:, 3] += [a["gender"] == "man" for a in attributes]
    alignment = align(image, text, attributes)
    assert alignment.vision_only.tolist() == [True, False, False, False]
    assert alignment.text_only.tolist() == [False, True, False, False]
    assert alignment.of_both.tolist() == [False, False, False, True]
    for mds, share in ((0.5, 1.0), (0.9, 0.0), (np.nan, None)):
        row = cross_share_row("topk", np.array([0.9, 0.5, 0.5, mds]), alignment, seed=0)
        assert row.n == (share is not None)
        assert np.isnan(row.value) if share is None else row.value == share


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


def test_the_double_loop_is_the_closed_form() -> None:
    assert closed_form_row(seed=0, repeats=1).value > 1


def test_one_training_is_timed_and_its_fvu_falls(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    train = F.normalize(torch.randn(6, 32, 8, generator=generator), dim=2)
    weights = F.normalize(torch.randn(40, 8, generator=generator), dim=1)
    save_file({"train": train, "held_out": train[0].clone(), "weights": weights}, tmp_path / "data")
    found = peers.train("ours", sys.executable, tmp_path / "data", tmp_path / "out.json")
    assert found is not None and len(found["seconds"]) == 6
    assert [step for step, _ in found["fvu"]] == [0, 5, 6] and found["peak_mib"] > 0
    assert found["fvu"][1][1] < found["fvu"][0][1]
    assert peers.seconds_to(found["fvu"][1][1], found) == sum(found["seconds"][:5])


def test_a_library_that_fails_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert peers.train("sparsify", sys.executable, tmp_path / "none", tmp_path / "out.json") is None
    assert "sparsify failed" in capsys.readouterr().err


def test_a_sheet_has_each_drawing_below_its_reference() -> None:
    count = COLUMNS + 2
    references = [Image.new("RGB", (64, 64), (place, 0, 0)) for place in range(count)]
    drawings = [Image.new("RGB", (64, 64), (place, 255, 0)) for place in range(count)]
    page = sheet(references, drawings)
    assert page.size == (64 * COLUMNS, 4 * 64 + GAP)
    for place in range(count):
        x, y = 64 * (place % COLUMNS), (128 + GAP) * (place // COLUMNS)
        assert page.getpixel((x, y)) == page.getpixel((x + 63, y + 63)) == (place, 0, 0)
        assert page.getpixel((x, y + 64)) == page.getpixel((x + 63, y + 127)) == (place, 255, 0)
    assert page.getpixel((64 * COLUMNS - 1, 2 * 64 + GAP)) == (255, 255, 255)
