"""Pairs in a parquet file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from features.errors import UserError, first_line
from features.pairs.base import (
    PART_RECORDS,
    Found,
    NoRecords,
    PairSource,
    Part,
    Record,
    Skipped,
    UnreadableFile,
    sampled,
)
from features.pairs.images import decoded
from features.pairs.named import Place, is_picture, named_content, place_of_names, why_missing
from features.pairs.records import (
    ATTRIBUTES,
    Wanted,
    make_pair,
    only_of,
    skipped,
    text_of,
    why_no_name,
)
from features.pairs.stand_ins import stand_in_at

UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What pyarrow raises for a damaged file."""
HUGGING_FACE, CLASS_LABEL = b"huggingface", "ClassLabel"
"""Where a file's metadata holds what its columns are, and what those of classes are called."""
BATCH = 64
"""Rows that are held in memory together where the file holds the images."""


class ParquetPairs(PairSource):
    """A parquet file whose images are bytes, struct{bytes, path}, or relative paths.

    Where it holds the images, parts are whole row groups, so that no byte is decoded twice.

    Raises:
        UserError: not a parquet file, no row, or no image or caption column.
    """

    def __init__(self, path: Path, wanted: Wanted | None = None) -> None:
        self.path = path
        self.name = path.name
        try:
            with pq.ParquetFile(path) as file:
                schema = file.schema_arrow
                groups = range(file.num_row_groups)
                rows = [file.metadata.row_group(group).num_rows for group in groups]
        except UNREADABLE as error:
            damage = f"not a readable parquet file ({first_line(error)}); write it again"
            raise UnreadableFile(path, stand_in_at(path) or damage) from None
        for name in schema.names:
            if schema.names.count(name) > 1:
                raise UserError(f"{path}: several columns are named {name}; rename all but one")
        self.columns = (wanted or Wanted()).columns(schema.names, str(path))
        assert self.columns.image is not None
        self._image = self.columns.image
        self._group_starts = [0, *accumulate(rows)]
        if not self.total():
            raise NoRecords(f"{path}: no rows; give at least one image with its caption")
        self._holds_images = _holds_bytes(schema.field(self._image).type)
        always = {self._image, *self.columns.captions}
        self._read_columns = [f.name for f in schema if f.name in always or is_read(f)]
        self._class_names = _class_names(schema)
        self._maps = [f.name for f in schema if f.name in always and pa.types.is_map(f.type)]
        self._cached: tuple[int, pa.Table] | None = None

    def parts(self) -> list[Part]:
        found: list[Part] = []
        start = 0
        for end in self._group_starts[1:]:
            if not self._holds_images:
                cuts = range(start, end, PART_RECORDS)
                found += [Part(self.name, c, min(c + PART_RECORDS, end)) for c in cuts]
                start = end
            elif end - start >= PART_RECORDS or (end == self.total() and end > start):
                found.append(Part(self.name, start, end))
                start = end
        return found

    def total(self) -> int:
        return self._group_starts[-1]

    def found(self, part: Part) -> Iterator[Found | Skipped]:
        for row, record in self._rows(part.start, part.stop, self._read_columns):
            where = f"{part.name}:{row + 1}"
            if isinstance(record, str):
                yield skipped(where, str(row), record)
                continue
            for column, names in self._class_names.items():
                record[column] = _named(record.get(column), names)
            for column in self._maps:  # which pyarrow gives as lists of keys and values
                record[column] = dict(record[column] or ())
            value = record[self._image]
            path = _path_of(value)
            name = None if path is None or is_picture(path) else path
            named = {"id": text_of(record.get("id")) or name or where}
            content = partial(self._content, value)
            missing = partial(self._why_missing, value)
            yield make_pair(record | named, self.columns, content, str(row), missing)

    def images(self, locations: Iterable[str]) -> Iterator[tuple[str, Image.Image]]:
        numbers = {int(text) for text in locations if text.isascii() and text.isdigit()}
        for group in range(len(self._group_starts) - 1):
            mine = numbers.intersection(range(*self._group_starts[group : group + 2]))
            if mine:
                yield from decoded(
                    (str(row), self._content(record[self._image]))
                    for row, record in self._rows(min(mine), max(mine) + 1, [self._image])
                    if row in mine and not isinstance(record, str)
                )

    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        """Over the footer, the stored bytes of every column but the image's, and samples of its."""
        digest = hashlib.sha256(repr(self.columns).encode())
        with pq.ParquetFile(self.path, memory_map=True) as parquet:
            groups = range(parquet.num_row_groups)
            chunks = [chunk for group in groups for chunk in _chunks(parquet, group)]
        with self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(-8, os.SEEK_END)
            length = int.from_bytes(file.read(4), "little")
            file.seek(-8 - length, os.SEEK_END)
            digest.update(str(size).encode() + file.read(length))
            for chunk in chunks:
                stored = min(chunk.size, size - chunk.start)
                if self._holds_images and chunk.column == self._image:
                    digest.update(sampled(file, chunk.start, stored))
                else:
                    file.seek(chunk.start)
                    digest.update(file.read(stored))
        return digest.hexdigest()

    def _content(self, value: Any) -> bytes | None:
        """The content of an image file, or of the one that a path names."""
        value = only_of(value)
        content, path = value, value
        if isinstance(value, dict):
            content, path = value.get("bytes"), value.get("path")
        if isinstance(content, bytes):
            return content
        name = text_of(path)
        return named_content(self._place, name) if name else None

    def _why_missing(self, value: Any) -> str:
        path = _path_of(value)
        return why_missing(self._place, path) if path else why_no_name(value)

    @cached_property
    def _place(self) -> Place:
        """Where the pictures lie."""
        rows = self._rows(0, self.total(), [self._image])
        paths = (_path_of(record[self._image]) for _, record in rows if isinstance(record, dict))
        return place_of_names(self.path, filter(None, paths))

    def _rows(
        self, start: int, stop: int, columns: list[str]
    ) -> Iterator[tuple[int, Record | str]]:
        """Rows start..stop with their numbers; one that cannot be read is the reason, a string."""
        for group in range(len(self._group_starts) - 1):
            first, end = self._group_starts[group : group + 2]
            if end <= start or first >= stop:
                continue
            at = first
            reason = "the row group ends early"
            try:
                for batch in self._batches(group, columns, max(start, first) - first):
                    at = first + batch[0]
                    for record in _records(batch[1]):
                        if at >= stop:
                            return
                        if at >= start:
                            yield at, record
                        at += 1
            except (pa.ArrowException, OSError) as error:
                reason = first_line(error)
            for row in range(max(at, start), min(end, stop)):
                yield row, f"unreadable parquet rows: {reason}"

    def _batches(
        self, group: int, columns: list[str], skip: int
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """A row group's batches, each with the number of its first row within the group; those
        before row `skip` may be left out."""
        if self._holds_images:
            at = 0
            with pq.ParquetFile(self.path, memory_map=True) as file:
                for batch in file.iter_batches(
                    BATCH, row_groups=[group], columns=columns, use_threads=False
                ):
                    yield at, batch
                    at += len(batch)
            return
        if self._cached is None or self._cached[0] != group:
            with pq.ParquetFile(self.path, memory_map=True) as file:
                table = file.read_row_group(group, self._read_columns, use_threads=False)
                self._cached = (group, table)
        at = skip
        for batch in self._cached[1].select(columns).slice(skip).to_batches(max_chunksize=BATCH):
            yield at, batch
            at += len(batch)


class _Chunk(NamedTuple):
    """Where a column's values of one row group are stored."""

    column: str
    start: int
    size: int


def _chunks(file: pq.ParquetFile, group: int) -> Iterator[_Chunk]:
    """Those of the columns of a row group that can be read."""
    readable = _readable_columns(file, group)
    for number in range(len(file.schema)):
        column = file.schema.column(number).path.split(".")[0]
        if column in readable:
            chunk = file.metadata.row_group(group).column(number)
            offsets = (chunk.dictionary_page_offset, chunk.data_page_offset)
            start = min(offset for offset in offsets if offset is not None)
            yield _Chunk(column, max(0, start), max(0, chunk.total_compressed_size))


def _readable_columns(file: pq.ParquetFile, group: int) -> list[str]:
    """The columns whose first value in a row group can be read.

    Of others pyarrow's metadata must not be asked: where a damaged file contradicts itself, that
    ends the process, while reading raises.
    """
    names = file.schema_arrow.names

    def can_be_read(columns: list[str]) -> bool:
        try:
            batches = file.iter_batches(1, row_groups=[group], columns=columns, use_threads=False)
            next(batches, None)
        except UNREADABLE:
            return False
        return True

    return names if can_be_read(names) else [name for name in names if can_be_read([name])]


def _path_of(value: Any) -> str | None:
    """The path that an image column's value gives, where it gives one."""
    value = only_of(value)
    value = value.get("path") if isinstance(value, dict) else value
    return None if isinstance(value, bytes) else text_of(value)


def _records(batch: pa.RecordBatch) -> Iterator[Record | str]:
    """The rows of a batch; one whose text is no UTF-8 is the reason, a string."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for row in range(len(batch)):
            try:
                yield batch.slice(row, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield f"unreadable text: not {error.encoding}"


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """The names of classes whose numbers columns hold, as Hugging Face's datasets keep them."""
    try:
        kept = json.loads((schema.metadata or {}).get(HUGGING_FACE, b"{}"))
        features = kept["info"]["features"].items()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    found = {name: _names_in(feature) for name, feature in features if name in schema.names}
    return {name: names for name, names in found.items() if names}


def _names_in(feature: Any) -> list[str] | None:
    """The names of a feature's classes, be it a list of them or not."""
    if isinstance(feature, list):
        return _names_in(feature[0]) if feature else None
    if not isinstance(feature, dict):
        return None
    names = feature.get("names")
    if feature.get("_type") == CLASS_LABEL and isinstance(names, list):
        return [str(name) for name in names]
    return _names_in(feature.get("feature"))


def _named(value: Any, names: list[str]) -> Any:
    """The names of classes by their numbers; datasets' -1 stands for none."""
    if isinstance(value, list):
        return [_named(one, names) for one in value]
    if not isinstance(value, int) or value >= len(names):
        return value
    return names[value] if value >= 0 else None


def _holds_bytes(kind: pa.DataType) -> bool:
    """Whether a column's values are, or hold, the bytes of image files."""
    if pa.types.is_dictionary(kind) or _is_list(kind):
        return _holds_bytes(kind.value_type)
    if pa.types.is_struct(kind):
        return any(_holds_bytes(kind.field(i).type) for i in range(kind.num_fields))
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def is_read(column: pa.Field) -> bool:
    """Whether a column may hold captions or an attribute: text, scalars, lists of these; not
    vectors, which are lists of floats."""
    kind = column.type
    if column.name == ATTRIBUTES and pa.types.is_struct(kind):
        return True
    while True:
        if pa.types.is_dictionary(kind) or _is_list(kind):
            kind = kind.value_type
        else:
            break
    if kind != column.type and pa.types.is_floating(kind):
        return False
    return not (pa.types.is_nested(kind) or pa.types.is_null(kind) or _holds_bytes(kind))


def _is_list(kind: pa.DataType) -> bool:
    checks = (
        pa.types.is_list,
        pa.types.is_large_list,
        pa.types.is_fixed_size_list,
        pa.types.is_list_view,
        pa.types.is_large_list_view,
    )
    return any(check(kind) for check in checks)
