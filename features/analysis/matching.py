"""Which feature of one FeatureSpace is which of another: by their activations on the same pairs."""

from __future__ import annotations

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
    """Match the features of two spaces, in one pass over pairs that both encoders have seen.

    The images and the texts of all pairs are one long list of samples, over which activations are
    correlated. Partners are assigned so that the sum of correlations is largest; a pair below
    LEAST_CORRELATION, or below what other pairs give, is none. The pairs are read shuffled
    (`ActivationStore.shuffled_batches`), so that the other pairs of a batch are no neighbours: in
    data sorted by class, neighbours are of one kind.

    Args:
        first_store: embeddings by the first space's encoder.
        second_store: embeddings of the same pairs by the second's.
        seed: of the shuffling.

    Raises:
        UserError: the stores hold other pairs, or a store is of another encoder than its space.
    """
    from rich.progress import track
    from scipy.optimize import linear_sum_assignment

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
    found = CorrelationStatistics(len(first), len(second))
    chance = CorrelationStatistics(len(first), len(second))
    shuffled = (  # alike: the order depends on the seed and the number of pairs alone
        store.shuffled_batches(BATCH, torch.Generator().manual_seed(seed))
        for store in (first_store, second_store)
    )
    for (image, text), (other_image, other_text) in track(
        zip(*shuffled, strict=True),
        description="matching features",
        total=-(-len(first_store) // BATCH),
        disable=not progress,
    ):
        z = torch.stack([first.encode_images(image), first.encode_texts(text)]).cpu()
        w = torch.stack([second.encode_images(other_image), second.encode_texts(other_text)]).cpu()
        found.update(z.flatten(0, 1), w.flatten(0, 1))
        if len(image) > 1:  # else there is no other pair
            chance.update(z.flatten(0, 1), w.roll(1, dims=1).flatten(0, 1))
    correlations = found.correlations()
    best_by_chance = chance.correlations().max(axis=1)
    floor = float(np.quantile(best_by_chance, FLOOR_QUANTILE))
    rows, columns = linear_sum_assignment(correlations, maximize=True)
    values = correlations[rows, columns]
    kept = values >= max(LEAST_CORRELATION, floor)
    partner = np.full(len(first), NO_PARTNER)
    correlation = np.full(len(first), np.nan)
    partner[rows[kept]], correlation[rows[kept]] = columns[kept], values[kept]
    return Matching(partner, correlation, floor)
