"""Image files listed in a metadata.jsonl, .csv or .tsv."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from features.errors import UserError
from features.pairs.base import PART_RECORDS, Pair, PairSource, Part, Record, Skipped, spans
from features.pairs.images import UnreadableImage, decode_image
from features.pairs.records import image_column, make_pair


class FilePairs(PairSource):
    """Image files listed in a metadata.jsonl, .csv or .tsv; paths are relative to its folder.

    Raises:
        UserError: there is no record, or no image or caption column.
    """

    def __init__(self, metadata: Path, name: str) -> None:
        self.metadata = metadata
        self.folder = metadata.parent
        self.name = name
        self.table = metadata.suffix in (".csv", ".tsv")
        first = list(self._records(0, PART_RECORDS)) if self._count else []
        if not first:
            raise UserError(f"{metadata}: no records; list at least one image with its caption")
        found = (key for record in first if isinstance(record, dict) for key in record)
        self.image_column = image_column(found, str(metadata))

    def parts(self) -> list[Part]:
        return spans(self.metadata.name, self._count)

    def total(self) -> int:
        return self._count

    def read(self, part: Part) -> Iterator[Pair | Skipped]:
        for index, record in enumerate(self._records(part.start, part.stop), part.start):
            row = f"{part.name}:{index + 1}"
            if isinstance(record, str):
                yield Skipped(row, row, f"unreadable metadata row: {record}")
                continue
            file_name = record.get(self.image_column)
            if not isinstance(file_name, str) or not file_name:
                yield Skipped(str(record.get("id") or row), row, "missing image file: no name")
                continue
            location = self._location(file_name)
            yield make_pair(record, self.image_column, self._content(location), location)

    def images(self, locations: Iterable[str]) -> dict[str, Image.Image]:
        found = {}
        for location in locations:
            content = self._content(location)
            if content is not None:
                try:
                    found[location] = decode_image(content)
                except UnreadableImage:
                    continue
        return found

    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for record in self._records(0, self._count):
            digest.update(json.dumps(record, sort_keys=True).encode())
            file_name = record.get(self.image_column) if isinstance(record, dict) else None
            if isinstance(file_name, str):
                try:
                    size = (self.folder / file_name).stat().st_size
                except OSError:
                    size = -1
                digest.update(str(size).encode())
        return digest.hexdigest()

    def _location(self, file_name: str) -> str:
        return os.path.relpath(file_name, self.folder) if os.path.isabs(file_name) else file_name

    def _content(self, location: str) -> bytes | None:
        try:
            with open(os.path.join(self._root, location), "rb") as file:
                return file.read()
        except OSError:
            return None

    @cached_property
    def _root(self) -> str:
        return str(self.folder)

    @property
    def _count(self) -> int:
        return self._index[1]

    @cached_property
    def _index(self) -> tuple[list[int], int]:
        """The byte offset of every 512th record, and the number of records."""
        offsets: list[int] = []
        count = 0
        for offset, _ in self._scan(None):
            if count % PART_RECORDS == 0:
                offsets.append(offset)
            count += 1
        return offsets, count

    def _records(self, start: int, stop: int) -> Iterator[Record | str]:
        """Records start..stop; one that cannot be parsed is the reason, a string.

        `start` is a multiple of 512.
        """
        offset = self._index[0][start // PART_RECORDS]
        for _, raw in islice(self._scan(offset), stop - start):
            if isinstance(raw, list):
                yield dict(zip(self._header, raw, strict=False))
                continue
            try:
                record = json.loads(raw)
                yield record if isinstance(record, dict) else "not an object"
            except ValueError as error:
                yield str(error)

    @cached_property
    def _header(self) -> list[str]:
        with self.metadata.open("rb") as file:
            return next(csv.reader(self._lines(file, [0]), delimiter=self._delimiter), [])

    @cached_property
    def _delimiter(self) -> str:
        """Tab for .tsv, and for a .csv whose header has tabs and no comma (open_clip's default)."""
        with self.metadata.open("rb") as file:
            header = file.readline()
        tabs = b"\t" in header and b"," not in header
        return "\t" if self.metadata.suffix == ".tsv" or tabs else ","

    @staticmethod
    def _lines(file: Any, position: list[int]) -> Iterator[str]:
        """Decoded lines; `position` holds the number of bytes that were handed out."""
        for line in file:
            position[0] += len(line)
            yield line.decode("utf-8-sig", errors="replace")

    def _scan(self, offset: int | None) -> Iterator[tuple[int, str | list[str]]]:
        """(byte offset, record) from `offset`, or from the first record; blank lines are none."""
        if self.table:
            csv.field_size_limit(sys.maxsize)
        with self.metadata.open("rb") as file:
            file.seek(offset or 0)
            position = [offset or 0]
            lines = self._lines(file, position)
            rows: Iterator[str | list[str]] = (
                csv.reader(lines, delimiter=self._delimiter) if self.table else lines
            )
            if self.table and offset is None:
                next(rows, None)
            start = position[0]
            for row in rows:
                if row if isinstance(row, list) else row.strip():
                    yield start, row
                start = position[0]
