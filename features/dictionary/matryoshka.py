"""Matryoshka sparse autoencoder (Bussmann et al. 2025, arXiv 2503.17547)."""

from __future__ import annotations

import torch
from torch import Tensor

from features.dictionary.base import register
from features.dictionary.batchtopk import BatchTopKDictionary
from features.dictionary.sparse import ActivePlaces, weighted_rows
from features.dictionary.squared_error import squared_error
from features.dictionary.topk import TopKDictionary

PREFIX_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)


def nested_fvu(
    dictionary: TopKDictionary, x: Tensor, values: Tensor, places: ActivePlaces, fvu: Tensor
) -> Tensor:
    """Mean FVU over the first 1/16, 1/8, 1/4 and 1/2 of the features, and all.

    Args:
        x: centred, `[n, dim]`.
        values: activations, `[n, k]`.
        places: of which features.
        fvu: of all features.
    """
    scale = x.square().sum().clamp(min=1e-12)
    losses = [fvu]
    for share in PREFIX_SHARES:
        size = max(1, round(share * dictionary.config.features))
        first = torch.where(places.indices < size, values, 0.0)  # [n, k]
        estimate = weighted_rows(first, dictionary.decoder, places)  # [n, dim]
        losses.append(squared_error(estimate, x) / scale)
    return torch.stack(losses).mean()


@register
class MatryoshkaDictionary(BatchTopKDictionary):
    """BatchTopK whose first 1/16, 1/8, 1/4 and 1/2 of the features each reconstruct too, so that
    early features stay general and later ones add detail."""

    kind = "matryoshka"

    def reconstruction_loss(
        self, x: Tensor, values: Tensor, places: ActivePlaces, fvu: Tensor
    ) -> Tensor:
        """Mean FVU over the prefixes and the whole."""
        return nested_fvu(self, x, values, places, fvu)
