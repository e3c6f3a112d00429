"""The identity dictionary: every coordinate of the embedding is a feature. The baseline of every
comparison, since it shows what the encoder's own axes give."""

from __future__ import annotations

import torch
from torch import Tensor

from features.dictionary.base import Dictionary, DictionaryConfig, SparseCode, register
from features.modality import Modality


@register
class IdentityDictionary(Dictionary):
    """Activations are the raw coordinates, with their sign."""

    kind = "identity"
    default_modality_bias = False
    codes_are_sparse = False

    def __init__(self, config: DictionaryConfig) -> None:
        if not config.features == config.k == config.dim:
            raise ValueError(f"identity: features and k must equal dim {config.dim}")
        super().__init__(config)

    def set_means(self, image: Tensor, text: Tensor) -> None:
        """Without `modality_bias` nothing is subtracted: the coordinates stay raw."""
        if self.config.modality_bias:
            super().set_means(image, text)

    @property
    def sparsity(self) -> str:
        return "all active for each sample"

    @property
    def directions(self) -> Tensor:
        return torch.eye(self.config.dim, dtype=self.means.dtype, device=self.means.device)

    def encode(self, x: Tensor, modality: Modality) -> Tensor:
        return x - self.mean(modality)

    def decode(self, z: Tensor, modality: Modality) -> Tensor:
        return z + self.mean(modality)

    def encode_sparse(self, x: Tensor, modality: Modality) -> SparseCode:
        indices = torch.arange(self.config.dim, device=x.device).expand(len(x), -1)  # [n, dim]
        return SparseCode(self.encode(x, modality), indices)

    def decode_sparse(self, code: SparseCode, modality: Modality) -> Tensor:
        dense = torch.zeros_like(code.values).scatter_add(1, code.indices, code.values)
        return self.decode(dense, modality)
