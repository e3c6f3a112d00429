"""Several sources as one: splits in folders of their own, tables and parquet files in shards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from PIL import Image

from features.pairs.base import Described, Found, PairSource, Part, Skipped
from features.pairs.records import skipped

SPLIT = "split"
"""The attribute that says in which split a pair is."""
SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")


def is_split(name: str) -> bool:
    """Whether a folder or a table is called as splits are: `train`, `val2017`."""
    return name.lower().rstrip("0123456789_-") in SPLITS


class DamagedPairs(PairSource):
    """A file of which nothing can be read, among others: listed as one that is skipped."""

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        self.name = path.name
        self.reason = reason

    def parts(self) -> list[Part]:
        return [Part(self.name, 0, 1)]

    def total(self) -> int:
        return 1

    def found(self, part: Part) -> Iterator[Found | Skipped]:
        yield skipped(part.name, part.name, f"unreadable file: {self.reason}")

    def images(self, locations: Iterable[str]) -> Iterator[tuple[str, Image.Image]]:
        return iter(())

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.reason}/{self.path.stat().st_size}".encode()).hexdigest()


class SeveralPairs(PairSource):
    """Sources by a name each, which stands before their pairs' ids and locations.

    Args:
        splits: by source, the split that its pairs get as an attribute, where it is one.
    """

    def __init__(
        self, name: str, sources: Mapping[str, PairSource], splits: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.sources = dict(sources)
        self.splits = dict(splits or {})

    def parts(self) -> list[Part]:
        return [
            replace(part, name=f"{name}/{part.name}")
            for name, source in self.sources.items()
            for part in source.parts()
        ]

    def total(self) -> int | None:
        totals = [source.total() for source in self.sources.values()]
        return None if None in totals else sum(total for total in totals if total is not None)

    def found(self, part: Part) -> Iterator[Found | Skipped]:
        name = self._source_of(part.name)
        inner = replace(part, name=part.name.removeprefix(f"{name}/"))
        split: dict[str, str | None] = {SPLIT: self.splits[name]} if name in self.splits else {}
        for record in self.sources[name].found(inner):
            one = record if isinstance(record, Skipped) else record.described
            place = {"id": f"{name}/{one.id}", "location": f"{name}/{one.location}"}
            if isinstance(record, Skipped):
                yield Skipped(reason=record.reason, **place)
            else:
                attributes = split | record.described.attributes
                described = Described(
                    captions=record.described.captions, attributes=attributes, **place
                )
                yield replace(record, described=described)

    def images(self, locations: Iterable[str]) -> Iterator[tuple[str, Image.Image]]:
        wanted: dict[str, list[str]] = {}
        for location in locations:
            name = self._source_of(location)
            if name:
                wanted.setdefault(name, []).append(location.removeprefix(f"{name}/"))
        for name, inner in wanted.items():
            for location, image in self.sources[name].images(inner):
                yield f"{name}/{location}", image

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name, source in self.sources.items():
            digest.update(f"{name}/{source.fingerprint()}/{self.splits.get(name)}".encode())
        return digest.hexdigest()

    def _source_of(self, place: str) -> str:
        """The name that a part's name or a location begins with; empty where there is none."""
        found = [name for name in self.sources if place.startswith(f"{name}/")]
        return max(found, key=len, default="")
