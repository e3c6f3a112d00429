"""Image files listed in a .csv, .tsv or .jsonl file, among them imagefolder's metadata."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from functools import cached_property, partial
from pathlib import Path

from PIL import Image

from features.pairs.base import Found, NoRecords, PairSource, Part, Record, Skipped, sampled, spans
from features.pairs.delimited import JSON, Delimited, JsonLines, TextRecords
from features.pairs.images import decoded
from features.pairs.named import (
    Place,
    is_picture,
    named_content,
    path_named,
    place_of_names,
    why_missing,
)
from features.pairs.packed import unpacked_name
from features.pairs.records import Wanted, make_pair, only_of, skipped, text_of, why_no_name

JSON_LINES = (".jsonl", ".ndjson")
DELIMITED = (".csv", ".tsv")
NAMED_ALONE = (JSON, ".txt")
"""Tables only where they are named themselves: folders have others."""


class FilePairs(PairSource):
    """Image files listed in a table; their paths are relative to its folder, or to one nearby
    (`place_of_names`).

    Raises:
        UserError: there is no record, or no image or caption column.
    """

    def __init__(self, metadata: Path, name: str, wanted: Wanted | None = None) -> None:
        wanted = wanted or Wanted()
        self.metadata = metadata
        self.folder = metadata.parent
        self.name = name
        self.records: TextRecords
        if unpacked_name(metadata.name).endswith((*JSON_LINES, JSON)):
            self.records = JsonLines(metadata)
        else:
            asked = [column for column in (wanted.image, wanted.caption) if column]
            self.records = Delimited(metadata, asked)
        names = self.records.names()
        if not self.records.count:
            raise NoRecords(f"{metadata}: no records; list at least one image with its caption")
        self.columns = wanted.columns(names, str(metadata))

    def parts(self) -> list[Part]:
        return spans(self.metadata.name, self.total())

    def total(self) -> int:
        return self.records.count

    def found(self, part: Part) -> Iterator[Found | Skipped]:
        for line, record in self.records.read(part.start, part.stop):
            row = f"{part.name}:{line.number}"
            if isinstance(record, str):
                yield skipped(row, row, f"unreadable metadata row: {record}")
                continue
            file_name = self._file_name(record)
            if not file_name:
                reason = why_no_name(record.get(self.columns.image or ""))
                yield skipped(text_of(record.get("id")) or row, row, reason)
                continue
            location = self._location(file_name)
            if is_picture(file_name):
                record = {"id": row} | record
            content = partial(self._content, location)
            missing = partial(self._why_missing, location)
            yield make_pair(record, self.columns, content, location, missing)

    def images(self, locations: Iterable[str]) -> Iterator[tuple[str, Image.Image]]:
        return decoded((location, self._content(location)) for location in locations)

    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.columns).encode())
        for _, record in self.records.read(0, self.total()):
            digest.update(json.dumps(record, sort_keys=True).encode())
            file_name = self._file_name(record) if isinstance(record, dict) else None
            if file_name:
                digest.update(self._sampled(self._location(file_name)))
        return digest.hexdigest()

    def _file_name(self, record: Record) -> str | None:
        value = only_of(record.get(self.columns.image or ""))
        return text_of(value.get("path") if isinstance(value, dict) else value)

    def _location(self, file_name: str) -> str:
        file_name = self._place.name(path_named(file_name))
        return os.path.relpath(file_name, self.folder) if os.path.isabs(file_name) else file_name

    def _content(self, location: str) -> bytes | None:
        return named_content(self._place, location)

    def _sampled(self, location: str) -> bytes:
        if is_picture(location):  # which the record holds
            return b""
        return b"".join(map(sampled_file, self._place.files(location)))

    def _why_missing(self, location: str) -> str:
        return why_missing(self._place, location)

    @cached_property
    def _place(self) -> Place:
        records = (record for _, record in self.records.read(0, self.total()))
        names = (self._file_name(record) for record in records if isinstance(record, dict))
        return place_of_names(self.metadata, filter(None, names))


def sampled_file(path: str) -> bytes:
    """`sampled` of a whole file; empty where there is none."""
    try:
        size = os.stat(path).st_size
        if not os.path.isfile(path):
            return b""
        with open(path, "rb") as file:
            return sampled(file, 0, size)
    except (OSError, ValueError):
        return b""
