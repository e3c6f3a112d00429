"""Paired group-sparse autoencoder (after Kaushik et al. 2026, arXiv 2601.20028)."""

from __future__ import annotations

import torch
from torch import Tensor

from features.dictionary.base import SparseCode, register
from features.dictionary.matryoshka import nested_fvu
from features.dictionary.selection import largest
from features.dictionary.sparse import ActivePlaces
from features.dictionary.topk import TopKDictionary

PENALTY = 0.05
"""Weight of the difference within pairs beside the fraction of variance unexplained."""


@register
class GroupDictionary(TopKDictionary):
    """A pair's image and text share their k features, so that a concept of both gets one latent.

    In training a pair's features are those with the k largest group norms sqrt(z^2 + w^2), z being
    the image's activation and w the text's. Outside training each sample takes its own k largest,
    as in `topk`. The paper penalises the group norms; here the k largest bound how many features
    are active, and |z - w| is penalised: a latent of one modality pays for all of its activation, a
    shared one for little. Features are nested as in `matryoshka`: the first few must reconstruct
    alone, which leaves no room for one latent by modality of the same concept.
    """

    kind = "group"
    selects_by_bf16 = False

    def _selected_in_training(self, x: Tensor) -> SparseCode:
        pre = self._pre_activations(x)  # [2n, features]
        norms = group_norms(pre)  # [n, features]
        indices = largest(norms, self.config.k).repeat(2, 1)  # [2n, k]
        return SparseCode(pre.gather(1, indices).relu(), indices)

    def reconstruction_loss(
        self, x: Tensor, values: Tensor, places: ActivePlaces, fvu: Tensor
    ) -> Tensor:
        """Mean FVU over the prefixes and the whole, and the penalty: the sum of |z - w| over the
        features, its mean over pairs."""
        image, text = values.chunk(2)  # [n, k] each, of the same features
        difference = (image - text).abs().sum(1).mean()
        return nested_fvu(self, x, values, places, fvu) + PENALTY * difference


def group_norms(activations: Tensor) -> Tensor:
    """sqrt(z^2 + w^2) of the positive parts of images' and texts' activations: `[n, features]`.

    Args:
        activations: those of n images, then those of their texts: `[2n, features]`.
    """
    image, text = activations.relu().chunk(2)
    return torch.hypot(image, text)
