"""Some of a source's pairs, drawn at random over the whole of it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from PIL import Image

from features.pairs.base import Described, Found, PairSource, Part, Skipped

Item = TypeVar("Item")


class DrawnPairs(PairSource):
    """Those of a source's pairs that are among `described`; what it cannot read is left out."""

    def __init__(self, source: PairSource, described: Sequence[Described]) -> None:
        self.source = source
        self.described = tuple(described)
        self.name = source.name
        self._places = frozenset((one.id, one.location) for one in described)

    def parts(self) -> list[Part]:
        return self.source.parts()

    def found(self, part: Part) -> Iterator[Found | Skipped]:
        for record in self.source.found(part):
            if isinstance(record, Found) and self._holds(record.described):
                yield record

    def images(self, locations: Iterable[str]) -> Iterator[tuple[str, Image.Image]]:
        return self.source.images(locations)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.source.fingerprint().encode())
        for place in sorted(self._places):
            digest.update(repr(place).encode())
        return digest.hexdigest()

    def _holds(self, described: Described) -> bool:
        return (described.id, described.location) in self._places


def draw_pairs(source: PairSource, count: int, seed: int = 0) -> DrawnPairs:
    """At most `count` of the pairs, in random order; all of them where there are no more.

    One pass over the records, of which `count` are held; no image is decoded.
    """
    described = (one for part in source.parts() for one in source.describe(part))
    return DrawnPairs(
        source, reservoir((one for one in described if not isinstance(one, Skipped)), count, seed)
    )


def reservoir(items: Iterable[Item], count: int, seed: int) -> list[Item]:
    """At most `count` of the items, in random order; one pass, in which `count` are held (reservoir
    sampling, algorithm R of Vitter 1985)."""
    rng = random.Random(seed)
    drawn: list[Item] = []
    for seen, item in enumerate(items, start=1):
        if len(drawn) < count:
            drawn.append(item)
        elif (place := rng.randrange(seen)) < count:
            drawn[place] = item
    rng.shuffle(drawn)
    return drawn


def halves(pairs: DrawnPairs) -> tuple[DrawnPairs, DrawnPairs]:
    """The pairs in two parts of about the same size; those of one image fall on one side."""
    locations = list(dict.fromkeys(one.location for one in pairs.described))
    first = set(locations[: len(locations) // 2])
    return (
        DrawnPairs(pairs.source, [one for one in pairs.described if one.location in first]),
        DrawnPairs(pairs.source, [one for one in pairs.described if one.location not in first]),
    )
