"""A random sample of a store's pairs, read as a store is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from features.errors import UserError
from features.store.store import ActivationStore

SMALLEST = 2


def sampled(store: ActivationStore, pairs: int | None, seed: int) -> ActivationStore:
    """A store of so many of a store's pairs; the store itself where `pairs` is None, or as many as
    it has, or more.

    Stores of the same pairs give the same sample.

    Raises:
        UserError: `pairs` is less than 2.
    """
    if pairs is not None and pairs < SMALLEST:
        raise UserError(f"sample {pairs}: must be at least {SMALLEST} pairs")
    if pairs is None or pairs >= len(store):
        return store
    return SampledStore(store, pairs, seed)


class SampledStore(ActivationStore):
    """Pairs of a store, drawn without replacement, in its order; its embeddings stay on disk.

    Args:
        pairs: how many, at most all.
    """

    def __init__(self, store: ActivationStore, pairs: int, seed: int) -> None:
        super().__init__(store.path, store.config)
        drawn = np.random.default_rng(seed).choice(len(store), pairs, replace=False)
        self._drawn = np.sort(drawn)  # [pairs]
        self._whole = store
        self._name = f"{pairs} by {seed}"

    def __len__(self) -> int:
        return len(self._drawn)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self._whole.fingerprint}/{self._name}".encode()).hexdigest()

    def rows(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        return self._whole.rows(self._places(indices).tolist())

    def samples(self) -> pa.Table:
        return self._whole.samples().take(pa.array(self._drawn))

    def sample_batches(
        self, batch_size: int, pairs: range | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[pa.Table]:
        pairs = range(len(self)) if pairs is None else pairs
        names = self._whole.sample_columns if columns is None else columns
        for start in range(pairs.start, pairs.stop, batch_size):
            stop = min(start + batch_size, pairs.stop)
            yield self.sample_rows(range(start, stop), names)

    def sample_rows(self, indices: Sequence[int], columns: Sequence[str]) -> pa.Table:
        return self._whole.sample_rows(self._places(indices).tolist(), columns)

    def _range(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        image, text = self.rows(range(start, stop))
        return image.half().numpy(), text.half().numpy()

    def _places(self, indices: Sequence[int] | Tensor) -> np.ndarray:
        """Where the pairs at `indices` of the sample stand in the whole store.

        Raises:
            IndexError: an index is negative or beyond the last pair.
        """
        wanted = np.asarray(
            indices if not isinstance(indices, torch.Tensor) else indices.cpu(), dtype=np.int64
        ).reshape(-1)
        if wanted.size and wanted.min() < 0:
            raise IndexError(f"rows of a sample of {len(self)} pairs: {wanted.min()}")
        return self._drawn[wanted]
