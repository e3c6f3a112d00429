"""Records that stand in one JSON object: COCO's captions, retrieval splits, pandas' columns, and
captions or records by the picture's name."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from features.pairs.base import Record
from features.pairs.images import EXTENSIONS

FILE_NAME, CAPTION = "file_name", "caption"


def records_within(whole: dict[str, Any]) -> list[Any]:
    """The records of a JSON object; the object itself where it holds none that are known here.

    Known are COCO's `{"images": [...], "annotations": [...]}`, one list of objects under any name
    (`{"data": [...]}`), names of pictures with their captions or records (`{"a.png": "a cat"}`),
    and columns, as pandas writes them (`{"image": {"0": "a.png"}, "caption": {"0": "a cat"}}`).
    """
    if _are_objects(whole.get("images")) and _are_objects(whole.get("annotations")):
        return _coco(whole["images"], whole["annotations"])
    lists = [value for value in whole.values() if _are_objects(value)]
    if len(lists) == 1:
        return [_in_its_folder(record) for record in lists[0]]
    if whole and all(name.lower().endswith(EXTENSIONS) for name in whole):
        return [
            {FILE_NAME: name} | (value if isinstance(value, dict) else {CAPTION: value})
            for name, value in whole.items()
        ]
    columns = list(whole.values())
    if columns and all(isinstance(column, dict) and column for column in columns):
        return [
            {name: column.get(row) for name, column in whole.items()}
            for row in dict.fromkeys(row for column in columns for row in column)
        ]
    return [whole]


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _coco(images: list[Record], annotations: list[Record]) -> list[Record]:
    """COCO's pictures, each with the captions that its annotations hold."""
    captions = defaultdict(list)
    for annotation in annotations:
        if CAPTION in annotation:
            captions[str(annotation.get("image_id"))].append(annotation[CAPTION])
    if not captions:
        return images
    return [image | {CAPTION: captions[str(image.get("id"))]} for image in images]


def _in_its_folder(record: Record) -> Record:
    """A record whose picture's folder and name stand apart, as in Karpathy's splits, with both as
    its `filename`."""
    folder, name = record.get("filepath"), record.get("filename")
    if not isinstance(folder, str) or not isinstance(name, str):
        return record
    return {key: value for key, value in record.items() if key != "filepath"} | {
        "filename": f"{folder}/{name}"
    }
