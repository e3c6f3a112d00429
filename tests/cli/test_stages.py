"""The stages one by one, as a user types them."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from tests.cli.conftest import one_error_line
from tests.conftest import Mms


def test_steps_alone_give_what_run_gives(
    finished: Path, clip_folder: Path, imagefolder: Path, tmp_path: Path, mms: Mms
) -> None:
    store, dictionary, space = tmp_path / "store", tmp_path / "dictionary", tmp_path / "space"
    encoder = f"local-dir:{clip_folder}"
    extract = ("--pairs", imagefolder, "--encoder", encoder, "--device", "cpu", "--workers", "0")
    assert mms("extract", *extract, "--out", store)[0] == 0
    fit = ("--features", "24", "--k", "4", "--device", "cpu")
    code, out, _ = mms("fit", "--store", store, *fit, "--out", dictionary)
    assert code == 0
    assert "24 features" in out
    score = ("--store", store, "--dictionary", dictionary, "--pairs", imagefolder)
    assert mms("score", *score, "--out", space)[0] == 0
    assert mms("report", space, "--out", tmp_path / "page.html")[0] == 0
    assert "<!doctype html>" in (tmp_path / "page.html").read_text()
    mine = pq.read_table(space / "features.parquet").to_pandas()
    assert mine.equals(pq.read_table(finished / "space" / "features.parquet").to_pandas())


def test_a_users_vocabulary_names_the_features(
    finished: Path, imagefolder: Path, tmp_path: Path, mms: Mms
) -> None:
    words = tmp_path / "words.txt"
    words.write_text("Red\na blue\ncolour: green\n\n")
    score = ("--store", finished / "store", "--dictionary", finished / "dictionary")
    assert mms("score", *score, "--vocabulary", words, "--out", tmp_path / "space")[0] == 0
    names = pq.read_table(tmp_path / "space" / "features.parquet")["name"].to_pylist()
    parts = {part for name in names if name for part in name.split(", ")}
    assert {"red", "a blue", "colour: green"} & parts
    assert parts <= {"red", "a blue", "colour: green"}
    words.write_text("\n")
    code, _, err = mms("score", *score, "--vocabulary", words, "--out", tmp_path / "other")
    assert code == 2
    assert "no terms" in one_error_line(err)
