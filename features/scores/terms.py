"""What the captions and attributes of pairs say, as terms to name features by.

Terms are the words of the captions (`features.scores.words`), the pairs' tags (`attribute.tags`,
joined by "|"), and the values of their other attributes, written "attribute: value".
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.errors import UserError
from features.pairs.text import read_text
from features.scores.words import holds, normalised, words, words_by_text
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


@dataclass(frozen=True)
class PairTerms:
    """Which terms the pairs of a table have.

    terms: those that any pair has.
    pair, term: the pair's number in the table, and the term's in `terms`, for each term of each
        pair once: `[n]` int64 each.
    """

    terms: list[str]
    pair: np.ndarray
    term: np.ndarray

    def among(self, numbers: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
        """The terms that are numbered elsewhere: pairs and those numbers, `[n]` int64 each."""
        known = np.array([numbers.get(term, -1) for term in self.terms], dtype=np.int64)
        kept = known[self.term] >= 0
        return self.pair[kept], known[self.term[kept]]


def pair_terms(samples: pa.Table, phrases: Sequence[str] = ()) -> PairTerms:
    """The terms of each row of a store's samples, and those of `phrases` whose words stand in one
    of its captions, whole and in this order."""
    captions = samples["captions"].combine_chunks()
    texts, pair_of = pc.list_flatten(captions), pc.list_parent_indices(captions).to_numpy()
    terms, text, term = words_by_text(texts)
    numbers = {term: number for number, term in enumerate(terms)}
    pairs, found = [pair_of[text]], [term]
    for column in samples.column_names:
        if column.startswith(ATTRIBUTE):
            pair, term = _attribute_terms(column, samples[column].combine_chunks(), numbers)
            pairs.append(pair)
            found.append(term)
    if phrases:
        plain = map(normalised, texts.to_pylist())
        held = [
            (pair, numbers.setdefault(phrase, len(numbers)))
            for pair, caption in zip(pair_of.tolist(), plain, strict=True)
            for phrase in phrases
            if holds(caption, phrase)
        ]
        pair, term = np.array(held, dtype=np.int64).reshape(-1, 2).T
        pairs.append(pair)
        found.append(term)
    each = np.unique(np.concatenate(pairs) * len(numbers) + np.concatenate(found))
    pair, term = np.divmod(each, max(1, len(numbers)))
    return PairTerms(list(numbers), pair, term)


def _attribute_terms(
    column: str, values: pa.Array, numbers: dict[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The terms of an attribute's values: pairs and the terms' numbers, `[n]` int64 each; terms
    without a number get the next ones."""
    encoded = values.dictionary_encode()
    by_value = [
        [numbers.setdefault(term, len(numbers)) for term in _terms_of_value(column, value)]
        for value in encoded.dictionary.to_pylist()
    ]
    by_pair = pa.array(by_value, pa.list_(pa.int64())).take(encoded.indices)
    return pc.list_parent_indices(by_pair).to_numpy(), pc.list_flatten(by_pair).to_numpy()


def _terms_of_value(column: str, value: str) -> set[str]:
    if not value:
        return set()
    if column == TAGS:
        return {normalised(tag) for tag in value.split(TAG_SEPARATOR)} - {""}
    name = column.removeprefix(ATTRIBUTE)
    return {unicodedata.normalize("NFC", name + OF_ATTRIBUTE + value)}


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
        found = pair_terms(table)
        times = np.bincount(found.term, minlength=len(found.terms)).tolist()
        counts.update(dict(zip(found.terms, times, strict=True)))
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
