"""Which feature of one FeatureSpace is which of another: by their activations on the same pairs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from features.bootstrap import FLOOR_QUANTILE
from features.encoders.fingerprint import same_encoder
from features.errors import UserError
from features.space.space import FeatureSpace
from features.store.store import ActivationStore, same_pairs

BATCH = 1024
LEAST_CORRELATION = 0.5
"""Features whose activations correlate less are not taken for the same."""
NO_PARTNER = -1
CORRELATIONS_HELD = 1 << 24
"""Correlations between features that are summed up at a time, of 8 bytes each."""
ALONE = 1e-9
"""What it counts in the assignment to have no partner: less than any partner."""


@dataclass(frozen=True)
class Matching:
    """One-to-one, from the features of a first space to those of a second.

    partner: the second space's feature, or NO_PARTNER: `[features of the first]` int64.
    correlation: of the two features' activations; NaN where there is no partner: `[features of
        the first]`.
    floor: the 97.5% quantile, over the first space's features, of the best correlation with the
        second space's features on other pairs, drawn from all of them.
    """

    partner: np.ndarray
    correlation: np.ndarray
    floor: float

    @property
    def matched(self) -> np.ndarray:
        """`[features of the first]` bool."""
        return self.partner != NO_PARTNER


class CorrelationStatistics:
    """The sums from which the correlation of each feature of one space with each of another
    follows, in float64, mergeable."""

    def __init__(self, first: int, second: int, device: torch.device | str = "cpu") -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.samples = 0
        self.total = [zeros(first), zeros(second)]
        self.squares = [zeros(first), zeros(second)]
        self.product = zeros(first, second)

    def update(self, first: Tensor, second: Tensor) -> None:
        """Add samples.

        Args:
            first: activations `[n, features of the first]`; signs don't matter.
            second: activations of the same samples `[n, features of the second]`.
        """
        both = [first.double().abs(), second.double().abs()]
        self.samples += len(first)
        for total, squares, a in zip(self.total, self.squares, both, strict=True):
            total += a.sum(0)
            squares += a.square().sum(0)
        self.product += both[0].T @ both[1]

    def merge(self, other: CorrelationStatistics) -> None:
        """Add the sums of other samples."""
        self.samples += other.samples
        for mine, theirs in (
            *zip(self.total, other.total, strict=True),
            *zip(self.squares, other.squares, strict=True),
            (self.product, other.product),
        ):
            mine += theirs.to(mine.device)

    def correlations(self) -> np.ndarray:
        """Pearson's, `[features of the first, features of the second]`; 0 where a feature doesn't
        vary."""
        n = max(1, self.samples)
        means = [total / n for total in self.total]
        scales = [
            (squares / n - mean.square()).clamp(min=0).sqrt()
            for squares, mean in zip(self.squares, means, strict=True)
        ]
        covariance = self.product / n - means[0][:, None] * means[1]
        scale = scales[0][:, None] * scales[1]
        return torch.where(scale > 1e-12, covariance / scale, 0.0).cpu().numpy()


def match_features(
    first: FeatureSpace,
    first_store: ActivationStore,
    second: FeatureSpace,
    second_store: ActivationStore,
    *,
    seed: int = 0,
    progress: bool = True,
) -> Matching:
    """Match the features of two spaces, over pairs that both encoders have seen.

    The images and the texts of all pairs are one long list of samples, over which activations are
    correlated. A pair of features below LEAST_CORRELATION, or below what other pairs give, is none;
    partners are assigned among the rest so that the sum of their correlations is largest. The pairs
    are read shuffled (`ActivationStore.shuffled_batches`), so that the other pairs of a batch are
    no neighbours: in data sorted by class, neighbours are of one kind.

    Memory is bounded: the first space's features are taken in blocks, each with all of the second's
    (CORRELATIONS_HELD), with a pass over the pairs for each block. Only correlations from
    LEAST_CORRELATION on are kept.

    Args:
        first_store: embeddings by the first space's encoder.
        second_store: embeddings of the same pairs by the second's.
        seed: of the shuffling.

    Raises:
        UserError: the stores hold other pairs, or a store is of another encoder than its space.
    """
    for space, store in ((first, first_store), (second, second_store)):
        if not same_encoder(space.config.encoder_fingerprint, store.config.encoder_fingerprint):
            raise UserError(
                f"{store.path}: embeddings of {store.config.encoder}, but the space's features "
                f"belong to {space.config.encoder}; extract the pairs with that one"
            )
    if not same_pairs(first_store, second_store):
        raise UserError(
            f"{second_store.path}: its pairs are not those of {first_store.path}, row by row; "
            "extract both from the same pairs"
        )
    size = max(1, CORRELATIONS_HELD // len(second))
    starts = range(0, len(first), size)
    rows, columns, values, best_by_chance = [], [], [], []
    for number, start in enumerate(starts):
        block = slice(start, min(start + size, len(first)))
        title = "matching features" + f", block {number + 1} of {len(starts)}" * (len(starts) > 1)
        batches = _shuffled_activations(first, first_store, second, second_store, seed)
        total = -(-len(first_store) // BATCH)
        found, chance = _block_correlations(block, batches, len(second), total, title, progress)
        row, column = np.nonzero(found >= LEAST_CORRELATION)
        rows.append(row + start)
        columns.append(column)
        values.append(found[row, column])
        best_by_chance.append(chance.max(axis=1))
    floor = float(np.quantile(np.concatenate(best_by_chance), FLOOR_QUANTILE))
    row, column, value = (np.concatenate(each) for each in (rows, columns, values))
    kept = value >= floor
    return _assigned(row[kept], column[kept], value[kept], len(first), len(second), floor)


def _shuffled_activations(
    first: FeatureSpace,
    first_store: ActivationStore,
    second: FeatureSpace,
    second_store: ActivationStore,
    seed: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Activations of images and texts in both spaces, on the CPU: `[2, n, features]` each."""
    shuffled = (  # alike: the order depends on the seed and the number of pairs alone
        store.shuffled_batches(BATCH, torch.Generator().manual_seed(seed))
        for store in (first_store, second_store)
    )
    for (image, text), (other_image, other_text) in zip(*shuffled, strict=True):
        yield (
            torch.stack([first.encode_images(image), first.encode_texts(text)]).cpu(),
            torch.stack([second.encode_images(other_image), second.encode_texts(other_text)]).cpu(),
        )


def _block_correlations(
    block: slice,
    batches: Iterable[tuple[Tensor, Tensor]],
    second: int,
    total: int,
    title: str,
    progress: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Correlations of a block of the first space's features with the `second` features of the other
    on the same pairs, and on other pairs: `[block, second]` each."""
    from rich.progress import track

    rows = block.stop - block.start
    found, chance = (CorrelationStatistics(rows, second) for _ in range(2))
    for z, w in track(batches, description=title, total=total, disable=not progress):
        z = z[..., block]
        found.update(z.flatten(0, 1), w.flatten(0, 1))
        if z.shape[1] > 1:  # else there is no other pair
            chance.update(z.flatten(0, 1), w.roll(1, dims=1).flatten(0, 1))
    return found.correlations(), chance.correlations()


def _assigned(
    row: np.ndarray, column: np.ndarray, value: np.ndarray, first: int, second: int, floor: float
) -> Matching:
    """The one-to-one assignment with the largest sum of correlations.

    Args:
        row, column, value: which of the `first` and of the `second` features may be partners, and
            their correlation, above 0: `[candidates]` each.
        floor: of the Matching.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    alone = np.arange(first)  # each feature has a column of its own, for being without a partner
    weights = np.concatenate([value, np.full(first, ALONE)])
    places = (np.concatenate([row, alone]), np.concatenate([column, second + alone]))
    graph = csr_array((weights, places), shape=(first, second + first))
    _, chosen = min_weight_full_bipartite_matching(graph, maximize=True)
    matched = chosen < second
    partner = np.where(matched, chosen, NO_PARTNER).astype(np.int64)
    correlation = np.full(first, np.nan)
    correlation[matched] = np.asarray(graph[alone[matched], chosen[matched]]).ravel()
    return Matching(partner, correlation, floor)
