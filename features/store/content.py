"""What tells pairs apart: their content, whatever they are called and wherever they lie."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from PIL import ExifTags, Image

KEY_LENGTH = 32
PICTURE_LENGTH = 16
"""Of a key, what says which picture it is."""
JPEG = b"\xff\xd8\xff"
START_OF_SCAN, COMMENT, ADOBE = 0xDA, 0xFE, 0xEE
APPLICATION = range(0xE0, 0xF0)
ALONE = (0x01, *range(0xD0, 0xD9))
"""Markers without a segment."""


def content_key(image: Image.Image, captions: Sequence[str], file: bytes | None = None) -> str:
    """The key of a pair: 16 hexadecimal digits of a sha256 over its picture, and 16 of one over its
    picture and its captions.

    A JPEG counts by its coded data and its orientation, since its pixels follow the scale at which
    it was decoded; metadata does not count. Other pictures count by their size and pixels.

    Args:
        image: RGB, decoded.
        file: its image file's content; None where there is none.
    """
    if file is not None and file.startswith(JPEG):
        digest = _jpeg_digest(file)
    else:
        digest = hashlib.sha256(f"{image.width} {image.height}".encode())
        digest.update(image.tobytes())
    picture = digest.hexdigest()[:PICTURE_LENGTH]
    for caption in captions:
        text = caption.encode("utf-8", "surrogatepass")
        digest.update(f" {len(text)} ".encode() + text)
    return picture + digest.hexdigest()[: KEY_LENGTH - PICTURE_LENGTH]


def picture_of(key: str) -> str:
    """What a pair's key says of its picture; a key that was made otherwise is one of its own."""
    return key[:PICTURE_LENGTH] if len(key) == KEY_LENGTH else key


class KnownContents:
    """The keys of many pairs, eight bytes each.

    Args:
        keys: as `content_key` makes them, some at a time.
    """

    def __init__(self, keys: Iterable[Sequence[str]] = ()) -> None:
        parts = [np.array([_number(key) for key in some], dtype=np.uint64) for some in keys]
        self._numbers = np.unique(np.concatenate([np.empty(0, np.uint64), *parts]))

    def __contains__(self, key: str) -> bool:
        number = np.uint64(_number(key))
        place = int(np.searchsorted(self._numbers, number))
        return place < len(self._numbers) and self._numbers[place] == number


def _number(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def _jpeg_digest(file: bytes) -> hashlib._Hash:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's, of metadata that is damaged
        image = Image.open(io.BytesIO(file), formats=["JPEG"])
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    digest = hashlib.sha256(f"jpeg {orientation}".encode())
    for segment in _coded(file):
        digest.update(segment)
    return digest


def _coded(file: bytes) -> Iterator[memoryview]:
    """A JPEG's segments without its metadata, the last from the first scan to the end. Adobe's
    segment is none: it says how colours are coded."""
    view = memoryview(file)
    at = 2
    while at + 4 <= len(file) and file[at] == 0xFF:
        marker = file[at + 1]
        if marker == START_OF_SCAN:
            break
        if marker == 0xFF:  # fills up
            at += 1
        elif marker in ALONE:
            at += 2
        else:
            end = at + 2 + int.from_bytes(file[at + 2 : at + 4], "big")
            if marker == ADOBE or (marker != COMMENT and marker not in APPLICATION):
                yield view[at:end]
            at = end
    yield view[at:]
