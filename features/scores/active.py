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
        places = values.nonzero().squeeze(1)
        if len(places) > DENSE_SHARE * self.pairs * self.features:
            return self.dense(values).T @ rows
        counts = torch.bincount(self.feature[places], minlength=self.features)
        return F.embedding_bag(
            self.pair[places],
            rows,
            counts.cumsum(0) - counts,
            per_sample_weights=values[places],
            mode="sum",
        )
