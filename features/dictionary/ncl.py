"""Non-negative contrastive learning (Wang et al. 2024, arXiv 2403.12459) on frozen embeddings."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from features.dictionary.base import (
    Dictionary,
    DictionaryConfig,
    SparseCode,
    TrainingStep,
    register,
)
from features.dictionary.batchtopk import at_least
from features.dictionary.squared_error import squared_error
from features.modality import Modality

TEMPERATURE = 0.05


@register
class NCLDictionary(Dictionary):
    """A linear head with ReLU whose unit outputs are trained to match images with their texts.

    Nothing asks the features to reconstruct; a decoder learns beside them to map their detached
    outputs back, so that edits of features can be decoded. An activation is the output times the
    length of its decoder row. Features are as sparse as the contrast makes them: k bounds nothing.
    """

    kind = "ncl"
    default_modality_bias = True

    def __init__(self, config: DictionaryConfig) -> None:
        super().__init__(config)
        generator = torch.Generator().manual_seed(config.seed)
        rows = torch.randn(config.features, config.dim, generator=generator)
        self.decoder = nn.Parameter(F.normalize(rows, dim=1))  # [features, dim]
        self.encoder = nn.Parameter(self.decoder.detach().clone())  # [features, dim]
        self.encoder_bias = nn.Parameter(torch.zeros(config.features))

    @property
    def sparsity(self) -> str:
        return "as many active for one sample as the contrast makes, no bound"

    @property
    def directions(self) -> Tensor:
        return F.normalize(self.decoder, dim=1)

    def pre_activations(self, x: Tensor, modality: Modality) -> Tensor:
        return (x - self.mean(modality)) @ self.encoder.T + self.encoder_bias  # [n, features]

    def encode_sparse(self, x: Tensor, modality: Modality) -> SparseCode:
        outputs = self._outputs(x, modality) * self.decoder.norm(dim=1)  # [n, features]
        return at_least(outputs, outputs.new_zeros(()))

    def decode_sparse(self, code: SparseCode, modality: Modality) -> Tensor:
        return F.embedding_bag(
            code.indices, self.directions, per_sample_weights=code.values, mode="sum"
        ) + self.mean(modality)

    def forward(self, image: Tensor, text: Tensor, dead: Tensor) -> TrainingStep:
        """Symmetric InfoNCE between non-negative outputs, and the decoder's FVU on them."""
        z = [self._outputs(image, "image"), self._outputs(text, "text")]  # [n, features] each
        logits = z[0] @ z[1].T / TEMPERATURE  # [n, n]
        pairs = torch.arange(len(image), device=image.device)
        contrast = (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2
        x = torch.cat([image - self.mean("image"), text - self.mean("text")])  # [2n, dim]
        estimate = torch.cat(z).detach() @ self.decoder  # [2n, dim]
        fvu = squared_error(estimate, x) / x.square().sum().clamp(min=1e-12)
        active = (torch.cat(z) > 0).any(0)
        return TrainingStep(contrast / math.log(max(2, len(image))) + fvu, fvu.detach(), active)

    def _outputs(self, x: Tensor, modality: Modality) -> Tensor:
        """Non-negative, of unit length: `[n, features]`. The contrast ties the directions of images
        and texts alone; without the unit length, one modality could outweigh the other."""
        return F.normalize(relu_with_gelu_gradient(self.pre_activations(x, modality)), dim=1)


class _ReluWithGeluGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.relu()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        density = torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi)
        return gradient * (0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * density)


def relu_with_gelu_gradient(x: Tensor) -> Tensor:
    """ReLU whose gradient is GELU's, so that units that are never active still learn (section 4 of
    the paper)."""
    return _ReluWithGeluGradient.apply(x)
