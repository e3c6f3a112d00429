"""Pairs in a parquet file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from features.errors import UserError
from features.pairs.base import Pair, PairSource, Part, Record, Skipped, spans
from features.pairs.images import UnreadableImage, decode_image
from features.pairs.records import CAPTION_COLUMNS, image_column, make_pair

PARQUET_BATCH = 64


@dataclass
class _Cursor:
    """A position in a parquet file that is being read forward."""

    at: int
    group: int
    rows: Iterator[Record] = field(repr=False)


class ParquetPairs(PairSource):
    """A parquet file whose images are bytes, struct{bytes, path}, or relative paths.

    Raises:
        UserError: not a parquet file, no row, or no image or caption column.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        try:
            with pq.ParquetFile(path) as file:
                schema = file.schema_arrow
                groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{path}: not a readable parquet file ({error})") from None
        self.image_column = image_column(schema.names, str(path))
        self._group_ends = [sum(groups[: i + 1]) for i in range(len(groups))]
        if not self.total():
            raise UserError(f"{path}: no rows; give at least one image with its caption")
        self._wanted = [f.name for f in schema if f.name == self.image_column or _readable(f)]
        self._cursor: _Cursor | None = None

    def parts(self) -> list[Part]:
        return spans(self.path.name, self.total())

    def total(self) -> int:
        return self._group_ends[-1] if self._group_ends else 0

    def read(self, part: Part) -> Iterator[Pair | Skipped]:
        for index, record in enumerate(self._rows(part.start, part.stop), part.start):
            content, path = self._content(record[self.image_column])
            row_id = path or f"{part.name}:{index + 1}"
            yield make_pair({"id": row_id} | record, self.image_column, content, str(index))

    def images(self, locations: Iterable[str]) -> dict[str, Image.Image]:
        found = {}
        rows = sorted(int(text) for text in set(locations) if text.isdigit())
        for row in rows:
            if row >= self.total():
                break
            record = next(self._rows(row, row + 1))
            content, _ = self._content(record[self.image_column])
            if content is not None:
                try:
                    found[str(row)] = decode_image(content)
                except UnreadableImage:
                    continue
        return found

    def fingerprint(self) -> str:
        """sha256 over the file's size and its footer, which holds every column chunk's sizes and
        statistics."""
        with self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(-8, os.SEEK_END)
            length = int.from_bytes(file.read(4), "little")
            file.seek(-8 - length, os.SEEK_END)
            return hashlib.sha256(str(size).encode() + file.read(length)).hexdigest()

    def _content(self, value: Any) -> tuple[bytes | None, str | None]:
        """The image file's content and its path, where there are any."""
        content, path = value, None
        if isinstance(value, dict):
            content, path = value.get("bytes"), value.get("path")
        elif isinstance(value, str):
            content, path = None, value
        if content is None and path is not None:
            try:
                content = (self.path.parent / path).read_bytes()
            except OSError:
                content = None
        return content, path

    def _rows(self, start: int, stop: int) -> Iterator[Record]:
        """Rows start..stop. Reading goes on from where it stands when that is not past `start`, so
        that parts in rising order cost one pass."""
        group = next(i for i, end in enumerate(self._group_ends) if start < end)
        cursor = self._cursor
        if cursor is None or cursor.at > start or cursor.group < group:
            first = self._group_ends[group - 1] if group else 0
            cursor = self._cursor = _Cursor(first, group, self._stream(group))
        for record in cursor.rows:
            cursor.at += 1
            while cursor.at > self._group_ends[cursor.group]:
                cursor.group += 1
            if cursor.at > start:
                yield record
            if cursor.at >= stop:
                return

    def _stream(self, group: int) -> Iterator[Record]:
        with pq.ParquetFile(self.path, memory_map=True) as file:
            batches = file.iter_batches(
                PARQUET_BATCH,
                row_groups=list(range(group, file.num_row_groups)),
                columns=self._wanted,
                use_threads=False,
            )
            for batch in batches:
                yield from batch.to_pylist()


def _readable(column: pa.Field) -> bool:
    """Whether a parquet column holds captions, tags or an attribute."""
    kind = column.type
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or column.name == "id"
        or (pa.types.is_list(kind) and column.name in (*CAPTION_COLUMNS, "tags"))
    )
