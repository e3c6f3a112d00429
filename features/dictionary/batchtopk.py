"""BatchTopK sparse autoencoder (Bussmann et al. 2024, arXiv 2412.06410)."""

from __future__ import annotations

import torch
from torch import Tensor

from features.dictionary.base import DictionaryConfig, SparseCode, register
from features.dictionary.topk import TopKDictionary

THRESHOLD_RATE = 0.01


@register
class BatchTopKDictionary(TopKDictionary):
    """The n * k largest activations of a batch of n samples, so that rich samples may have more.

    Outside training, where a sample must not depend on its batch, a threshold takes their place:
    the running mean of the smallest activation that was kept. k is then a mean, not a bound.
    """

    kind = "batchtopk"
    selects_by_bf16 = False
    threshold: Tensor

    def __init__(self, config: DictionaryConfig) -> None:
        super().__init__(config)
        self.register_buffer("threshold", torch.zeros(()))

    @property
    def sparsity(self) -> str:
        return f"about {self.config.k} active for one sample on average in training, no bound"

    def _largest(self, pre: Tensor) -> SparseCode:
        return at_least(pre, self.threshold)

    def _selected_in_training(self, x: Tensor) -> SparseCode:
        pre = self._pre_activations(x)  # [2n, features]
        least = pre.flatten().topk(self.config.k * len(pre), sorted=False).values.min()
        least = least.clamp(min=0)
        rate = THRESHOLD_RATE if self.threshold > 0 else 1.0
        self.threshold.lerp_(least, rate)
        return at_least(pre, least)


def at_least(pre: Tensor, threshold: Tensor) -> SparseCode:
    """The positive pre-activations `[n, features]` that reach a threshold, as wide a code as the
    sample with most of them needs."""
    active = (pre >= threshold) & (pre > 0)
    width = max(1, int(active.sum(1).max())) if len(pre) else 1
    values, indices = torch.where(active, pre, 0.0).topk(width, dim=1)
    return SparseCode(values, indices)
