"""The world of photographs: textbook pictures with two kinds of text, dishes, and garments.

A textbook picture's caption is its alt text, which says what can be seen; its `context` is the
sentence printed under it, which says what it is about and mostly cannot be seen. A dish has its
title and introduction, and its ingredients as context; a garment's caption is made from its label.
Every picture carries its licence, credit and source.

    photos:train      the textbook pictures that the encoder's heads were trained on
    photos:scored     pictures that they never saw, textbook and dishes, for scoring features
    photos:heldout    150 textbook pictures for measuring alone
    photos:garments   garments, which the heads never saw either: `photos:garments-train`, and
                      `photos:garments-test` by photographers who are not in it

`photos` is all of them, `photos:train+scored` several.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property, partial
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from features.embedded import PHOTOS
from features.errors import UserError
from features.pairs.base import Described, Found, PairSource, Part, Skipped, spans
from features.pairs.images import decode_image

SPLITS = ("train", "scored", "heldout", "garments")
GARMENTS = "garments"
HALVES = ("garments-train", "garments-test")
JOINED = "+"
TEXTS = ("text", "context")
ATTRIBUTES = (
    "kind", "split", "context", "book", "tags", "label", "kids", "sender", "credit", "licence",
    "source",
)  # fmt: skip


def split_named(spec: str) -> str | None:
    """The split that `photos` or `photos:SPLIT` names, or several joined by "+"; None is all.

    Raises:
        UserError: there is no such split.
    """
    split = spec.partition(":")[2] or None
    if split is not None and not set(split.split(JOINED)) <= {*SPLITS, *HALVES}:
        known = ", ".join(f"photos:{name}" for name in (*SPLITS, *HALVES))
        raise UserError(
            f"{spec}: no such split; use photos, {known}, or several: photos:train{JOINED}scored"
        )
    return split


def half_of(row: Mapping[str, Any]) -> str | None:
    """Of a garment, the half that its photographer is in, a third of them in `garments-test`."""
    if row["split"] != GARMENTS:
        return None
    digest = hashlib.sha256(row["sender"].encode()).hexdigest()
    return HALVES[int(digest, 16) % 3 == 0]


class PhotoPairs(PairSource):
    """The photographs of one split, of several, or of all.

    Args:
        split: one of `SPLITS` or `HALVES`, several of them joined by "+", or None for all.
        text: which of a picture's texts is its caption, "text" or "context"; pictures without it
            are left out.
    """

    def __init__(self, split: str | None = None, text: str = "text") -> None:
        self.split = split
        self.text = text
        self.name = "photos" if split is None else f"photos:{split}"

    @cached_property
    def rows(self) -> list[dict]:
        """The pictures' rows: id, image (WebP bytes), texts, attributes."""
        rows = pq.read_table(PHOTOS).to_pylist()
        if self.split is not None:
            wanted = set(self.split.split(JOINED))
            rows = [row for row in rows if wanted & {row["split"], half_of(row)}]
        return [row for row in rows if row[self.text]]

    def described(self, index: int) -> Described:
        """What is known of one pair without its image."""
        row = self.rows[index]
        attributes = {name: row[name] for name in ATTRIBUTES}
        return Described(row["id"], (row[self.text],), attributes, row["id"])

    def image(self, index: int) -> Image.Image:
        """The picture of one pair."""
        return decode_image(self._file(index))

    def _file(self, index: int) -> bytes:
        content: bytes = self.rows[index]["image"]
        return content

    def total(self) -> int:
        return len(self.rows)

    def parts(self) -> list[Part]:
        return spans(PHOTOS.name, len(self.rows))

    def found(self, part: Part) -> Iterator[Found | Skipped]:
        for index in range(part.start, part.stop):
            yield Found(self.described(index), partial(self._file, index))

    def images(self, locations: Iterable[str]) -> Iterator[tuple[str, Image.Image]]:
        wanted = set(locations)
        for index, row in enumerate(self.rows):
            if row["id"] in wanted:
                yield row["id"], self.image(index)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(PHOTOS.read_bytes())
        digest.update(f"{self.split}/{self.text}".encode())
        return digest.hexdigest()
