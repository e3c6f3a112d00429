"""JSON objects that hold all records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from features.errors import UserError
from features.pairs.json_objects import records_within
from features.pairs.open import open_pairs
from tests.pairs.reading import pairs, png

COCO = {
    "info": {"year": 2017},
    "images": [{"id": 7, "file_name": "a.png", "height": 8}, {"id": 3, "file_name": "b.png"}],
    "annotations": [
        {"id": 0, "image_id": 3, "caption": "second"},
        {"id": 1, "image_id": 7, "caption": "first"},
        {"id": 2, "image_id": 3, "caption": "again"},
    ],
}
SPLITS = {
    "dataset": "coco",
    "images": [
        {"filepath": "train", "filename": "a.png", "sentences": [{"raw": "first", "tokens": []}]},
        {
            "filepath": "val",
            "filename": "b.png",
            "sentences": [{"raw": "second"}, {"raw": "again"}],
        },
    ],
}
BOTH = [("first",), ("second", "again")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "train/a.png", "val/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png())
    return tmp_path


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    "whole",
    [
        COCO,
        SPLITS,
        {"data": [{"image": "a.png", "caption": "first"}, {"image": "b.png", "caption": BOTH[1]}]},
        {"a.png": "first", "b.png": ["second", "again"]},
        {"a.png": {"text": "first"}, "b.png": {"text": ["second", "again"]}},
        {"image": {"0": "a.png", "1": "b.png"}, "text": {"0": "first", "1": ["second", "again"]}},
        {"a": ["first"], "b": ["second", "again"]},
        {"train/a": ["first"], "val/b": ["second", "again"]},
        {"7": {"image": "a.png", "text": "first"}, "8": {"image": "b.png", "text": BOTH[1]}},
        {"a": {"text": "first"}, "b": {"text": BOTH[1]}},
        {"image": ["a.png", "b.png"], "caption": ["first", ["second", "again"]]},
        {
            "train": [{"image": "a.png", "text": "first"}],
            "val": [{"image": "b.png", "text": BOTH[1]}],
        },
        {"train2017": {"a.png": "first"}, "test": {"b.png": BOTH[1]}},
        {
            "columns": ["image", "text"],
            "index": [0, 1],
            "data": [["a.png", "first"], ["b.png", BOTH[1]]],
        },
        [["image", "text"], ["a.png", "first"], ["b.png", ["second", "again"]]],
    ],
)
def test_records_within_a_value(folder: Path, whole: Any, indent: int | None) -> None:
    (folder / "t.json").write_text(json.dumps(whole, indent=indent))
    assert sorted(pair.captions for pair in pairs(folder / "t.json")) == BOTH


def test_ids_and_splits_are_kept(folder: Path) -> None:
    (folder / "t.json").write_text(json.dumps({"7": {"image": "a.png", "text": "first"}}))
    assert [pair.id for pair in pairs(folder / "t.json")] == ["7"]
    splits = {"train": [{"image": "a.png", "text": "x"}], "val": [{"image": "b.png", "text": "y"}]}
    (folder / "t.json").write_text(json.dumps(splits))
    assert [pair.attributes for pair in pairs(folder / "t.json")] == [
        {"split": "train"},
        {"split": "val"},
    ]


@pytest.mark.parametrize(
    "record",
    [
        {"image": "a.png", "caption": "x"},
        {"image": ["a.png"], "caption": ["x", "y"]},
        {"picture1": "a.png", "words2": "x"},
        {"picture": "a.png", "words": ["x"]},
    ],
)
def test_one_record_is_one_record(record: dict[str, Any]) -> None:
    assert records_within(record) == [record]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    "whole",
    [
        {f"{number:06}": {"words": "x" * 99} for number in range(5000)},
        {f"{number:06}": number for number in range(5000)},
        {"x" * 5000: 1},
        [["a.png", "first"], ["b.png", "second"]],
    ],
)
def test_what_is_expected_is_said_in_short(folder: Path, whole: Any, indent: int | None) -> None:
    (folder / "t.json").write_text(json.dumps(whole, indent=indent))
    with pytest.raises(UserError, match=r"objects? .*such as \{\"image\": \"a.png\"") as raised:
        open_pairs(str(folder / "t.json"))
    assert len(str(raised.value)) < 1000 and "first line" not in str(raised.value)


def test_records_that_lack_a_column_are_told_no_layout(folder: Path) -> None:
    (folder / "t.json").write_text(json.dumps([{"image": "a.png", "words": "x"}]))
    with pytest.raises(UserError, match="no caption column among image, words") as raised:
        open_pairs(str(folder / "t.json"))
    assert str(raised.value).endswith("--caption-column")


def test_an_object_a_line_is_no_object_of_records(folder: Path) -> None:
    lines = [{"image": f"{name}.png", "caption": name} for name in "ab"]
    (folder / "t.json").write_text("\n".join(map(json.dumps, lines)))
    assert [pair.captions for pair in pairs(folder / "t.json")] == [("a",), ("b",)]
    (folder / "t.json").write_text(json.dumps(lines[0]))
    assert [pair.captions for pair in pairs(folder / "t.json")] == [("a",)]


def test_cocos_pictures_lie_beside_its_annotations(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / "val2017").mkdir(exist_ok=True)
        (tmp_path / "val2017" / name).write_bytes(png())
    (tmp_path / "annotations").mkdir()
    table = tmp_path / "annotations" / "captions_val2017.json"
    table.write_text(json.dumps(COCO))
    (first, _) = pairs(table)
    assert first.id == "7" and first.attributes == {"height": "8"}
