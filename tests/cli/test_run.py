"""`mms run` as a user types it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.autoencoders.record import HERE
from tests.cli.conftest import ON_THE_CPU, one_error_line, run_options
from tests.conftest import Mms, draw_imagefolder, save_tiny_clip


def test_run_leaves_a_space_and_a_report(finished: Path) -> None:
    features = pq.read_table(finished / "space" / "features.parquet")
    assert len(features) == 24
    assert set(features["class"].to_pylist()) <= {"ImgD", "TextD", "CrossD", "unscored"}
    assert (finished / "report.html").read_text().startswith("<!doctype html>")


def test_running_again_gives_the_same_without_encoding_again(
    finished: Path, clip_folder: Path, imagefolder: Path, mms: Mms
) -> None:
    shard = finished / "store" / "shard-00000.safetensors"
    features = pq.read_table(finished / "space" / "features.parquet")
    before = shard.stat()
    code, out, _ = mms("run", *run_options(clip_folder, imagefolder), "--out", finished)
    assert code == 0
    assert "nothing is computed again" in out
    assert str(finished / "report.html") in out.replace("\n", "")
    assert (shard.stat().st_ino, shard.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    again = pq.read_table(finished / "space" / "features.parquet")
    assert again.to_pandas().equals(features.to_pandas())


def test_a_truncated_image_is_skipped_counted_and_listed(
    clip_folder: Path, tmp_path: Path, mms: Mms
) -> None:
    pairs = draw_imagefolder(tmp_path / "pairs", count=24)
    image = pairs / "images" / "0003.png"
    image.write_bytes(image.read_bytes()[:60])
    code, _, err = mms("run", *run_options(clip_folder, pairs), "--out", tmp_path / "out")
    assert code == 0
    assert "1 pairs skipped" in err
    skipped = (tmp_path / "out" / "store" / "skipped.jsonl").read_text()
    assert "0003.png" in skipped
    strict = ("--out", tmp_path / "strict", "--strict")
    code, _, err = mms("run", *run_options(clip_folder, pairs), *strict)
    assert code == 2
    assert "0003.png" in one_error_line(err)


def test_a_space_of_another_encoder_is_refused(
    finished: Path, imagefolder: Path, tmp_path: Path, mms: Mms
) -> None:
    other = save_tiny_clip(tmp_path / "other", seed=1)
    options = ("--space", finished / "space", "--out", tmp_path / "out")
    encoder = ("--encoder", f"local-dir:{other}")
    code, _, err = mms("run", "--pairs", imagefolder, *encoder, *ON_THE_CPU, *options)
    assert code == 2
    assert "made for the encoder local-dir:tiny" in one_error_line(err)
    code, _, err = mms("run", *run_options(other, imagefolder), *options)
    assert code == 2
    assert "leave out --dictionary, --features" in one_error_line(err)


def test_a_space_can_be_taken_to_other_pairs(
    finished: Path, clip_folder: Path, tmp_path: Path, mms: Mms
) -> None:
    pairs = draw_imagefolder(tmp_path / "pairs", count=30, seed=5)
    options = ("--space", finished / "space", "--out", tmp_path / "out")
    encoder = ("--encoder", f"local-dir:{clip_folder}")
    code, _, _ = mms("run", "--pairs", pairs, *encoder, *ON_THE_CPU, *options)
    assert code == 0
    assert not (tmp_path / "out" / "dictionary").exists()
    weights = [p / "space" / "dictionary.safetensors" for p in (finished, tmp_path / "out")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_other_settings_in_the_same_folder_are_refused(
    finished: Path, clip_folder: Path, imagefolder: Path, tmp_path: Path, mms: Mms
) -> None:
    words = tmp_path / "words.txt"
    words.write_text("red\n")
    other = save_tiny_clip(tmp_path / "other", seed=1)
    for option, value, name in (
        ("seed", "5", "dictionary, seed"),
        ("dictionary", "batchtopk", "dictionary"),
        ("vocabulary", words, "vocabulary"),
        ("judge", f"local-dir:{other}", "judge"),
    ):
        options = (f"--{option}", value, "--out", finished)
        code, _, err = mms("run", *run_options(clip_folder, imagefolder), *options)
        assert code == 2
        assert f"other settings ({name})" in one_error_line(err)
    assert not (finished / "judge-store").exists()


def test_a_mistake_can_be_mended_in_the_same_folder(
    clip_folder: Path, imagefolder: Path, tmp_path: Path, mms: Mms
) -> None:
    run = ("run", *run_options(clip_folder, imagefolder), "--out", tmp_path / "out")
    assert mms(*run, "--k", "0")[0] == 2
    assert mms(*run)[0] == 0
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_folder_that_cannot_be_written_is_one_clear_line(
    clip_folder: Path, imagefolder: Path, tmp_path: Path, mms: Mms
) -> None:
    (tmp_path / "file").write_text("")
    options = ("--out", tmp_path / "file" / "out")
    code, _, err = mms("run", *run_options(clip_folder, imagefolder), *options)
    assert code == 2
    assert "Not a directory" in one_error_line(err)


def bad_empty_folder(folder: Path) -> str:
    return str(folder)


def bad_csv(folder: Path) -> str:
    (folder / "pairs.csv").write_text("image,price\na.png,3\n")
    return str(folder / "pairs.csv")


def bad_missing(folder: Path) -> str:
    return str(folder / "nowhere")


def bad_all_unreadable(folder: Path) -> str:
    (folder / "metadata.jsonl").write_text('{"file_name": "gone.png", "text": "a circle"}\n')
    return str(folder)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (bad_empty_folder, "no metadata.jsonl"),
        (bad_csv, "no caption column"),
        (bad_missing, "no such file or folder"),
        (bad_all_unreadable, "none of the 1 records could be read"),
    ],
)
def test_bad_pairs_are_one_clear_line(
    make: Callable[[Path], str], message: str, clip_folder: Path, tmp_path: Path, mms: Mms
) -> None:
    (tmp_path / "pairs").mkdir()
    spec = make(tmp_path / "pairs")
    encoder = f"local-dir:{clip_folder}"
    code, _, err = mms("run", "--pairs", spec, "--encoder", encoder, "--out", tmp_path / "out")
    assert code == 2
    assert message in one_error_line(err)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--encoder", "ViT-B-32/laion2b_s34b_b79"), "ViT-B-32/laion2b_s34b_b79k"),
        (("--encoder", "local-dir:nowhere"), "no open_clip_config.json"),
        (("--dictionary", "ica"), "unknown kind of dictionary"),
        (("--k", "0"), "k 0"),
        (("--k", "25"), "k 25"),
        (("--steps", "5", "--epochs", "1"), "steps and epochs"),
        (("--tracker", "neptune"), "tracker neptune"),
        (("--selection", "fast"), "selection fast"),
    ],
)
def test_bad_options_are_one_clear_line(
    options: tuple[str, ...],
    message: str,
    clip_folder: Path,
    imagefolder: Path,
    tmp_path: Path,
    mms: Mms,
) -> None:
    every = (*run_options(clip_folder, imagefolder), "--out", tmp_path / "out")
    code, _, err = mms("run", *every, *options)
    assert code == 2
    assert message in one_error_line(err)
    assert not (tmp_path / "out").exists()  # nothing was encoded first


@pytest.mark.parametrize("seed", ["-1", str(2**32)])
def test_seeds_that_numpy_takes(seed: str, tmp_path: Path, mms: Mms) -> None:
    for command in (
        ("run",),
        ("robustness",),
        ("attributes", "predict", "--attribute", "kind"),
        ("concepts", "--space", "photos", "--attribute", "kind"),
    ):
        code, _, err = mms(*command, "--pairs", "photos", "--out", tmp_path / "o", "--seed", seed)
        assert code == 2 and "--seed" in err


def test_a_killed_run_goes_on(clip_folder: Path, tmp_path: Path, mms: Mms) -> None:
    pairs = draw_imagefolder(tmp_path / "pairs", count=600)
    options = run_options(clip_folder, pairs)
    command = [sys.executable, "-m", "mms_apps.cli", "run", *options]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "out")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    shard = tmp_path / "out" / "store" / "shard-00000.safetensors"
    give_up = time.monotonic() + 120
    while not shard.exists() and time.monotonic() < give_up:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    killed = shard.stat()
    assert not (tmp_path / "out" / "space").exists()
    assert mms("run", *options, "--out", tmp_path / "out")[0] == 0
    assert shard.stat().st_mtime_ns == killed.st_mtime_ns
    assert mms("run", *options, "--out", tmp_path / "whole")[0] == 0
    resumed, whole = (
        pq.read_table(tmp_path / name / "space" / "features.parquet").to_pandas()
        for name in ("out", "whole")
    )
    assert resumed.equals(whole)


def test_the_embedded_world_with_the_shipped_weights(tmp_path: Path, mms: Mms) -> None:
    options = ("--pairs", "embedded:heldout", "--encoder", "embedded", "--dictionary", "identity")
    code, out, _ = mms("run", *options, "--out", tmp_path / "out", "--workers", "0")
    assert code == 0
    assert "judge embedded-ssl" in out
    assert "not independent" not in out


def test_a_dictionary_of_other_dimensions_is_refused_before_anything_is_encoded(
    clip_folder: Path, imagefolder: Path, tmp_path: Path, mms: Mms
) -> None:
    converted = tmp_path / "converted"
    assert mms("convert", HERE / "saelens-topk", "--out", converted, "--device", "cpu")[0] == 0
    given = ("--pairs", imagefolder, "--encoder", f"local-dir:{clip_folder}")
    code, _, err = mms("run", *given, "--dictionary", converted, "--out", tmp_path / "out")
    assert code == 2 and "for embeddings of 128 dimensions" in one_error_line(err)
    assert not (tmp_path / "out").exists()
