"""Text files in the encodings that people's programs write."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from pathlib import Path

from features.errors import UserError

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
WESTERN = "cp1252"
LONE = re.compile(rb"(?<![\x80-\xff])[\x80-\xff](?![\x80-\xff])")
HIGH = re.compile(rb"[\x80-\xff]")
NOT_WESTERN = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")
AMIDST = re.compile(
    rb"(?<=[A-Za-z])[\x80\x82-\x84\x86-\x8c\x8e\x95\x98\x9b\x9f\xa1-\xa9\xab\xac\xaf\xb1-\xb3\xb6\xb8"
    rb"\xb9\xbb-\xde\xf7](?=[a-z])"
)
"""In Windows-1252, capitals and signs within words, where they don't belong."""
AT_THE_END = re.compile(
    rb"(?<=[a-z])[\x82-\x84\x87\x88\x8a\x8c\x8e\x9f\xa1\xbf-\xd6\xd8-\xde](?![A-Za-z\x80-\xff])"
)
"""Those that end no word in small letters."""
MOSTLY, SOMETIMES = 0.75, 0.25


class UnknownEncoding(UserError):
    """Text whose encoding cannot be told; the message is the reason."""


def encoding_of(lines: Iterable[bytes]) -> str:
    """The encoding of a text: by its byte order mark; UTF-16 by the zeros of its first line; UTF-8
    where most lines beyond ASCII are valid; Windows-1252 (which holds Latin-1) where single
    accented letters stand among ASCII, and few signs and capitals where small letters belong, as
    in texts of Central Europe, of DOS and of old Macs.

    Args:
        lines: the text, cut behind each byte 10.

    Raises:
        UnknownEncoding: none of these.
    """
    valid = high = lone = odd = 0
    wrong: list[tuple[int, int]] = []  # line and byte
    western = True
    for number, line in enumerate(lines, start=1):
        if number == 1 and (marked := _marked(line)) is not None:
            return marked
        if line.isascii():
            continue
        try:
            line.decode("utf-8")
            valid += 1
        except UnicodeDecodeError as error:
            wrong.append((number, line[error.start]))
            western = western and NOT_WESTERN.search(line) is None
        high += len(HIGH.findall(line))
        lone += len(LONE.findall(line))
        odd += len(AMIDST.findall(line)) + len(AT_THE_END.findall(line))
    if len(wrong) <= valid:
        return "utf-8"
    if western and lone >= MOSTLY * high and odd <= SOMETIMES * high:
        return WESTERN
    number, byte = wrong[0]
    raise UnknownEncoding(
        f"byte {byte:#04x} in line {number} is not UTF-8, and the encoding cannot be told; save "
        "the file as UTF-8"
    )


def _marked(line: bytes) -> str | None:
    """The encoding that a text's first line shows before it is decoded."""
    for mark, encoding in MARKS:
        if line.startswith(mark):
            return encoding
    for zeros, encoding in ((line[1::2], "utf-16-le"), (line[0::2], "utf-16-be")):
        if len(zeros) > 1 and zeros.count(0) > MOSTLY * len(zeros):
            return encoding
    return None


def decode_text(content: bytes) -> str:
    """A small text file, without its byte order mark.

    Raises:
        UnknownEncoding: see `encoding_of`.
    """
    encoding = encoding_of(content.splitlines(keepends=True))
    try:
        return content.decode(encoding).lstrip("\ufeff")
    except UnicodeDecodeError as error:
        raise UnknownEncoding(f"not valid {encoding} ({error.reason})") from None


def read_text(path: str | Path) -> str:
    """A text file that a user wrote, in whatever encoding can be told.

    Raises:
        UserError: it cannot be read, or its encoding cannot be told.
    """
    try:
        return decode_text(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except UnknownEncoding as error:
        raise UserError(f"{path}: {error}") from None


def is_unicode(text: str) -> bool:
    """Whether a text can be written: lone surrogates cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    """The text with what cannot be written spelled out (`\\udc80`)."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")
