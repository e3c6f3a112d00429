"""Records of text files: delimited tables (.csv, .tsv), JSON lines and JSON arrays.

They may be packed (`features.pairs.packed`). None is held in memory: of every 512th record the
place in the file is kept.
"""

from __future__ import annotations

import atexit
import csv
import io
import json
import os
import re
import shutil
import string
import sys
import tempfile
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

from features.errors import UserError, first_line
from features.pairs.base import PART_RECORDS, Record, UnreadableFile
from features.pairs.images import EXTENSIONS
from features.pairs.json_objects import records_of
from features.pairs.packed import packing_of, unpack, unpacked_name
from features.pairs.records import IMAGE_COLUMNS, USUAL_COLUMNS, usual_form
from features.pairs.stand_ins import stand_in_at
from features.pairs.text import UnknownEncoding, encoding_of

DELIMITERS = (",", "\t", ";", "|")
JSON = ".json"
EXCEL_HINT = re.compile(r"sep=(.)\s*$")
COUNT = re.compile(r"\s*\d+\s*$")
MAX_QUOTED_LINES = 100
"""A quoted field that goes on for more lines was opened by a stray quote."""
MISSING = frozenset(
    ("nan", "NaN", "NaT", "null", "NULL", "None", "<NA>", "NA", "N/A", "n/a", "#N/A", "#NA", "?")
)
"""What programs write where a cell has no value."""
UNSEEN = string.whitespace + "\u00a0\u200b\u3000\ufeff"
"""Around the names of columns: blanks, and marks that programs put before a text twice."""
OPEN = "open"
"""The outcome of parsing text that ends within quotes."""
TRANSCODED = ("utf-16", "utf-16-le", "utf-16-be", "utf-32")
"""In these, bytes cannot be cut into lines."""


class Line(NamedTuple):
    """A physical line of a file."""

    offset: int
    number: int
    text: str | None
    """None where it cannot be decoded."""


class FoundRecord(NamedTuple):
    """A record, or in words why it cannot be read, and where it begins."""

    line: Line
    record: Record | str


class TextRecords(ABC):
    """The records of a text file.

    Raises:
        UserError: the file cannot be read, or its encoding cannot be told.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._utf8 = path
        """The file, or a copy of it in UTF-8, unpacked."""
        try:
            with path.open("rb") as file:
                packing = packing_of(file)
            if packing is not None:
                self._utf8 = _unpacked(path, packing)
            if (instead := stand_in_at(self._utf8)) is not None:
                raise UnreadableFile(path, instead)
            with self._utf8.open("rb") as file:
                self.encoding = encoding_of(file)
                file.seek(0)
                old_mac = b"\r" in file.readline() and not file.read(1)
        except UnknownEncoding as error:
            raise UserError(f"{path}: {error}") from None
        except OSError as error:
            reason = f"cannot be read ({error.strerror}); check the file"
            raise UnreadableFile(path, reason) from None
        if self.encoding in TRANSCODED or old_mac:
            self._utf8, self.encoding = _in_utf8(self._utf8, self.encoding), "utf-8"

    @abstractmethod
    def names(self) -> list[str]:
        """Of the columns, or of the fields of the first records."""

    @abstractmethod
    def _found(self, lines: Iterator[Line]) -> Iterator[FoundRecord]:
        """The records of consecutive lines; blank lines are none."""

    @property
    def count(self) -> int:
        """The number of records."""
        return self._index[1]

    def read(self, start: int, stop: int) -> Iterator[FoundRecord]:
        """Records start..stop; `start` is a multiple of PART_RECORDS."""
        places, _ = self._index
        if start >= stop or start // PART_RECORDS >= len(places):
            return
        offset, number = places[start // PART_RECORDS]
        yield from islice(self._found(self._lines(offset, number)), stop - start)

    @property
    def _first_line(self) -> int:
        """The number of lines before the first record."""
        return 0

    @cached_property
    def _index(self) -> tuple[list[tuple[int, int]], int]:
        """Byte offset and line number of every 512th record, and the number of records."""
        places: list[tuple[int, int]] = []
        count = 0
        for found in self._found(islice(self._lines(0, 1), self._first_line, None)):
            if count % PART_RECORDS == 0:
                places.append((found.line.offset, found.line.number))
            count += 1
        return places, count

    def _lines(self, offset: int, number: int) -> Iterator[Line]:
        """Lines from a byte offset on; a carriage return within one is a blank."""
        encoding = "utf-8" if self.encoding == "utf-8-sig" else self.encoding
        with self._utf8.open("rb") as file:
            file.seek(offset)
            for raw in file:
                try:
                    text = raw.decode(encoding)
                except UnicodeDecodeError:
                    yield Line(offset, number, None)
                else:
                    text = text.replace("\r\n", "\n").replace("\r", " ")
                    yield Line(offset, number, text.removeprefix("\ufeff") if not offset else text)
                offset += len(raw)
                number += 1


def _kept_file() -> Path:
    """A new file that is kept until the program ends: decoding workers read it too."""
    descriptor, name = tempfile.mkstemp()
    os.close(descriptor)
    atexit.register(Path(name).unlink, missing_ok=True)
    return Path(name)


def _unpacked(path: Path, packing: str) -> Path:
    """What a packed file holds, in a kept file."""
    kept = _kept_file()
    with kept.open("wb") as copy:
        unpack(path, packing, copy)
    return kept


def _in_utf8(path: Path, encoding: str) -> Path:
    """A copy of a text in UTF-8, its lines ended by a line feed, in a kept file. What is no text
    becomes U+FFFD."""
    kept = _kept_file()
    with (
        path.open(encoding=encoding, errors="replace") as file,
        kept.open("w", encoding="utf-8", errors="replace", newline="\n") as copy,
    ):
        shutil.copyfileobj(file, copy)
    return kept


def _in_lines(values: list[Any]) -> Path:
    """One JSON value a line, in a kept file."""
    kept = _kept_file()
    with kept.open("w", encoding="utf-8", newline="\n") as copy:
        copy.writelines(json.dumps(value) + "\n" for value in values)
    return kept


class JsonLines(TextRecords):
    """One JSON object a line, or one JSON array or (in a .json file) object that holds them all
    (`features.pairs.json_objects`), which is held in memory once."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        text = next((line.text for line in self._lines(0, 1) if (line.text or "").strip()), "")
        first = (text or "").lstrip()[:1]
        if first == "[" or (first == "{" and unpacked_name(path.name).endswith(JSON)):
            self._open_whole(first)

    def _open_whole(self, first: str) -> None:
        """Read the one JSON value that the file is; several objects, one a line, are left alone.

        Raises:
            UserError: it begins as an array and is none.
        """
        encoding = "utf-8" if self.encoding == "utf-8-sig" else self.encoding
        try:
            whole = json.loads(self._utf8.read_bytes().decode(encoding).removeprefix("\ufeff"))
        except (ValueError, RecursionError) as error:
            if first == "{":
                return
            raise UserError(
                f"{self.path}: begins as a JSON array and is none ({first_line(error)}); write it "
                "again, or one JSON object a line"
            ) from None
        self._utf8 = _in_lines(records_of(whole))
        self.encoding = "utf-8"

    def names(self) -> list[str]:
        first = [found.record for found in self.read(0, PART_RECORDS)]
        records = [record for record in first if isinstance(record, dict)]
        if first and not records:
            raise UserError(
                f"{self.path}: {first[0]}; write one JSON object a line, or an array of objects "
                'such as {"image": "a.png", "caption": "a cat"}'
            )
        return list(dict.fromkeys(key for record in records for key in record))

    def _found(self, lines: Iterator[Line]) -> Iterator[FoundRecord]:
        for line in lines:
            if line.text is None:
                yield FoundRecord(line, f"line {line.number} is not {self.encoding}")
            elif line.text.strip():
                yield FoundRecord(line, self._parsed(line.text))

    @staticmethod
    def _parsed(text: str) -> Record | str:
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            return str(error) or "nested too deeply"
        return record if isinstance(record, dict) else "not an object"


class Delimited(TextRecords):
    """A table whose first line names the columns, with any of DELIMITERS and quotes as usual; or a
    list as CelebA has them: a line with the number of records, one with the columns' names, and
    then, all between blanks, a picture's name and its values.

    A quote that opens a field and never closes it, or closes it only after lines that are records
    themselves, is taken literally.

    Args:
        columns: names that the user gave, which help to find the delimiter.
    """

    def __init__(self, path: Path, columns: Sequence[str] = ()) -> None:
        super().__init__(path)
        csv.field_size_limit(sys.maxsize)
        self.delimiter = ","
        self.header: list[str] = []
        self._header_lines = 0
        self._between_blanks = self._is_a_list()
        if self._between_blanks:
            return
        known = {*USUAL_COLUMNS, *map(usual_form, columns)}
        for line in self._lines(0, 1):
            self._header_lines = line.number
            text = line.text or ""
            if hint := EXCEL_HINT.match(text):
                known = set()
                self.delimiter = hint.group(1)
            elif text.strip():
                if known:
                    self.delimiter = self._best_delimiter(text, known)
                row = self._parsed(text, self.delimiter)
                cells = row if isinstance(row, list) else self._literal(text)
                self.header = unique_names([cell.strip(UNSEEN) for cell in cells])
                break

    def names(self) -> list[str]:
        return [name for name in self.header if name]

    @property
    def _first_line(self) -> int:
        return self._header_lines

    def _is_a_list(self) -> bool:
        """Whether it is a list as CelebA has them, whose header is kept then; there the pictures'
        column may be without a name."""
        lines = [line.text or "" for line in islice(self._lines(0, 1), 3)]
        if len(lines) < 3 or not COUNT.match(lines[0]):
            return False
        names, first = lines[1].split(), lines[2].split()
        if not first or not first[0].lower().endswith(EXTENSIONS):
            return False
        if len(first) == len(names) + 1:
            names = [IMAGE_COLUMNS[0], *names]
        if len(first) != len(names):
            return False
        self.delimiter, self.header, self._header_lines = " ", unique_names(names), 2
        return True

    def _best_delimiter(self, header: str, known: set[str]) -> str:
        """The one that gives the most known names; of equals the one that gives the most names."""

        def goodness(delimiter: str) -> tuple[int, int]:
            row = self._parsed(header, delimiter)
            names = row if isinstance(row, list) else header.split(delimiter)
            return sum(usual_form(name) in known for name in names), len(names)

        return max(DELIMITERS, key=goodness)

    def _found(self, lines: Iterator[Line]) -> Iterator[FoundRecord]:
        waiting: deque[Line] = deque()
        while (line := waiting.popleft() if waiting else next(lines, None)) is not None:
            if line.text is None:
                yield FoundRecord(line, f"line {line.number} is not {self.encoding}")
            elif not line.text.strip():
                continue
            elif '"' in line.text and not self._between_blanks:
                yield FoundRecord(line, self._record(self._quoted(line, lines, waiting)))
            else:
                yield FoundRecord(line, self._record(self._literal(line.text)))

    def _record(self, row: list[str]) -> Record | str:
        if len(row) > len(self.header):
            if any(row[len(self.header) :]):
                return (
                    f"{len(row)} fields where the header names {len(self.header)} (delimiter "
                    f"{self.delimiter!r}); put fields that hold it in double quotes"
                )
            row = row[: len(self.header)]
        cells = zip(self.header, row, strict=False)
        return {name: _value(cell) for name, cell in cells if name}

    def _literal(self, text: str) -> list[str]:
        """The fields of one line, in which quotes mean nothing."""
        if self._between_blanks:
            return text.split()
        return [field.strip() for field in text.rstrip("\n").split(self.delimiter)]

    def _quoted(self, first: Line, lines: Iterator[Line], waiting: deque[Line]) -> list[str]:
        """The fields of the record that begins with this line, which holds a quote; lines that were
        read ahead and are no part of it go to the front of `waiting`."""
        taken = [first]
        text = first.text or ""
        while (row := self._parsed(text, self.delimiter)) == OPEN:
            if len(taken) > MAX_QUOTED_LINES:
                break
            line = waiting.popleft() if waiting else next(lines, None)
            if line is None:
                break
            taken.append(line)
            if line.text is None:
                break
            text += line.text
        if isinstance(row, list) and not any(self._looks_whole(line) for line in taken[1:]):
            return row
        waiting.extendleft(reversed(taken[1:]))
        return self._literal(first.text or "")

    def _looks_whole(self, line: Line) -> bool:
        """Whether a line that stands within quotes looks like a record of its own."""
        fields = self._literal(line.text or "")
        return len(fields) == len(self.header) and any(
            field.lower().endswith(EXTENSIONS) for field in fields
        )

    @staticmethod
    def _parsed(text: str, delimiter: str) -> list[str] | str | None:
        """The fields of one record; OPEN where it ends within quotes, None where it is no CSV."""
        outcome = None
        for settings in ({}, {"doublequote": False, "escapechar": "\\"}):
            if settings and '\\"' not in text:
                break
            rows = csv.reader(
                io.StringIO(text, newline="\n"),
                delimiter=delimiter,
                skipinitialspace=delimiter != "\t",
                strict=True,
                **settings,  # type: ignore[arg-type]
            )
            try:
                return next(rows)
            except StopIteration:
                return []
            except csv.Error as error:
                if "end of data" in str(error):
                    outcome = OPEN
        return outcome


def unique_names(names: Sequence[str]) -> list[str]:
    """The names of columns; one that repeats another gets a number (caption, caption.1)."""
    found: list[str] = []
    for name in names:
        numbered = (f"{name}.{number}" for number in count(1))
        repeated = name in found and name != ""
        found.append(next(n for n in numbered if n not in {*names, *found}) if repeated else name)
    return found


def _value(cell: str) -> str | None:
    return None if cell.strip() in MISSING else cell
