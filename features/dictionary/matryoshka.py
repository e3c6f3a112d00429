"""Matryoshka sparse autoencoder (Bussmann et al. 2025, arXiv 2503.17547)."""

from __future__ import annotations

import torch
from torch import Tensor

from features.dictionary.base import register
from features.dictionary.batchtopk import BatchTopKDictionary
from features.dictionary.sparse import ActivePlaces, weighted_rows

PREFIX_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)


@register
class MatryoshkaDictionary(BatchTopKDictionary):
    """BatchTopK whose first 1/16, 1/8, 1/4 and 1/2 of the features each reconstruct too, so that
    early features stay general and later ones add detail."""

    kind = "matryoshka"

    @property
    def prefixes(self) -> list[int]:
        """Numbers of features that reconstruct by themselves, beside all of them."""
        return [max(1, round(share * self.config.features)) for share in PREFIX_SHARES]

    def reconstruction_loss(
        self, x: Tensor, values: Tensor, places: ActivePlaces, fvu: Tensor
    ) -> Tensor:
        """Mean FVU over the prefixes and the whole."""
        scale = x.square().sum().clamp(min=1e-12)
        losses = [fvu]
        for size in self.prefixes:
            first = torch.where(places.indices < size, values, 0.0)  # [2n, width]
            error = x - weighted_rows(first, self.decoder, places)  # [2n, dim]
            losses.append(error.square().sum() / scale)
        return torch.stack(losses).mean()
