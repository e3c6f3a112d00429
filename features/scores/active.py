"""Where a batch of pairs activates features: few places, which is all that the scores need.

A dictionary writes an embedding as few features, so of a batch's `[pairs, features]` activations
nearly all are 0. Sums over these places cost samples x active features, whatever the dictionary's
width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from features.dictionary.base import SparseCode

DENSE_SHARE = 0.1
"""With a larger share of places that aren't 0, dense products are faster."""


@dataclass(frozen=True)
class ActivePairs:
    """The places at which a batch's images or texts activate features, feature by feature.

    pairs: of the batch.
    pair: which pair a place belongs to, ascending within a feature: `[places]` int64.
    feature: which feature, ascending: `[places]` int64.
    counts: places of each feature: `[features]` int64.
    image, text: |activation| by the pair's image and by its text, one of them above 0: `[places]`
        float64.
    """

    pairs: int
    pair: Tensor
    feature: Tensor
    counts: Tensor
    image: Tensor
    text: Tensor

    @classmethod
    def of(cls, image: Tensor, text: Tensor) -> ActivePairs:
        """The places of a batch's activations, `[pairs, features]` each; signs don't matter."""
        pairs, features = image.shape
        active = ((image != 0) | (text != 0)).T.contiguous()  # [features, pairs]
        places = active.flatten().nonzero().squeeze(1)
        feature = places // pairs
        pair = places - feature * pairs
        source = pair * features + feature
        return cls(
            pairs=pairs,
            pair=pair,
            feature=feature,
            counts=active.sum(1),
            image=image.flatten()[source].double().abs(),
            text=text.flatten()[source].double().abs(),
        )

    @classmethod
    def of_codes(cls, image: SparseCode, text: SparseCode, features: int) -> ActivePairs:
        """The places of a batch's codes, without a dense `[pairs, features]`."""
        pairs = len(image.values)
        keys = torch.cat([_keys(code) for code in (image, text)])
        if pairs * features < 2**31:
            keys = keys.int()  # sorted faster
        values = torch.cat([code.values.flatten() for code in (image, text)])
        active = values.nonzero().squeeze(1)
        keys, order = keys[active].sort()
        order = active[order]
        places, place = torch.unique_consecutive(keys, return_inverse=True)
        feature = torch.div(places, pairs, rounding_mode="floor")
        by_modality = values.new_zeros(2, len(places), dtype=torch.float64)
        by_modality[(order >= image.values.numel()).long(), place] = values[order].double().abs()
        return cls(
            pairs=pairs,
            pair=(places - feature * pairs).long(),
            feature=feature.long(),
            counts=torch.bincount(feature, minlength=features),
            image=by_modality[0],
            text=by_modality[1],
        )

    @property
    def features(self) -> int:
        return len(self.counts)

    def where(self, kept: Tensor) -> ActivePairs:
        """Some of the places: `kept` is `[places]` bool."""
        places = kept.nonzero().squeeze(1)
        feature = self.feature[places]
        return replace(
            self,
            pair=self.pair[places],
            feature=feature,
            counts=torch.bincount(feature, minlength=self.features),
            image=self.image[places],
            text=self.text[places],
        )

    def sums(self, values: Tensor) -> Tensor:
        """Sums over each feature's places: `[places]` -> `[features]`."""
        return torch.segment_reduce(values.double(), "sum", lengths=self.counts)

    def dense(self, values: Tensor) -> Tensor:
        """Values `[places]` with the zeros between them: `[pairs, features]`."""
        zeros = values.new_zeros(self.pairs * self.features)
        zeros[self.pair * self.features + self.feature] = values
        return zeros.view(self.pairs, self.features)

    def products(self, values: Tensor, rows: Tensor) -> Tensor:
        """For each feature, the sum over its places of the value times its pair's row.

        Args:
            values: `[places]` float64.
            rows: `[pairs, dim]` float64.

        Returns:
            `[features, dim]`
        """
        present = int(values.count_nonzero())
        if present > DENSE_SHARE * self.pairs * self.features:
            return self.dense(values).T @ rows
        pair, counts = self.pair, self.counts
        if present < len(values):
            places = values.nonzero().squeeze(1)
            pair, values = pair[places], values[places]
            counts = torch.bincount(self.feature[places], minlength=self.features)
        starts = counts.cumsum(0) - counts
        return F.embedding_bag(pair, rows, starts, per_sample_weights=values, mode="sum")


def _keys(code: SparseCode) -> Tensor:
    """Numbers that order a code's places by feature and then by pair: `[pairs * k]`."""
    pairs = len(code.indices)
    return (
        code.indices * pairs + torch.arange(pairs, device=code.indices.device)[:, None]
    ).flatten()
