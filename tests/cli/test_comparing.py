"""`mms compare`, `drift` and `concepts` as a user types them."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import one_error_line, run_options
from tests.conftest import Mms, run_mms


@pytest.fixture(scope="module")
def other_run(
    clip_folder: Path, imagefolder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished `mms run` with a group dictionary."""
    out = tmp_path_factory.mktemp("other")
    options = (*run_options(clip_folder, imagefolder), "--dictionary", "group")
    assert run_mms("run", *options, "--out", out) == 0
    return out


def test_compare_writes_a_report_with_matched_features(
    finished: Path, other_run: Path, clip_folder: Path, imagefolder: Path, tmp_path: Path, mms: Mms
) -> None:
    spaces = (finished / "space", other_run / "space")
    on = ("--pairs", imagefolder, "--encoder", f"local-dir:{clip_folder}", "--device", "cpu")
    code, out, err = mms("compare", *spaces, *on, "--out", tmp_path)
    assert code == 0, err
    assert "local-dir:tiny, group" in out
    record = json.loads((tmp_path / "comparison.json").read_text())
    assert [space["kind"] for space in record["spaces"]] == ["topk", "group"]
    assert len(record["matches"]) == 1
    assert (tmp_path / "comparison.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "comparison.md").read_text().count("\n") == 4
    code, _, err = mms("compare", *spaces, "--label", "one", "--out", tmp_path)
    assert code == 2 and "1 labels for 2 spaces" in one_error_line(err)
    code, _, err = mms("compare", spaces[0], "--out", tmp_path)
    assert code == 2 and "at least two" in one_error_line(err)


def test_drift_exits_with_1_above_the_threshold(
    finished: Path, other_run: Path, clip_folder: Path, imagefolder: Path, tmp_path: Path, mms: Mms
) -> None:
    old, new = finished / "space", other_run / "space"
    code, out, _ = mms("drift", old, old, "--device", "cpu", "--out", tmp_path / "same")
    assert code == 0
    assert "0.0% of" in out
    code, _, err = mms("drift", old, new, "--device", "cpu", "--out", tmp_path / "none")
    assert code == 2 and "--pairs" in one_error_line(err)
    on = ("--pairs", imagefolder, "--encoder", f"local-dir:{clip_folder}", "--device", "cpu")
    code, _, err = mms("drift", old, new, *on, "--threshold", "0", "--out", tmp_path / "new")
    record = json.loads((tmp_path / "new" / "drift.json").read_text())
    assert record["share"] > 0 and record["exceeded"]
    assert code == 1 and "more than the threshold" in err
    code, _, _ = mms("drift", old, new, *on, "--threshold", "1", "--out", tmp_path / "new")
    assert code == 0


def test_concepts_from_a_file_and_from_an_attribute(
    finished: Path, clip_folder: Path, imagefolder: Path, tmp_path: Path, mms: Mms
) -> None:
    (tmp_path / "concepts.txt").write_text("circle\nunicorn\n")
    space = ("--space", finished / "space", "--pairs", imagefolder, "--device", "cpu")
    space = (*space, "--encoder", f"local-dir:{clip_folder}")
    asked = ("--concepts", tmp_path / "concepts.txt")
    code, out, err = mms("concepts", *space, *asked, "--out", tmp_path / "out")
    assert code == 0, err
    assert "unicorn: too few pairs to say. 0 of 40 pairs have it" in out
    record = json.loads((tmp_path / "out" / "concepts.json").read_text())
    assert [concept["name"] for concept in record["concepts"]] == ["circle", "unicorn"]
    code, _, err = mms("concepts", *space, "--attribute", "size", "--out", tmp_path / "early")
    assert code == 2 and "they have" in one_error_line(err)
    assert not (tmp_path / "early").exists(), "said before the pairs are encoded"
    code, _, err = mms("concepts", *space, "--out", tmp_path / "out")
    assert code == 2 and "--concepts FILE" in one_error_line(err)


def test_an_output_that_knows_no_other_script_gets_escapes(
    finished: Path,
    clip_folder: Path,
    imagefolder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "concepts.txt").write_text("круг\n", encoding="utf-8")
    space = ("--space", finished / "space", "--pairs", imagefolder, "--device", "cpu")
    space = (*space, "--encoder", f"local-dir:{clip_folder}")
    output = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", output)
    asked = ("--concepts", tmp_path / "concepts.txt", "--out", tmp_path / "out")
    assert run_mms("concepts", *space, *asked) == 0
    output.flush()
    assert b"\\u043a\\u0440\\u0443\\u0433: too few" in output.buffer.getvalue()  # type: ignore[attr-defined]


def test_an_encoder_that_belongs_to_no_space_is_refused(
    finished: Path, imagefolder: Path, tmp_path: Path, mms: Mms
) -> None:
    space = ("--space", finished / "space", "--pairs", imagefolder, "--attribute", "colour")
    code, _, err = mms("concepts", *space, "--encoder", "embedded", "--out", tmp_path)
    assert code == 2 and "none of the spaces belongs to it" in one_error_line(err)
