"""A record of a table or of a .json file as a pair: the one reader of values, whatever type Arrow,
JSON or CSV gives them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from itertools import chain
from typing import Any
from uuid import UUID

from features.errors import UserError
from features.pairs.base import Described, Found, Record, Skipped
from features.pairs.images import EXTENSIONS, UnreadableImage
from features.pairs.text import UnknownEncoding, decode_text, is_unicode, printable
from features.pairs.written import written_out

IMAGE_COLUMNS = (
    "image",
    "file_name",
    "filepath",
    "path",
    "file",
    "filename",
    "image_path",
    "image_file",
    "img",
)
CAPTION_COLUMNS = ("caption", "captions", "text", "texts", "title", "description")
LESS_USUAL = {
    "image": (
        "image_name",
        "image_filename",
        "img_path",
        "file_path",
        "image_id",
        "images",
        "jpg",
        "jpeg",
        "png",
        "webp",
    ),
    "caption": (
        "sentence",
        "sentences",
        "raw",
        "caption_text",
        "alt_text",
        "comment",
        "prompt",
        "conversations",
        "messages",
    ),
}
"""Columns of images and captions where there is none of the usual ones."""
USUAL_COLUMNS = frozenset((*IMAGE_COLUMNS, *CAPTION_COLUMNS, *chain(*LESS_USUAL.values())))
TEXT_FIELDS = ("raw", "value", "sentence", "string", "content")
"""More names that the text has where a caption is a record itself."""
SPEAKER = ("from", "role")
ASKING = ("human", "user", "system", "tool")
"""Who says nothing about the picture in a conversation; the answers are its captions."""
URL_COLUMNS = ("url", "urls", "image_url", "img_url")
MOST_NAMES, LONGEST_NAME = 60, 40
"""Names of columns in a message, and letters of each."""
WHOLE = re.compile(r"-?\d{1,15}\.0+")
NO_CAPTION = "missing caption"
ATTRIBUTES = "attributes"
"""A record within the record that holds more attributes."""
SEPARATOR = "|"
"""Between the values of an attribute that has several, such as tags."""


@dataclass(frozen=True)
class Columns:
    """Which of a source's columns hold what.

    image: None for tar files, in which the image is a file beside the record.
    captions: the first of these that has any text gives a record's captions.
    captions_needed: whether a record without captions is skipped.
    """

    image: str | None
    captions: tuple[str, ...]
    captions_needed: bool = True


@dataclass(frozen=True)
class Wanted:
    """What the user wants of the columns.

    image, caption: names of columns; None to look for the usual ones.
    captions_needed: False where images alone are asked for.
    """

    image: str | None = None
    caption: str | None = None
    captions_needed: bool = True

    def columns(self, found: Iterable[str], where: str, *, image_beside: bool = False) -> Columns:
        """The columns among those found, whatever the case of the usual names.

        Args:
            image_beside: the image is no column but a file of its own.

        Raises:
            UserError: there is none for the image, or none for the caption where one is needed.
        """
        names = list(dict.fromkeys(found))
        image = None
        if not image_beside:
            image = _chosen(self.image, IMAGE_COLUMNS, names, "image", where)[0]
        if self.caption is None and not self.captions_needed:
            return Columns(image, tuple(_usual(CAPTION_COLUMNS, names)), False)
        captions = _chosen(self.caption, CAPTION_COLUMNS, names, "caption", where)
        return Columns(image, tuple(captions), self.captions_needed)

    def of_record(self, record: Record, *, texts_beside: bool) -> Columns:
        """The columns of a record that stands alone, with its image and texts beside it; these are
        put in the first of the caption columns."""
        names = list(record)
        captions = [self.caption] if self.caption else _usual(CAPTION_COLUMNS, names)
        if not captions and not texts_beside and self.captions_needed:
            captions = _usual(LESS_USUAL["caption"], names)
        return Columns(None, tuple(captions) or CAPTION_COLUMNS[:1], self.captions_needed)


def _usual(usual: Iterable[str], names: list[str]) -> list[str]:
    """Those of the usual names that occur, as they are written, in the order of the usual ones."""
    by_name = {usual_form(name): name for name in reversed(names)}
    return [by_name[name] for name in usual if name in by_name]


def usual_form(name: str) -> str:
    """A column's name as the usual ones are written: in small letters, underscores for blanks."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _chosen(
    asked: str | None, usual: tuple[str, ...], names: list[str], kind: str, where: str
) -> list[str]:
    if asked is not None:
        if asked in names:
            return [asked]
        raise UserError(f"{where}: no column {asked!r} for the {kind}; there are {_listed(names)}")
    found = _usual(usual, names) or _usual(LESS_USUAL[kind], names)
    if not found:
        raise UserError(
            f"{where}: no {kind} column among {_listed(names)}; name one of them "
            f"{', '.join(usual[:-1])} or {usual[-1]}, or say which it is with --{kind}-column"
            + _why_none(names, where)
        )
    return found


def _listed(names: list[str]) -> str:
    """The names of columns, as many as a message has room for."""
    shown = [name if len(name) <= LONGEST_NAME else name[:LONGEST_NAME] + "..." for name in names]
    more = len(names) - MOST_NAMES
    return ", ".join(shown[:MOST_NAMES]) + f" and {more} more" * (more > 0) or "none"


def _why_none(names: list[str], where: str) -> str:
    """What is to be done about a table that lacks a column, where its columns' names show it."""
    if any(usual_form(name) in URL_COLUMNS for name in names):
        return "; pictures behind URLs have to be downloaded first (img2dataset does it)"
    if ".json" in where.lower() and not any(usual_form(name) in USUAL_COLUMNS for name in names):
        return '; records are objects such as {"image": "a.png", "caption": "a cat"}'
    if ".json" in where.lower() or where.lower().endswith(".parquet"):
        return ""
    if len(names) == 1 and len(names[0].split()) > 1:
        return "; its columns seem to be parted by blanks: put commas or tabs in their place"
    if names and names[0].isdecimal():
        return f"; the first line, {names[0]}, is taken for the columns' names: remove it"
    first = [name.lower().partition("#")[0] for name in names]  # Flickr's a.jpg#0
    if any(name.startswith("http") or name.endswith(EXTENSIONS) for name in first):
        return "; the first line is taken for the columns' names, and seems to be a record"
    return ""


def text_of(value: Any) -> str | None:
    """A scalar as text, None where there is nothing: missing, NaN, or no scalar.

    Whole numbers are written without a fraction, since a column of whole numbers becomes one of
    floats where a value is missing.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | UUID):
        return str(value)
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else str(value)
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        try:
            return decode_text(value)
        except UnknownEncoding:
            return None
    return None


def without_fraction(text: str) -> str:
    """A whole number as `text_of` writes it, whose column became one of floats where a value was
    missing (`1.0` in a table that pandas wrote); other texts as they are."""
    return text.partition(".")[0] if WHOLE.fullmatch(text) else text


def texts_of(value: Any) -> list[str]:
    """The texts of a scalar, of a list at any depth, of a list of these that is written out as text
    (`written_out`), or of a record's usual caption field (as `{"raw": "a dog", "tokens": [...]}` or
    `{"text": "a dog", "lang": "en"}`), in order; without those that are blank, and without a
    conversation's questions (`{"from": "human", ...}`)."""
    if isinstance(value, list | tuple):
        return [text for inner in value for text in texts_of(inner)]
    if isinstance(value, Mapping):
        if any(value.get(name) in ASKING for name in SPEAKER):
            return []
        return next(filter(None, (texts_of(value[field]) for field in _text_fields(value))), [])
    text = (text_of(value) or "").strip()
    written = written_out(text)
    if written is not None and _holds_texts(written):
        return texts_of(written)
    return [text] if text else []


def _text_fields(record: Mapping[Any, Any]) -> list[str]:
    """The fields of a caption's record that may hold its text, the first ones before others."""
    names = [name for name in record if isinstance(name, str)]
    return _usual((*CAPTION_COLUMNS, *TEXT_FIELDS), names)


def _holds_texts(written: Any) -> bool:
    """Whether what a text writes out are captions: not numbers, nor a record without a text."""
    if isinstance(written, list):
        return all(map(_holds_texts, written))
    if isinstance(written, Mapping):
        return bool(_text_fields(written))
    return written is None or isinstance(written, str | bytes)


def only_of(value: Any) -> Any:
    """What a list of one value holds; other values as they are."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def why_no_name(value: Any) -> str:
    """The reason why an image column's value gives no picture."""
    if isinstance(value, list) and value:
        return f"missing image file: a list of {len(value)}, where one path or picture is needed"
    return "missing image file: no name"


def record_captions(record: Record, columns: Iterable[str]) -> tuple[str, ...]:
    """The captions of a record's first caption column that has any, stripped."""
    for column in columns:
        captions = texts_of(record.get(column))
        if captions:
            return tuple(captions)
    return ()


def record_attributes(record: Record, columns: Columns) -> dict[str, str | None]:
    """What else a record holds: scalars as text, the values of lists joined by "|"."""
    own = record.get(ATTRIBUTES)
    inner = own if isinstance(own, Mapping) else {}
    used = {"id", columns.image, *columns.captions}
    attributes: dict[str, str | None] = {}
    for name, value in (*record.items(), *inner.items()):
        if name in used or isinstance(value, Mapping):
            continue
        if isinstance(value, list | tuple):
            attributes[name] = SEPARATOR.join(texts_of(value))
        else:
            text = (text_of(value) or "").strip()
            attributes[name] = without_fraction(text) if text else None
    return attributes


def make_pair(
    record: Record,
    columns: Columns,
    content: Callable[[], bytes | None],
    location: str,
    missing: Callable[[], str] | None = None,
) -> Found | Skipped:
    """A pair from a record.

    Args:
        content: gives its image file's content; None where the file is missing.
        missing: gives the reason then; where there is none, it names the location.
    """
    identity = text_of(record.get("id")) or location
    captions = record_captions(record, columns.captions)
    attributes = record_attributes(record, columns)
    texts = (identity, location, *captions, *attributes, *attributes.values())
    if not all(is_unicode(text) for text in texts if text is not None):
        return skipped(identity, location, "unreadable text: it is no valid Unicode")
    if columns.captions_needed and not captions:
        return skipped(identity, location, NO_CAPTION)

    def file() -> bytes:
        read = content()
        if read is None:
            raise UnreadableImage(missing() if missing else f"missing image file: {location}")
        return read

    return Found(Described(identity, captions, attributes, location), file)


def skipped(identity: str, location: str, reason: str) -> Skipped:
    """A record that gave no pair, in texts that can be written."""
    return Skipped(printable(identity), printable(location), printable(reason))
