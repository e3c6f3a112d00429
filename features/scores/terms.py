"""What the captions and attributes of pairs say, as terms to name features by.

Terms are the words of the captions (`features.scores.words`), the pairs' tags (`attribute.tags`,
joined by "|"), and the values of their other attributes, written "attribute: value".
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from features.errors import UserError
from features.pairs.text import read_text
from features.scores.words import holds, normalised, words
from features.store.store import ATTRIBUTE

TAGS = ATTRIBUTE + "tags"
TAG_SEPARATOR = "|"
OF_ATTRIBUTE = ": "
"""Between an attribute's name and its value."""
MIN_PAIRS = 5
MAX_SHARE = 0.5
MAX_TERMS = 2000
COUNTED_TERMS = 500_000
"""Beyond this many different terms, those that were seen only once so far are forgotten."""


def pair_terms(samples: pa.Table, phrases: Sequence[str] = ()) -> Iterator[set[str]]:
    """The terms of each row of a store's samples, and those of `phrases` whose words stand in one
    of its captions, whole and in this order."""
    attributes = [name for name in samples.column_names if name.startswith(ATTRIBUTE)]
    columns = (samples[name].to_pylist() for name in ("captions", *attributes))
    for captions, *values in zip(*columns, strict=True):
        terms = set().union(*map(words, captions))
        for column, value in zip(attributes, values, strict=True):
            if not value:
                continue
            if column == TAGS:
                terms.update(normalised(tag) for tag in value.split(TAG_SEPARATOR))
            else:
                name = column.removeprefix(ATTRIBUTE)
                terms.add(unicodedata.normalize("NFC", name + OF_ATTRIBUTE + value))
        terms.discard("")
        if phrases:
            plain = [normalised(caption) for caption in captions]
            terms.update(p for p in phrases if any(holds(caption, p) for caption in plain))
        yield terms


def phrases_among(terms: Iterable[str]) -> list[str]:
    """The terms that are neither one word nor an attribute's value: they must be looked for."""
    return [term for term in terms if OF_ATTRIBUTE not in term and term not in words(term)]


def vocabulary(
    samples: Iterable[pa.Table],
    *,
    min_pairs: int = MIN_PAIRS,
    max_share: float = MAX_SHARE,
    max_terms: int = MAX_TERMS,
) -> list[str]:
    """The terms to name features by, the commonest first.

    Those that occur in at least `min_pairs` pairs and at most `max_share` of them.

    Args:
        samples: a store's, piece by piece.
    """
    counts: Counter[str] = Counter()
    pairs = 0
    for table in samples:
        pairs += len(table)
        for terms in pair_terms(table):
            counts.update(terms)
        if len(counts) > COUNTED_TERMS:
            counts = Counter({term: count for term, count in counts.items() if count > 1})
    most = max_share * pairs
    kept = [(-count, term) for term, count in counts.items() if min_pairs <= count <= most]
    return [term for _, term in sorted(kept)[:max_terms]]


def read_vocabulary(path: str | Path) -> list[str]:
    """A user's terms, one a line: words, phrases, tags, or "attribute: value".

    Raises:
        UserError: the file cannot be read or holds no term.
    """
    lines = read_text(path).splitlines()
    terms = (
        unicodedata.normalize("NFC", line) if OF_ATTRIBUTE in line else normalised(line)
        for line in map(str.strip, lines)
    )
    found = list(dict.fromkeys(term for term in terms if term))
    if not found:
        raise UserError(f"{path}: no terms; write one a line")
    return found
