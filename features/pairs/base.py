"""What every source of pairs offers: parts, that give pairs and what was skipped."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from PIL import Image

from features.errors import UserError
from features.pairs.images import UnreadableImage, decode_image
from features.pairs.text import printable

PART_RECORDS = 512
SAMPLED_BYTES = 8192
Record = dict[str, Any]


class NoRecords(UserError):
    """A file that can be read, and lists nothing."""


class UnreadableFile(UserError):
    """A file of pairs that is damaged, or none.

    Args:
        reason: what is wrong with it, and what to do.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason


@dataclass(frozen=True)
class Described:
    """What is known of a pair without its image."""

    id: str
    captions: tuple[str, ...]
    """None empty; at least one, unless the source was opened for images alone."""
    attributes: dict[str, str | None]
    location: str
    """By which `PairSource.images` finds the image."""


@dataclass(frozen=True)
class Pair(Described):
    """One image with its captions and attributes."""

    image: Image.Image
    """RGB; transparency is laid on white."""
    file: bytes | None = field(default=None, repr=False)
    """Its image file's content; None where the image is drawn."""


@dataclass(frozen=True)
class Skipped:
    """A record that gave no pair; `reason` is "kind: detail"."""

    id: str
    location: str
    reason: str


@dataclass(frozen=True)
class Found:
    """A pair on its way out of a source.

    picture: gives its image file's content, or the image where it is drawn; or raises
        UnreadableImage.
    """

    described: Described
    picture: Callable[[], bytes | Image.Image]

    def pair(self, short_side: int | None = None) -> Pair | Skipped:
        """The pair, its image decoded.

        Args:
            short_side: as `decode_image` takes it.
        """
        try:
            picture = self.picture()
            if isinstance(picture, Image.Image):
                return Pair(**vars(self.described), image=picture)
            image = decode_image(picture, short_side)
        except UnreadableImage as error:
            return Skipped(self.described.id, self.described.location, printable(str(error)))
        return Pair(**vars(self.described), image=image, file=picture)


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
    def found(self, part: Part) -> Iterator[Found | Skipped]:
        """The part's records in order, their images not yet decoded."""

    def read(self, part: Part, short_side: int | None = None) -> Iterator[Pair | Skipped]:
        """The part's records in order.

        Args:
            short_side: as `decode_image` takes it.
        """
        for found in self.found(part):
            yield found if isinstance(found, Skipped) else found.pair(short_side)

    def describe(self, part: Part) -> Iterator[Described | Skipped]:
        """The part's records in order, without a look at their images."""
        for found in self.found(part):
            yield found if isinstance(found, Skipped) else found.described

    @abstractmethod
    def images(self, locations: Iterable[str]) -> Iterator[tuple[str, Image.Image]]:
        """The RGB images at these locations, each with its location, one at a time in the order in
        which they are stored; those that cannot be read are left out."""

    @abstractmethod
    def fingerprint(self) -> str:
        """sha256 over the content: all texts, and each image file's size and some of its bytes."""

    def total(self) -> int | None:
        """The number of records, where it is known without reading the files."""
        return None

    def require_attributes(self, attributes: Sequence[str]) -> None:
        """Check that the pairs have these attributes, before long work on them. Reads no further
        than to where each of them occurred.

        Raises:
            UserError: no pair has one of them.
        """
        if not attributes:
            return
        missing, known = set(attributes), dict[str, None]()
        described = False
        for part in self.parts():
            for record in self.describe(part):
                if isinstance(record, Skipped):
                    continue
                described = True
                known.update(dict.fromkeys(record.attributes))
                missing -= known.keys()
                if not missing:
                    return
        for attribute in attributes:
            if described and attribute in missing:
                raise unknown_attribute(attribute, self.name, list(known))


def unknown_attribute(attribute: str, pairs: str, known: Sequence[str]) -> UserError:
    """What is wrong where pairs have other attributes, or none."""
    have = f"they have {', '.join(known)}" if known else "they have none"
    return UserError(f"{attribute}: {pairs} has no such attribute; {have}")


def spans(name: str, count: int) -> list[Part]:
    """Parts of PART_RECORDS records, the last one shorter."""
    return [
        Part(name, start, min(start + PART_RECORDS, count))
        for start in range(0, count, PART_RECORDS)
    ]


def sampled(file: IO[bytes], start: int, size: int) -> bytes:
    """sha256 over a long content's size and its first, middle and last 8 KiB, where any change of
    a compressed picture shows."""
    digest = hashlib.sha256(str(size).encode())
    for offset in sorted({0, max(0, size // 2 - SAMPLED_BYTES), max(0, size - SAMPLED_BYTES)}):
        file.seek(start + offset, os.SEEK_SET)
        digest.update(file.read(min(SAMPLED_BYTES, size - offset)))
    return digest.digest()
