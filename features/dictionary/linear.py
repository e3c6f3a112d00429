"""Dictionaries that others trained: a linear encoder, an activation, a linear decoder.

Their decoder rows may have any length, so that activations are what their library computes. They
come from `features.dictionary.convert`, and are not trained here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from features.dictionary.base import Dictionary, DictionaryConfig, SparseCode, register
from features.dictionary.topk import TopKDictionary
from features.modality import Modality


@register
class ReluDictionary(Dictionary):
    """The positive pre-activations; k bounds nothing."""

    kind = "relu"
    default_modality_bias = False
    trained_here = False
    codes_are_sparse = False
    encoder: Tensor
    encoder_bias: Tensor
    decoder: Tensor

    def __init__(self, config: DictionaryConfig) -> None:
        super().__init__(config)
        rows = torch.zeros(config.features, config.dim)
        self.register_buffer("encoder", rows.clone())  # [features, dim]
        self.register_buffer("encoder_bias", torch.zeros(config.features))
        self.register_buffer("decoder", rows.clone())  # [features, dim]

    @property
    def sparsity(self) -> str:
        return "as many active for one sample as are positive, no bound"

    @property
    def directions(self) -> Tensor:
        return self.decoder

    def pre_activations(self, x: Tensor, modality: Modality) -> Tensor:
        return (x - self.mean(modality)) @ self.encoder.T + self.encoder_bias  # [n, features]

    def encode(self, x: Tensor, modality: Modality) -> Tensor:
        return self._activate(self.pre_activations(x, modality))

    def encode_sparse(self, x: Tensor, modality: Modality) -> SparseCode:
        dense = self.encode(x, modality)  # [n, features]
        width = max(1, int((dense != 0).sum(1).max())) if len(dense) else 1
        return SparseCode(*dense.topk(width, dim=1))

    def decode_sparse(self, code: SparseCode, modality: Modality) -> Tensor:
        return F.embedding_bag(
            code.indices, self.decoder, per_sample_weights=code.values, mode="sum"
        ) + self.mean(modality)

    def _activate(self, pre: Tensor) -> Tensor:
        return pre.relu()


@register
class JumpReluDictionary(ReluDictionary):
    """The positive pre-activations above a threshold of their feature's own (Rajamanoharan et al.
    2024, arXiv 2407.14435)."""

    kind = "jumprelu"
    threshold: Tensor

    def __init__(self, config: DictionaryConfig) -> None:
        super().__init__(config)
        self.register_buffer("threshold", torch.zeros(config.features))

    @property
    def sparsity(self) -> str:
        return "as many active for one sample as exceed their thresholds, no bound"

    def _activate(self, pre: Tensor) -> Tensor:
        return torch.where(pre > self.threshold, pre, 0.0).relu()


@register
class SignedTopKDictionary(TopKDictionary):
    """The k largest pre-activations, negative ones among them where fewer are positive."""

    kind = "signed_topk"
    default_modality_bias = False
    trained_here = False

    def _largest(self, pre: Tensor) -> SparseCode:
        return SparseCode(*pre.topk(self.config.k, dim=1, sorted=False))
