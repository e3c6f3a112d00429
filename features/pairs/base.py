"""What every source of pairs offers: parts, that give pairs and what was skipped."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image

PART_RECORDS = 512
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


def spans(name: str, count: int) -> list[Part]:
    return [
        Part(name, start, min(start + PART_RECORDS, count))
        for start in range(0, count, PART_RECORDS)
    ]
