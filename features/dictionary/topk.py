"""TopK sparse autoencoder with AuxK (Gao et al. 2024, arXiv 2406.04093)."""

from __future__ import annotations

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
from features.dictionary.selection import candidate_places, exact_places, largest
from features.dictionary.sparse import ActivePlaces, active_outputs, weighted_rows
from features.dictionary.squared_error import squared_error
from features.modality import Modality

AUX_WEIGHT = 1 / 32
"""Weight of the auxiliary loss (their appendix A.2)."""


@register
class TopKDictionary(Dictionary):
    """The k largest pre-activations, ReLU'd; unit-norm decoder rows.

    The decoder starts as random directions and the encoder as its transpose. Images and texts
    share all weights, and differ only in the mean that is subtracted (`modality_bias`).
    """

    kind = "topk"
    default_modality_bias = True
    selects_by_bf16 = True

    def __init__(self, config: DictionaryConfig) -> None:
        if not 1 <= config.k <= config.features:
            raise ValueError(f"topk: k {config.k} must be in 1..features {config.features}")
        super().__init__(config)
        generator = torch.Generator().manual_seed(config.seed)
        rows = torch.randn(config.features, config.dim, generator=generator)
        self.decoder = nn.Parameter(F.normalize(rows, dim=1))  # [features, dim]
        self.encoder = nn.Parameter(self.decoder.detach().clone())  # [features, dim]
        self.encoder_bias = nn.Parameter(torch.zeros(config.features))

    @property
    def directions(self) -> Tensor:
        return self.decoder

    def pre_activations(self, x: Tensor, modality: Modality) -> Tensor:
        return self._pre_activations(x - self.mean(modality))

    def encode_sparse(self, x: Tensor, modality: Modality) -> SparseCode:
        return self._largest(self.pre_activations(x, modality))

    def decode_sparse(self, code: SparseCode, modality: Modality) -> Tensor:
        return self._gather(code) + self.mean(modality)

    def forward(self, image: Tensor, text: Tensor, dead: Tensor) -> TrainingStep:
        """FVU of the batch, the variance being about the training set's means, plus AuxK."""
        x = torch.cat([image - self.mean("image"), text - self.mean("text")])  # [2n, dim]
        with torch.no_grad():
            selected = self._selected_in_training(x)
        places = ActivePlaces(selected.indices, self.config.features)
        values = active_outputs(x, self.encoder, self.encoder_bias, selected.values, places)
        values = torch.where(selected.values > 0, values, 0.0)  # [2n, k]
        estimate = weighted_rows(values, self.decoder, places)  # [2n, dim]
        fvu = squared_error(estimate, x) / x.square().sum().clamp(min=1e-12)
        active = places.totals(selected.values) > 0
        loss = self.reconstruction_loss(x, values, places, fvu)
        loss = loss + AUX_WEIGHT * self.auxiliary_loss(x, estimate, dead)
        return TrainingStep(loss, fvu.detach(), active)

    def reconstruction_loss(
        self, x: Tensor, values: Tensor, places: ActivePlaces, fvu: Tensor
    ) -> Tensor:
        """What the code is trained for.

        Args:
            x: images, then their texts, centred: `[2n, dim]`.
            values: their activations, `[2n, k]`.
            places: of which features.
            fvu: of the whole code.
        """
        return fvu

    def auxiliary_loss(self, x: Tensor, estimate: Tensor, dead: Tensor) -> Tensor:
        """How badly the dim / 2 largest dead features reconstruct the residual (their eq. 7).

        The residual is detached: the loss moves the dead features towards what the live ones leave
        out, and moves nothing else. It is scaled by the residual's own size, and down where fewer
        features are dead than dim / 2.

        Args:
            x: centred, `[n, dim]`.
            estimate: of x by the features that are selected, `[n, dim]`.
            dead: `[features]` bool.
        """
        candidates = dead.nonzero().squeeze(1)  # [dead features]
        wanted = max(1, self.config.dim // 2)
        k = min(wanted, len(candidates))
        if k == 0:
            return x.new_zeros(())
        residual = (x - estimate).detach()
        pre = x @ self.encoder[candidates].T + self.encoder_bias[candidates]  # [n, dead features]
        places = largest(pre, k)  # [n, k]
        of_dead = weighted_rows(
            pre.gather(1, places).relu(),
            self.decoder[candidates],
            ActivePlaces(places, len(candidates)),
        )
        error = squared_error(of_dead, residual) / residual.square().sum().clamp(min=1e-12)
        return error * (k / wanted)

    @torch.no_grad()
    def project_gradients(self) -> None:
        """Take out what would lengthen or shorten the decoder's rows."""
        gradient = self.decoder.grad
        if gradient is not None:
            along = (gradient * self.decoder).sum(dim=1, keepdim=True)  # [features, 1]
            gradient.addcmul_(along, self.decoder, value=-1)

    @torch.no_grad()
    def constrain(self) -> None:
        """Give the decoder's rows unit length."""
        self.decoder.div_(self.decoder.norm(dim=1, keepdim=True).clamp(min=1e-12))

    def _pre_activations(self, centred: Tensor) -> Tensor:
        return centred @ self.encoder.T + self.encoder_bias  # [n, features]

    def _largest(self, pre: Tensor) -> SparseCode:
        indices = largest(pre, self.config.k)
        return SparseCode(pre.gather(1, indices).relu(), indices)

    def _selected_in_training(self, x: Tensor) -> SparseCode:
        """The code of a training batch `[2n, dim]`, centred; no gradient is asked of it."""
        layer = (self.encoder, self.encoder_bias)
        if self.exact_selection:
            values, indices = exact_places(x, *layer, self.config.k)
        else:
            values, indices = candidate_places(x, *layer, self.config.k)
        return SparseCode(values.relu(), indices)

    def _gather(self, code: SparseCode) -> Tensor:
        """Weighted sums `[n, dim]` of k decoder rows a sample; no dense `[n, features]`."""
        return F.embedding_bag(
            code.indices, self.decoder, per_sample_weights=code.values, mode="sum"
        )
