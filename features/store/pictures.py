"""Rows of a store that show the same picture: a row for each of its captions, or rows twice over.

They are no independent samples. Statistics over pairs count a picture once, and draw its rows
together. Which picture a pair shows, its content says (`features.store.content`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from features.store.content import picture_of
from features.store.store import SAMPLE_BATCH, ActivationStore


def pictures_shown(store: ActivationStore, rows: np.ndarray) -> np.ndarray:
    """For each of some rows of a store the place among them of the first that shows the same
    picture, its own where the store does not know: `[n]` int64."""
    if not store.has_content:
        return np.arange(len(rows))
    parts = [
        picture_keys(
            _contents(store.sample_rows(rows[start : start + SAMPLE_BATCH].tolist(), ["content"]))
        )
        for start in range(0, len(rows), SAMPLE_BATCH)
    ]
    return first_of_equal(np.concatenate(parts)) if parts else np.arange(0)


def picture_keys(contents: Sequence[str]) -> np.ndarray:
    """Keys of the pictures that pairs show, by their contents: `[n]` int64, equal for the same
    picture, in this process alone."""
    return np.fromiter((hash(picture_of(content)) for content in contents), np.int64, len(contents))


def first_of_equal(keys: np.ndarray) -> np.ndarray:
    """For each key the place of the first that is equal: `[n]` -> `[n]` int64."""
    return _firsts(keys)[0]


@dataclass(frozen=True)
class Pictures:
    """Which pairs of a data set show the same picture; all others show one of their own.

    pairs: those whose picture another pair shows too, ascending: `[n]` int64.
    first: the first pair that shows it: `[n]` int64.
    count: how many show it: `[n]` int64.
    repeats: an earlier pair shows it, and has the same text: `[n]` bool.
    """

    pairs: np.ndarray
    first: np.ndarray
    count: np.ndarray
    repeats: np.ndarray

    @classmethod
    def of(cls, store: ActivationStore) -> Pictures:
        """Those of a store, in one reading of its samples; some 40 bytes a pair are held. A store
        without contents knows of none."""
        pictures, pairs = [], []
        if store.has_content:
            for samples in store.sample_batches(SAMPLE_BATCH, columns=["content"]):
                contents = _contents(samples)
                pictures.append(picture_keys(contents))
                pairs.append(np.fromiter(map(hash, contents), np.int64, len(contents)))
        nothing = np.zeros(0, dtype=np.int64)
        return cls.of_keys(*(np.concatenate([nothing, *keys]) for keys in (pictures, pairs)))

    @classmethod
    def of_keys(cls, pictures: np.ndarray, whole: np.ndarray) -> Pictures:
        """Of the keys of pictures, and of whole pairs: `[pairs]` each."""
        ordered = np.sort(pictures)
        several = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        if not len(several):
            nothing = np.zeros(0, dtype=np.int64)
            return cls(nothing, nothing, nothing, nothing.astype(bool))
        place = np.searchsorted(several, pictures).clip(max=len(several) - 1)
        pairs = np.flatnonzero(several[place] == pictures)
        first, count = _firsts(pictures[pairs])
        repeats = _firsts(whole[pairs])[0] < np.arange(len(pairs))
        return cls(pairs, pairs[first], count, repeats)

    def design_effect(self, pairs: int) -> float:
        """How many times as much means over so many pairs, all of the data set's, vary if those of
        the same picture are alike as if each showed its own (Kish 1965); 1 where each does."""
        alone = pairs - len(self.pairs)
        return (alone + int(self.count.sum())) / pairs if pairs else 1.0

    def among(self, numbers: Tensor | np.ndarray) -> PicturesOfBatch:
        """Those of some pairs, by their numbers `[n]`."""
        numbers = np.asarray(numbers, dtype=np.int64)
        first, shares = numbers.copy(), np.ones(len(numbers))
        repeats = np.zeros(len(numbers), dtype=bool)
        if len(self.pairs):
            place = np.searchsorted(self.pairs, numbers).clip(max=len(self.pairs) - 1)
            shown = self.pairs[place] == numbers
            place = place[shown]
            first[shown], shares[shown] = self.first[place], 1 / self.count[place]
            repeats[shown] = self.repeats[place]
        return PicturesOfBatch(
            torch.from_numpy(first),
            torch.from_numpy(shares),
            torch.from_numpy(first == numbers),
            torch.from_numpy(~repeats),
        )


@dataclass(frozen=True)
class PicturesOfBatch:
    """What the pairs of a batch show.

    number: of the picture, which is that of the first pair that shows it: `[n]` int64.
    share: of the picture, 1 over the pairs that show it: `[n]` float64.
    new: no earlier pair of the data set shows it: `[n]` bool.
    new_pair: no earlier pair shows it with the same text: `[n]` bool.
    """

    number: Tensor
    share: Tensor
    new: Tensor
    new_pair: Tensor


def _firsts(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each key the place of the first that is equal, and how many are: `[n]` int64 each."""
    _, first, inverse, count = np.unique(
        keys, return_index=True, return_inverse=True, return_counts=True
    )
    return first[inverse], count[inverse]


def _contents(samples: pa.Table) -> list[str]:
    return samples["content"].to_pylist()
