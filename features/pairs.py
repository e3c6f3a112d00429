"""Image-caption pairs behind one iterator, from any of the usual layouts.

    pairs = open_pairs("photos/")            # imagefolder: metadata.jsonl beside the images
    pairs = open_pairs("photos.csv")         # or .tsv, .parquet
    pairs = open_pairs("photos-{0..9}.tar")  # webdataset: a folder, a glob or a brace pattern
    pairs = open_pairs("https://host/photos-{0..9}.tar")  # the same behind https or s3 URLs
    pairs = open_pairs("embedded")           # the small world that ships with the package

A pair that cannot be read comes out as `Skipped`, with the reason, and the reading goes on.
Nothing is held in memory but an index of one number every 512 records.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import json
import os
import sys
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from features.errors import UserError, first_line
from features.remote import is_url, local_file, path_of, size_and_head

PART_RECORDS = 512
IMAGE_COLUMNS = ("image", "file_name", "filepath", "path")
CAPTION_COLUMNS = ("caption", "captions", "text", "texts", "title")
NOT_ATTRIBUTES = frozenset(("id", *CAPTION_COLUMNS))
IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "webp")
PARQUET_BATCH = 64
CONNECTIONS = 16
"""Files that are looked at together."""
Record = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """One image with its captions and attributes."""

    id: str
    image: Image.Image
    """RGB; transparency is laid on white."""
    captions: tuple[str, ...]
    """At least one, none empty."""
    attributes: dict[str, str | None]
    location: str
    """By which `PairSource.images` finds the image again."""


@dataclass(frozen=True)
class Skipped:
    """A record that gave no pair; `reason` is "kind: detail"."""

    id: str
    location: str
    reason: str


@dataclass(frozen=True)
class Part:
    """A range of the records of one file: the unit of work, and one shard of a store."""

    name: str
    start: int
    stop: int
    """-1 means to the end, where the number of records is unknown (tar files)."""


class PairSource(ABC):
    """Pairs that can be read part by part, in any order and by any process."""

    name: str
    """What the user named, without a folder's absolute path."""

    @abstractmethod
    def parts(self) -> list[Part]:
        """All parts, in an order that is always the same."""

    @abstractmethod
    def read(self, part: Part) -> Iterator[Pair | Skipped]:
        """The part's records in order."""

    @abstractmethod
    def images(self, locations: Iterable[str]) -> dict[str, Image.Image]:
        """The RGB images at these locations; those that cannot be read are left out."""

    @abstractmethod
    def fingerprint(self) -> str:
        """sha256 over the metadata and the files' names and sizes."""

    def total(self) -> int | None:
        """The number of records, where it is known without reading the files."""
        return None


def open_pairs(spec: str) -> PairSource:
    """Open the pairs that `spec` names.

    Args:
        spec: `embedded`, `embedded:train` or `embedded:heldout`; a folder with metadata.jsonl; a
            .csv, .tsv or .parquet file; or a folder, a glob or a brace pattern of .tar files,
            which may be http, https or s3 URLs.

    Raises:
        UserError: nothing is there, the format is unknown, or there are no images or captions.
    """
    if spec.partition(":")[0] == "embedded":
        from features.embedded.world import EmbeddedPairs, split_named

        return EmbeddedPairs(split_named(spec))
    path = Path(spec)
    if is_url(spec):
        if path_of(spec).suffix != ".tar":
            raise UserError(f"{spec}: of URLs only .tar files are read; name them, or download it")
        return TarPairs(list(dict.fromkeys(_braces(spec))), name=path_of(spec).name)
    if path.is_dir():
        if (path / "metadata.jsonl").is_file():
            return FilePairs(path / "metadata.jsonl", name=path.resolve().name)
        if any(path.glob("*.tar")):
            return TarPairs(sorted(map(str, path.glob("*.tar"))), name=path.resolve().name)
        raise UserError(
            f"{spec}: no metadata.jsonl and no .tar file in this folder; put one there, or name "
            "a .csv, .tsv or .parquet file"
        )
    if spec.endswith(".tar"):
        return TarPairs(_expand(spec), name=path.name)
    if not path.is_file():
        raise UserError(f"{spec}: no such file or folder; name the pairs' folder or file")
    if path.suffix == ".parquet":
        return ParquetPairs(path)
    if path.suffix in (".csv", ".tsv", ".jsonl"):
        return FilePairs(path, name=path.name)
    raise UserError(
        f"{spec}: unknown format {path.suffix!r}; use a folder with metadata.jsonl, .csv, .tsv, "
        ".parquet or .tar"
    )


class UnreadableImage(Exception):
    """An image that cannot be decoded; the message is the reason."""


def decode_image(content: bytes) -> Image.Image:
    """Decode an image file completely: RGB, transparency laid on white, the first frame.

    EXIF orientation is left alone, as in the training of CLIP models.

    Raises:
        UnreadableImage: not an image, truncated or damaged, or too many pixels (PIL's limit).
    """
    try:
        image = Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        raise UnreadableImage("unreadable image: not a format that PIL knows") from None
    except Image.DecompressionBombError:
        raise UnreadableImage("image too large: a decompression bomb to PIL") from None
    except Exception as error:
        raise UnreadableImage(f"unreadable image: {error}") from None
    try:
        image.load()
        return _on_white(image)
    except Image.DecompressionBombError:
        raise UnreadableImage("image too large: a decompression bomb to PIL") from None
    except Exception as error:  # PIL's plugins raise OSError, SyntaxError, struct.error and others
        raise UnreadableImage(f"truncated image or damaged: {error}") from None


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255
        return image.point(lambda value: value / 256).convert("L").convert("RGB")
    if image.mode != "RGBA" and not image.has_transparency_data:
        return image.convert("RGB")
    layer = image if image.mode == "RGBA" else image.convert("RGBA")
    canvas = Image.new("RGB", image.size, (255, 255, 255))
    canvas.paste(layer, mask=layer)
    return canvas


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


def _make_pair(
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


def _columns(found: Iterable[str], where: str) -> str:
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


def _spans(name: str, count: int) -> list[Part]:
    return [
        Part(name, start, min(start + PART_RECORDS, count))
        for start in range(0, count, PART_RECORDS)
    ]


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
        self.image_column = _columns(found, str(metadata))

    def parts(self) -> list[Part]:
        return _spans(self.metadata.name, self._count)

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
            yield _make_pair(record, self.image_column, self._content(location), location)

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
        self.image_column = _columns(schema.names, str(path))
        self._group_ends = [sum(groups[: i + 1]) for i in range(len(groups))]
        if not self.total():
            raise UserError(f"{path}: no rows; give at least one image with its caption")
        self._wanted = [f.name for f in schema if f.name == self.image_column or _readable(f)]
        self._cursor: _Cursor | None = None

    def parts(self) -> list[Part]:
        return _spans(self.path.name, self.total())

    def total(self) -> int:
        return self._group_ends[-1] if self._group_ends else 0

    def read(self, part: Part) -> Iterator[Pair | Skipped]:
        for index, record in enumerate(self._rows(part.start, part.stop), part.start):
            content, path = self._content(record[self.image_column])
            row_id = path or f"{part.name}:{index + 1}"
            yield _make_pair({"id": row_id} | record, self.image_column, content, str(index))

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


class TarPairs(PairSource):
    """Webdataset tar files: an image with .txt (the caption) or .json (captions, attributes).

    A file behind a URL is downloaded when it is read, and removed afterwards.

    Args:
        files: paths or URLs, at least one.
    """

    def __init__(self, files: list[str], name: str) -> None:
        self.name = name
        paths = {file: path_of(file) for file in files}
        parent = os.path.commonpath([path.parent for path in paths.values()])
        self.files = {path.relative_to(parent).as_posix(): file for file, path in paths.items()}

    def parts(self) -> list[Part]:
        return [Part(name, 0, -1) for name in self.files]

    def read(self, part: Part) -> Iterator[Pair | Skipped]:
        """As in `PairSource`; raises UserError where a URL cannot be read."""
        with local_file(self.files[part.name]) as path:
            try:
                for sample in _tar_samples(path):
                    yield _tar_pair(sample, f"{part.name}/{sample['__key__']}")
            except Exception as error:  # tarfile, zlib and webdataset each raise their own
                detail = first_line(error).replace(str(path), part.name)
                yield Skipped(part.name, part.name, f"unreadable tar file from here on: {detail}")

    def images(self, locations: Iterable[str]) -> dict[str, Image.Image]:
        keys_of: dict[str, set[str]] = defaultdict(set)
        for location in locations:
            for name in self.files:
                if location.startswith(name + "/"):
                    keys_of[name].add(location.removeprefix(name + "/"))
        found = {}
        for name, keys in keys_of.items():
            try:
                with local_file(self.files[name]) as path:
                    for sample in _tar_samples(path):
                        key = sample["__key__"]
                        content = _member(sample, IMAGE_EXTENSIONS)
                        if key in keys and content is not None:
                            try:
                                found[f"{name}/{key}"] = decode_image(content)
                            except UnreadableImage:
                                continue
            except Exception:
                continue
        return found

    def fingerprint(self) -> str:
        """sha256 over the files' names, sizes and first 64 KiB."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            heads = pool.map(size_and_head, self.files.values())
            for name, (size, head) in zip(self.files, heads, strict=True):
                digest.update(f"{name}/{size}/".encode() + head)
        return digest.hexdigest()


def _tar_samples(path: Path) -> Iterator[Record]:
    import webdataset as wds

    return iter(wds.DataPipeline(wds.SimpleShardList([str(path)]), wds.tarfile_to_samples()))


def _member(sample: Record, extensions: tuple[str, ...]) -> bytes | None:
    """The content of the sample's first file with one of the extensions."""
    for name, content in sample.items():
        if name.rsplit(".", 1)[-1].lower() in extensions and isinstance(content, bytes):
            return content
    return None


def _tar_pair(sample: Record, location: str) -> Pair | Skipped:
    content = _member(sample, IMAGE_EXTENSIONS)
    if content is None:
        return Skipped(location, location, "missing image file: no .png, .jpg, .jpeg or .webp")
    record: Record = {}
    described = _member(sample, ("json",))
    if described is not None:
        try:
            parsed = json.loads(described)
        except ValueError as error:
            return Skipped(location, location, f"unreadable metadata row: {error}")
        if isinstance(parsed, dict):
            own = parsed.get("attributes")
            record = dict(own) if isinstance(own, dict) else {}
            record |= {k: v for k, v in parsed.items() if k in ("id", "tags", *CAPTION_COLUMNS)}
    text = _member(sample, ("txt",))
    if text is not None and not record_captions(record):
        record["caption"] = text.decode("utf-8", errors="replace")
    return _make_pair({"id": sample["__key__"]} | record, None, content, location)


def _expand(pattern: str) -> list[str]:
    """The files of a brace and glob pattern.

    Raises:
        UserError: there is none, or one that the braces name is missing.
    """
    files: list[str] = []
    for piece in _braces(pattern):
        found = [piece] if os.path.isfile(piece) else sorted(glob.glob(piece))
        if not found:
            raise UserError(f"{piece}: no such .tar file; check the path or the pattern")
        files += found
    return list(dict.fromkeys(files))


def _braces(pattern: str) -> Iterator[str]:
    """All that a pattern's braces stand for: `{0..9}`, `{a,b}`."""
    from braceexpand import braceexpand

    return braceexpand(pattern)
