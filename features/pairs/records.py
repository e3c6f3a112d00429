"""A record of a table or a .json file as a pair."""

from __future__ import annotations

from collections.abc import Iterable

from features.errors import UserError
from features.pairs.base import Pair, Record, Skipped
from features.pairs.images import UnreadableImage, decode_image

IMAGE_COLUMNS = ("image", "file_name", "filepath", "path")
CAPTION_COLUMNS = ("caption", "captions", "text", "texts", "title")
NOT_ATTRIBUTES = frozenset(("id", *CAPTION_COLUMNS))


def record_captions(record: Record) -> tuple[str, ...]:
    """The captions of a record's first caption column that has any, stripped."""
    for column in CAPTION_COLUMNS:
        value = record.get(column)
        if value is None:
            continue
        texts = value if isinstance(value, list) else [value]
        captions = tuple([t.strip() for t in texts if isinstance(t, str) and t.strip()])
        if captions:
            return captions
    return ()


def record_attributes(record: Record, image_column: str | None) -> dict[str, str | None]:
    """A record's other strings (and nulls), and its tags joined by "|"."""
    attributes: dict[str, str | None] = {}
    for name, value in record.items():
        if name == "tags" and isinstance(value, list):
            attributes[name] = "|".join(map(str, value))
        elif name == image_column or name in NOT_ATTRIBUTES:
            continue
        elif value is None or isinstance(value, str):
            attributes[name] = value
    return attributes


def make_pair(
    record: Record,
    image_column: str | None,
    content: bytes | None,
    location: str,
) -> Pair | Skipped:
    """A pair from a record and its image file's content (None where the file is missing)."""
    identity = str(record.get("id") or location)
    captions = record_captions(record)
    if not captions:
        return Skipped(identity, location, "missing caption")
    if content is None:
        return Skipped(identity, location, f"missing image file: {location}")
    try:
        image = decode_image(content)
    except UnreadableImage as error:
        return Skipped(identity, location, str(error))
    return Pair(identity, image, captions, record_attributes(record, image_column), location)


def image_column(found: Iterable[str], where: str) -> str:
    """The image column among the columns found.

    Raises:
        UserError: there is none, or no caption column.
    """
    names = list(dict.fromkeys(found))
    image = next((name for name in IMAGE_COLUMNS if name in names), None)
    if image is None or not any(name in names for name in CAPTION_COLUMNS):
        kind, wanted = ("caption", CAPTION_COLUMNS) if image else ("image", IMAGE_COLUMNS)
        raise UserError(
            f"{where}: no {kind} column among {', '.join(names) or 'none'}; "
            f"name one of them {', '.join(wanted[:-1])} or {wanted[-1]}"
        )
    return image
