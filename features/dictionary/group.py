"""Paired group-sparse autoencoder (after Kaushik et al. 2026, arXiv 2601.20028)."""

from __future__ import annotations

import torch
from torch import Tensor

from features.dictionary.base import SparseCode, register
from features.dictionary.sparse import ActivePlaces
from features.dictionary.topk import TopKDictionary

PENALTY = 0.03
"""Weight of the group penalty beside the fraction of variance unexplained."""


@register
class GroupDictionary(TopKDictionary):
    """A pair's image and text share their k features, so that a concept of both gets one latent.

    In training a pair's features are those with the k largest group norms sqrt(z^2 + w^2), z being
    the image's activation and w the text's, and the mean group norm is penalised. Outside training
    each sample takes its own k largest, as in `topk`. The paper selects by the penalty alone; the
    k largest bound how many features are active.
    """

    kind = "group"

    def _selected_in_training(self, x: Tensor) -> SparseCode:
        pre = self._pre_activations(x)  # [2n, features]
        norms = group_norms(pre)  # [n, features]
        indices = norms.topk(self.config.k, dim=1, sorted=False).indices.repeat(2, 1)  # [2n, k]
        return SparseCode(pre.gather(1, indices).relu(), indices)

    def reconstruction_loss(
        self, x: Tensor, values: Tensor, places: ActivePlaces, fvu: Tensor
    ) -> Tensor:
        """FVU and the penalty: the sum of group norms over the features, its mean over pairs."""
        return fvu + PENALTY * group_norms(values).sum(1).mean()


def group_norms(activations: Tensor) -> Tensor:
    """sqrt(z^2 + w^2) of the positive parts of images' and texts' activations.

    Args:
        activations: those of n images, then those of their texts: `[2n, features]`.

    Returns:
        `[n, features]`, with the gradient 0 where both are 0.
    """
    image, text = activations.relu().chunk(2)
    squares = image.square() + text.square()
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)
