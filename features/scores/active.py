"""Where a batch of pairs activates features: few places, which is all that the scores need.

A dictionary writes an embedding as few features, so of a batch's `[pairs, features]` activations
nearly all are 0. Sums over these places cost samples x active features, whatever the dictionary's
width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from features.dictionary.base import SparseCode
from features.store.pictures import PicturesOfBatch

DENSE_SHARE = 0.1
"""With a larger share of places, dense products are faster."""
JOINED_AT_ONCE = 1 << 20
"""Places with one of their pair's labels each that are added together, which bounds the memory."""


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

    @cached_property
    def images(self) -> ActivePairs:
        """The places at which images activate features."""
        return self.where(self.image > 0)

    @cached_property
    def texts(self) -> ActivePairs:
        """The places at which texts activate features."""
        return self.where(self.text > 0)

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

    def of_pairs(self, kept: Tensor) -> ActivePairs:
        """The places of some of the pairs alone, which are numbered anew: `kept` is `[pairs]`
        bool."""
        found = self.where(kept[self.pair])
        place = kept.cumsum(0) - 1  # [pairs]
        return replace(found, pairs=int(kept.sum()), pair=place[found.pair])

    def sums(self, values: Tensor) -> Tensor:
        """Sums over each feature's places: `[places]` -> `[features]`."""
        return torch.segment_reduce(values.double(), "sum", lengths=self.counts)

    def picture_counts(self, pictures: PicturesOfBatch | None) -> Tensor:
        """In how many pictures each feature is active: `[features]`. Where several pairs show one,
        each adds its share; None where each shows a picture of its own."""
        if pictures is None:
            return self.counts
        return self.sums(pictures.share.to(self.image)[self.pair])

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
        if self.is_dense:
            return self.dense(values).T @ rows
        starts = self.counts.cumsum(0) - self.counts
        return F.embedding_bag(self.pair, rows, starts, per_sample_weights=values, mode="sum")

    def add_by_label(self, sums: Tensor, values: Tensor, pair: Tensor, label: Tensor) -> None:
        """Add each value to the sums of its feature and of its pair's labels.

        Args:
            sums: `[labels, features]` float64, contiguous.
            values: `[places]` float64.
            pair, label: which pair of the batch has which label: `[n]` int64 each, pairs ascending.
        """
        if self.is_dense:
            ones = torch.ones_like(pair, dtype=torch.float64)
            shape = (len(sums), self.pairs)
            has = torch.sparse_coo_tensor(
                torch.stack([label, pair]), ones, shape, check_invariants=False
            )
            sums += torch.sparse.mm(has, self.dense(values))
            return
        of_pair = torch.bincount(pair, minlength=self.pairs)  # labels of each pair
        first = of_pair.cumsum(0) - of_pair
        at_once = max(1, JOINED_AT_ONCE // max(1, int(of_pair.max())))
        parts = (part.split(at_once) for part in (self.pair, self.feature, values))
        for its_pair, feature, value in zip(*parts, strict=True):
            own = of_pair[its_pair]
            its_label = label[runs(first[its_pair], own)]
            cell = its_label * self.features + feature.repeat_interleave(own)
            sums.view(-1).index_add_(0, cell, value.repeat_interleave(own))

    @property
    def is_dense(self) -> bool:
        """Whether there are so many places that dense products are faster."""
        return len(self.pair) > DENSE_SHARE * self.pairs * self.features


def runs(starts: Tensor, lengths: Tensor) -> Tensor:
    """The numbers of runs `[n]`, each from its start on, one after another: `[sum of lengths]`."""
    within = torch.arange(int(lengths.sum()), device=lengths.device)
    return within + (starts + lengths - lengths.cumsum(0)).repeat_interleave(lengths)


def _keys(code: SparseCode) -> Tensor:
    """Numbers that order a code's places by feature and then by pair: `[pairs * k]`."""
    pairs = len(code.indices)
    return (
        code.indices * pairs + torch.arange(pairs, device=code.indices.device)[:, None]
    ).flatten()
