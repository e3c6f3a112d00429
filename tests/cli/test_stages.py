"""The stages one by one, as a user types them."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from tests.cli.conftest import TRAINING, one_error_line
from tests.conftest import Mms


def test_steps_alone_give_what_run_gives(
    finished: Path, clip_folder: Path, imagefolder: Path, tmp_path: Path, mms: Mms
) -> None:
    store, dictionary, space = tmp_path / "store", tmp_path / "dictionary", tmp_path / "space"
    encoder = f"local-dir:{clip_folder}"
    extract = ("--pairs", imagefolder, "--encoder", encoder, "--device", "cpu", "--workers", "0")
    assert mms("extract", *extract, "--out", store)[0] == 0
    fit = ("--store", store, *TRAINING, "--device", "cpu")
    code, out, _ = mms("fit", *fit, "--out", dictionary)
    assert code == 0
    assert "24 features" in out
    score = ("--store", store, "--dictionary", dictionary, "--pairs", imagefolder)
    assert mms("score", *score, "--out", space)[0] == 0
    assert mms("report", space, "--out", tmp_path / "page.html")[0] == 0
    assert "<!doctype html>" in (tmp_path / "page.html").read_text()
    mine = pq.read_table(space / "features.parquet").to_pandas()
    assert mine.equals(pq.read_table(finished / "space" / "features.parquet").to_pandas())


def test_an_extraction_that_reads_no_pair_fails(
    clip_folder: Path, tmp_path: Path, mms: Mms
) -> None:
    (tmp_path / "t.csv").write_text("image,caption\ngone.png,x\n")
    extract = ("--pairs", tmp_path / "t.csv", "--encoder", f"local-dir:{clip_folder}")
    for _ in range(2):
        code, _, err = mms("extract", *extract, "--out", tmp_path / "store", "--workers", "0")
        assert code == 2 and "none of the 1 records could be read" in one_error_line(err)
        assert "gone.png; looked" in (tmp_path / "store" / "skipped.jsonl").read_text()


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


def test_a_taken_folder_is_refused_before_anything_is_scored(
    finished: Path, tmp_path: Path, mms: Mms
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    score = ("--store", finished / "store", "--dictionary", "nowhere")
    code, _, err = mms("score", *score, "--out", tmp_path / "mine")
    assert code == 2 and "mine: exists and is no FeatureSpace" in one_error_line(err)


def test_nothing_is_written_over_another_artifact(
    finished: Path, clip_folder: Path, imagefolder: Path, mms: Mms
) -> None:
    store, dictionary, space = (finished / part for part in ("store", "dictionary", "space"))
    before = {file: file.read_bytes() for file in finished.rglob("*.json")}
    extract = ("extract", "--pairs", imagefolder, "--encoder", f"local-dir:{clip_folder}")
    attempts = [
        (("report", space, "--out", space / "config.json"), "exists and is no report"),
        (("fit", "--store", store, "--out", store), "exists already and is no dictionary"),
        (("fit", "--store", store, "--out", space), "exists already and is no dictionary"),
        ((*extract, "--out", dictionary), "exists already and is no activation store"),
        ((*extract, "--out", space), "exists already and is no activation store"),
        (("drift", space, space, "--out", space / "config.json"), "File exists; name another"),
    ]
    for command, message in attempts:
        code, _, err = mms(*command)
        assert code == 2 and message in one_error_line(err)
    assert {file: file.read_bytes() for file in finished.rglob("*.json")} == before


def test_the_folder_of_a_run_stands_for_none_of_its_parts(
    finished: Path, tmp_path: Path, mms: Mms
) -> None:
    out = ("--out", tmp_path / "out")
    for part, command in (
        ("space", ("report", finished, *out)),
        ("store", ("fit", "--store", finished, *out)),
        ("dictionary", ("score", "--store", finished / "store", "--dictionary", finished, *out)),
    ):
        code, _, err = mms(*command)
        assert code == 2 and f"give {finished / part}" in one_error_line(err)


def test_a_page_is_no_folder(finished: Path, tmp_path: Path, mms: Mms) -> None:
    code, _, err = mms("report", finished / "space", "--no-evidence", "--out", tmp_path)
    assert code == 2 and f"{tmp_path}: is a folder; name a file" in one_error_line(err)


def test_thumbnails_of_other_pairs_are_said(
    finished: Path, imagefolder: Path, tmp_path: Path, mms: Mms
) -> None:
    score = ("--store", finished / "store", "--dictionary", finished / "dictionary")
    for pairs, said in ((imagefolder, False), ("embedded:heldout", True)):
        code, _, err = mms("score", *score, "--pairs", pairs, "--out", tmp_path / "space")
        assert code == 0 and (f"{pairs}: other pairs than" in err) == said
