"""Records that stand in one JSON value: COCO's captions, retrieval splits, pandas' columns, and
captions or records by the picture's name."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from features.pairs.base import Record
from features.pairs.images import EXTENSIONS
from features.pairs.records import IMAGE_COLUMNS, LESS_USUAL, USUAL_COLUMNS, usual_form
from features.pairs.several import SPLIT, is_split

FILE_NAME, CAPTION = "file_name", "caption"


def records_of(whole: list[Any] | dict[str, Any]) -> list[Any]:
    """The records of a JSON value; lists whose first one names their columns are records too."""
    if isinstance(whole, dict):
        return records_within(whole)
    if whole and all(isinstance(row, list) for row in whole) and _names_columns(whole[0]):
        return [dict(zip(whole[0], row, strict=False)) for row in whole[1:]]
    return whole


def records_within(whole: dict[str, Any]) -> list[Any]:
    """The records of a JSON object; the object itself where it holds none that are known here.

    Known are COCO's `{"images": [...], "annotations": [...]}`, one list of objects under any name
    (`{"data": [...]}`), splits (`{"train": [...], "val": [...]}`), names of pictures with their
    captions or records (`{"a.png": "a cat"}`), ids with theirs (`{"000001": ["a cat"]}`,
    `{"7": {"image": "a.png", "caption": "a cat"}}`), and columns, as pandas and datasets write them
    (`{"image": {"0": "a.png"}, "caption": {"0": "a cat"}}`, `{"image": ["a.png"], "caption":
    ["a cat"]}`, `{"columns": ["image", "caption"], "data": [["a.png", "a cat"]]}`).
    """
    values = list(whole.values())
    if _are_objects(whole.get("images")) and _are_objects(whole.get("annotations")):
        return _coco(whole["images"], whole["annotations"])
    if whole and all(is_split(name) for name in whole) and _all_are(values, list, dict):
        return [
            record | {SPLIT: record.get(SPLIT, name)} if isinstance(record, dict) else record
            for name, records in whole.items()
            for record in records_of(records)
        ]
    if isinstance(whole.get("data"), list) and _names_columns(whole.get("columns")):
        return records_of([whole["columns"], *whole["data"]])
    lists = [value for value in values if _are_objects(value)]
    if len(lists) == 1:
        return [_in_its_folder(record) for record in lists[0]]
    if whole and all(name.lower().endswith(EXTENSIONS) for name in whole):
        return [
            {FILE_NAME: name} | (value if isinstance(value, dict) else {CAPTION: value})
            for name, value in whole.items()
        ]
    if _names_columns(list(whole)):
        return _of_columns(whole)
    if values and all(isinstance(value, dict) and _names_columns(list(value)) for value in values):
        return [_with_picture(name, record) for name, record in whole.items()]
    if values and all(map(_are_captions, whole, values)):
        return [{FILE_NAME: name, CAPTION: captions} for name, captions in whole.items()]
    return _of_columns(whole)


def _of_columns(whole: dict[str, Any]) -> list[Any]:
    """The records of columns, each an object or, all of one length, a list; else the object."""
    columns = list(whole.values())
    if columns and all(isinstance(column, dict) and column for column in columns):
        return [
            {name: column.get(row) for name, column in whole.items()}
            for row in dict.fromkeys(row for column in columns for row in column)
        ]
    if _all_are(columns, list) and len(set(map(len, columns))) == 1:
        return [dict(zip(whole, row, strict=True)) for row in zip(*columns, strict=True)]
    return [whole]


def _with_picture(name: str, record: Record) -> Record:
    """A record by its id, which names its picture where nothing else does."""
    images = (*IMAGE_COLUMNS, *LESS_USUAL["image"])
    if any(usual_form(column) in images for column in record):
        return {"id": name} | record
    return {FILE_NAME: name} | record


def _are_captions(name: str, value: Any) -> bool:
    """Whether these may be a picture, called without its ending, and its captions."""
    if isinstance(value, str):
        return any(map(str.isdigit, name)) and not value.lower().endswith(EXTENSIONS)
    return _all_are(value, str)


def _names_columns(names: Any) -> bool:
    """Whether these are the names of columns, one of them a usual one."""
    return _all_are(names, str) and any(usual_form(name) in USUAL_COLUMNS for name in names)


def _all_are(values: Any, *kinds: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kinds) for value in values)


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
