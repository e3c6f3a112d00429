"""`mms robustness` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import pytest

from tests.cli.conftest import one_error_line

QUICK = (
    "--count", "6", "--attack", "noise", "--attack", "pgd", "--eps", "8/255", "--eps", "16/255",
    "--pgd-steps", "12", "--steps", "8", "--queries", "20", "--device", "cpu",
)  # fmt: skip


def test_it_leaves_json_and_a_report_and_goes_on(mms, tmp_path: Path) -> None:
    out = tmp_path / "robustness"
    code, said, _ = mms("robustness", "--out", out, *QUICK)
    record = json.loads((out / "robustness.json").read_text())
    assert code == (0 if record["reliable"] else 1)
    assert "worst case" in said and "checks passed" in said
    assert (out / "report.html").read_text().startswith("<!doctype html>")
    attacked = mock.Mock(side_effect=AssertionError("attacked again"))
    with mock.patch("mms_apps.robustness.runner.run_attack", attacked):
        again, _, _ = mms("robustness", "--out", out, *QUICK)
    assert again == code
    assert json.loads((out / "robustness.json").read_text())["accuracy"] == record["accuracy"]
    code, _, err = mms("robustness", "--out", out, *QUICK, "--seed", "1")
    assert code == 2 and "holds another evaluation" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--eps", "big"), "must be a positive number"),
        (("--eps", "8"), "8/255?"),
        (("--class-names", "nowhere.txt"), "nowhere.txt: cannot be read"),
        (("--templates", "nowhere.json"), "nowhere.json: cannot be read"),
        (("--norm", "L1"), "unknown norm"),
        (("--attack", "nothing"), "unknown attack"),
        (("--attack", "cw"), "cannot be run"),
        (("--label", "nothing"), "no such attribute"),
        (("--defence", "keep:me"), "--defence keep:me"),
        (("--space", "nowhere"), "no FeatureSpace here"),
        (("--pairs", "nowhere"), "no such file"),
    ],
)
def test_a_mistake_is_one_line(mms, tmp_path: Path, options: tuple, message: str) -> None:
    code, _, err = mms("robustness", "--out", tmp_path / "r", "--count", "2", *options)
    assert code == 2
    assert message in one_error_line(err)
