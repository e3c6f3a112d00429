"""Pairs added to a store that is there."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from features.encoders.encoder import Encoder
from features.encoders.load import load_encoder
from features.errors import UserError
from features.pairs.open import open_pairs
from features.store.extend import ADDING, extend
from features.store.extract import extract
from features.store.store import ActivationStore
from features.store.write import write_store
from tests.conftest import draw_imagefolder, save_tiny_clip


@pytest.fixture(scope="module")
def encoder(clip_folder: Path) -> Encoder:
    return load_encoder(f"local-dir:{clip_folder}", "cpu")


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 other pairs, with an attribute of their own, one of them damaged."""
    folder = draw_imagefolder(tmp_path_factory.mktemp("pairs") / "more", 23, seed=5)
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").open()]
    text = "".join(json.dumps(line | {"place": "here"}) + "\n" for line in lines)
    (folder / "metadata.jsonl").write_text(text)
    (folder / "images" / "0007.png").write_bytes(b"no picture")
    return folder


def first(pairs: Path, encoder: Encoder, out: Path) -> ActivationStore:
    return extract(open_pairs(str(pairs)), encoder, out, workers=0, progress=False)


def add(pairs: Path, encoder: Encoder, out: Path) -> ActivationStore:
    return extend(open_pairs(str(pairs)), encoder, out, workers=0, progress=False)


def test_added_pairs_come_after_the_others(
    imagefolder: Path, more: Path, encoder: Encoder, tmp_path: Path
) -> None:
    one, two = first(imagefolder, encoder, tmp_path / "a"), first(more, encoder, tmp_path / "b")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").glob("shard-*")}
    both = add(more, encoder, tmp_path / "a")
    assert len(both) == 62 and both.config.shards == one.config.shards + two.config.shards
    for side in (0, 1):
        expected = torch.cat([one.rows(range(40))[side], two.rows(range(22))[side]])
        assert torch.equal(both.rows(range(62))[side], expected)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    samples = both.samples()
    assert samples["id"].to_pylist()[40:] == two.samples()["id"].to_pylist()
    assert samples["attribute.place"].to_pylist() == [None] * 40 + ["here"] * 22
    assert both.config.skipped == 1 and list(both.config.skipped_reasons.values()) == [1]
    assert len((tmp_path / "a" / "skipped.jsonl").read_text().splitlines()) == 1
    fingerprints = {one.fingerprint, two.fingerprint, both.fingerprint}
    assert len(fingerprints) == 3
    left = {path.name for path in (tmp_path / "a").iterdir()}
    assert ADDING not in left and not any(name.endswith(".tmp") for name in left)


def test_what_was_added_is_not_added_again(
    imagefolder: Path, more: Path, encoder: Encoder, tmp_path: Path
) -> None:
    first(imagefolder, encoder, tmp_path / "a")
    both = add(more, encoder, tmp_path / "a")
    for pairs in (more, imagefolder):
        assert add(pairs, encoder, tmp_path / "a").config == both.config
    third = draw_imagefolder(tmp_path / "third", 5, seed=9)
    whole = add(third, encoder, tmp_path / "a")
    assert len(whole) == 67 and len(whole.config.sources) == 3
    assert add(more, encoder, tmp_path / "a").config == whole.config
    with pytest.raises(UserError, match="another pairs"):
        first(imagefolder, encoder, tmp_path / "a")


def grown(pairs: Path, folder: Path) -> Path:
    """The same pairs, one of them with another caption, two of them twice, and one new."""
    shutil.copytree(pairs, folder)
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    other = json.loads(lines[3]) | {"text": "another caption"}
    new = Image.new("RGB", (20, 20), "teal")
    new.save(folder / "images" / "new.png")
    added = {"file_name": "images/new.png", "text": "new"}
    lines = [*lines[:3], json.dumps(other), *lines[4:], json.dumps(added), lines[8], lines[9]]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_of_pairs_that_have_grown_the_new_ones_are_added(
    imagefolder: Path, encoder: Encoder, tmp_path: Path, workers: int
) -> None:
    one = first(imagefolder, encoder, tmp_path / "a")
    pairs = open_pairs(str(grown(imagefolder, tmp_path / "grown")))
    both = extend(pairs, encoder, tmp_path / "a", workers=workers, strict=True, progress=False)
    assert both.samples()["caption"].to_pylist()[len(one) :] == ["another caption", "new"]
    for side in (0, 1):
        assert torch.equal(both.rows(range(len(one)))[side], one.rows(range(len(one)))[side])
    assert both.config.skipped == 0
    again = extend(pairs, encoder, tmp_path / "a", workers=workers, progress=False)
    assert again.config == both.config


def test_nothing_is_added_where_all_is_known(
    imagefolder: Path, encoder: Encoder, tmp_path: Path
) -> None:
    one = first(imagefolder, encoder, tmp_path / "a")
    moved = tmp_path / "moved"
    shutil.copytree(imagefolder, moved)
    lines = (moved / "metadata.jsonl").read_text().splitlines()
    (moved / "metadata.jsonl").write_text("\n".join(lines[5:]))
    both = add(moved, encoder, tmp_path / "a")
    assert len(both) == len(one) and torch.equal(both.rows([7])[0], one.rows([7])[0])


def test_of_imported_embeddings_no_content_is_known(
    imagefolder: Path, encoder: Encoder, tmp_path: Path
) -> None:
    one = first(imagefolder, encoder, tmp_path / "a")
    samples = one.samples().drop_columns(["content"])
    write_store(tmp_path / "b", *one.rows(range(len(one))), samples, one.config)
    assert len(add(imagefolder, encoder, tmp_path / "b")) == len(one)  # by its source
    more = grown(imagefolder, tmp_path / "grown")
    both = add(more, encoder, tmp_path / "b")
    assert len(both) == 2 * len(one) + 3
    assert len(add(imagefolder, encoder, tmp_path / "b")) == len(both)


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    "name",
    [
        "part-00000.parquet",
        "shard-00000.safetensors",
        "shard-00001.safetensors",
        "samples.parquet",
        "skipped.jsonl",
        "config.json",
    ],
)
@pytest.mark.parametrize("nth", [1, 2])
def test_killed_it_is_as_it_was_and_goes_on(
    imagefolder: Path,
    more: Path,
    encoder: Encoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    nth: int,
) -> None:
    """Where a file of this name would be put in place for the nth time, the run dies."""
    before = first(imagefolder, encoder, tmp_path / "a")
    whole = first(imagefolder, encoder, tmp_path / "whole")
    whole = add(more, encoder, tmp_path / "whole")
    replace, seen = os.replace, []

    def dies(source: Any, target: Any) -> None:
        seen.append(Path(target).name)
        if seen.count(name) == nth:
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", dies)
        try:
            add(more, encoder, tmp_path / "a")
        except Killed:
            cut = ActivationStore.open(tmp_path / "a")
            assert cut.config == before.config
            assert len(cut.samples()) == 40
            assert cut.samples()["id"].equals(whole.samples()["id"][:40])
    both = add(more, encoder, tmp_path / "a")
    assert dataclasses.asdict(both.config) == dataclasses.asdict(whole.config)
    assert both.samples().equals(whole.samples())
    assert torch.equal(both.rows(range(62))[0], whole.rows(range(62))[0])
    assert not (tmp_path / "a" / ADDING).exists()


def test_a_kill_after_the_end_leaves_only_a_folder(
    imagefolder: Path, more: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first(imagefolder, encoder, tmp_path / "a")

    def dies(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", dies)
        with pytest.raises(Killed):
            add(more, encoder, tmp_path / "a")
    assert len(ActivationStore.open(tmp_path / "a")) == 62
    assert len(add(more, encoder, tmp_path / "a")) == 62
    assert not (tmp_path / "a" / ADDING).exists()


def test_what_does_not_go_together_is_refused(
    imagefolder: Path, more: Path, encoder: Encoder, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no activation store"):
        add(more, encoder, tmp_path / "nowhere")
    store = first(imagefolder, encoder, tmp_path / "a")
    other = load_encoder(f"local-dir:{save_tiny_clip(tmp_path / 'other', seed=4)}", "cpu")
    with pytest.raises(UserError, match=r"holds embeddings of local-dir:tiny, not of .*other"):
        add(more, other, tmp_path / "a")
    source = open_pairs(str(more))
    with pytest.raises(UserError, match="encoded in fp32, now bf16"):
        extend(source, encoder, tmp_path / "a", precision="bf16", progress=False)
    with pytest.raises(UserError, match=r"images/0007.png: "):
        extend(source, encoder, tmp_path / "a", workers=0, strict=True, progress=False)
    assert ActivationStore.open(tmp_path / "a").config == store.config


def test_the_command_adds(
    imagefolder: Path, more: Path, clip_folder: Path, tmp_path: Path, mms: Callable
) -> None:
    common = ("--encoder", f"local-dir:{clip_folder}", "--out", tmp_path / "s", "--device", "cpu")
    code, out, err = mms("extract", "--pairs", imagefolder, *common)
    assert code == 0 and "40 pairs" in out, err
    code, out, err = mms("extract", "--pairs", more, "--add", *common)
    assert code == 0 and "62 pairs" in out and "1 pairs skipped" in err
    steps = ("--dictionary", "identity", "--out", tmp_path / "d")
    assert mms("fit", "--store", tmp_path / "s", *steps)[0] == 0
    scored = ("--dictionary", tmp_path / "d", "--out", tmp_path / "space")
    assert mms("score", "--store", tmp_path / "s", *scored)[0] == 0
    code, _, err = mms("extract", "--pairs", more, *common)
    assert code == 2 and "another pairs" in err and "--add" in err
