"""The benchmark's rows, and a peer that is not there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.robustness_attacks import analytic_rows, broken_rows
from benchmarks.robustness_peers import withstood_by_peer, write_data
from features.space.space import FeatureSpace
from mms_apps.robustness.models import ZeroShot
from mms_apps.robustness.tasks import Task


def test_the_analytic_rows_are_within_their_bound() -> None:
    rows = {row.name: row for row in analytic_rows(seed=0, count=4)}
    assert rows["analytic/Linf/largest"].value <= 1.25
    assert rows["analytic/L2/pgd_at_1.25"].value == 1


def test_broken_models_are_caught_and_the_plain_one_is_not(space: FeatureSpace, task: Task) -> None:
    rows = {row.name: row.value for row in broken_rows(space, task.first(6))}
    assert rows.pop("caught/plain") == 0
    assert set(rows.values()) == {1}


def test_a_peer_that_fails_is_named(
    model: ZeroShot, task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.safetensors"
    write_data(data, model, task.pixels[:2], task.labels[:2])
    found = withstood_by_peer(
        sys.executable, "adversarial-library", "apgd", 0.01, data, tmp_path / "out.json"
    )
    assert found is None
    assert "adversarial-library apgd failed" in capsys.readouterr().err
