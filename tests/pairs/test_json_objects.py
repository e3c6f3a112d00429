"""JSON objects that hold all records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

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
    ],
)
def test_records_within_an_object(folder: Path, whole: dict[str, Any], indent: int | None) -> None:
    (folder / "t.json").write_text(json.dumps(whole, indent=indent))
    assert sorted(pair.captions for pair in pairs(folder / "t.json")) == BOTH


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
