"""Rows of a store that show the same picture: a row for each of its captions, or rows twice over.

They are no independent samples. Statistics over pairs count a picture once, and draw its rows
together. The same picture has the same embedding, to the bit, by which it is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from features.store.store import SAMPLE_BATCH, ActivationStore

HALVES_A_WORD = 4
"""Numbers of 16 bits in one of 64."""


def embedding_keys(embeddings: Tensor) -> np.ndarray:
    """A key for each embedding as a store keeps it (fp16): `[n, dim]` -> `[n]` uint64, equal for
    equal embeddings.

    By multilinear hashing: a sum of products with random odd numbers, modulo 2^64.
    """
    padded = F.pad(embeddings.half(), (0, -embeddings.shape[1] % HALVES_A_WORD))
    words = padded.contiguous().numpy().view(np.uint64)  # [n, words]
    words = words ^ (words >> np.uint64(29))  # a product's lower bits see the lower bits alone
    factors = np.random.default_rng(0).integers(2**63, size=words.shape[1], dtype=np.uint64)
    return words @ (2 * factors + 1)


def pictures_shown(store: ActivationStore, rows: np.ndarray) -> np.ndarray:
    """Keys of the pictures that some rows of a store show: `[n]` uint64."""
    parts = [
        embedding_keys(store.rows(torch.from_numpy(rows[start : start + SAMPLE_BATCH]))[0])
        for start in range(0, len(rows), SAMPLE_BATCH)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)


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
        """Those of a store, in one reading of it; some 24 bytes a pair are held."""
        images = np.empty(len(store), dtype=np.uint64)
        both = np.empty_like(images)
        start = 0
        for image, text in store.batches(SAMPLE_BATCH):
            place = slice(start, start + len(image))
            images[place] = embedding_keys(image)
            both[place] = images[place] ^ (embedding_keys(text) * np.uint64(0x9E3779B97F4A7C15))
            start += len(image)
        return cls.of_keys(images, both)

    @classmethod
    def of_keys(cls, images: np.ndarray, both: np.ndarray) -> Pictures:
        """Of the keys of pictures, and of pictures with their texts: `[pairs]` each."""
        ordered = np.sort(images)
        several = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        if not len(several):
            nothing = np.zeros(0, dtype=np.int64)
            return cls(nothing, nothing, nothing, nothing.astype(bool))
        place = np.searchsorted(several, images).clip(max=len(several) - 1)
        pairs = np.flatnonzero(several[place] == images)
        first, count = _firsts(images[pairs])
        repeats = _firsts(both[pairs])[0] < np.arange(len(pairs))
        return cls(pairs, pairs[first], count, repeats)

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
