"""Taking features, or a subspace, out of embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from features.modality import Modality
from features.space.space import FeatureSpace

How = Literal["mask", "subtract", "project"]
WAYS: tuple[How, ...] = ("mask", "subtract", "project")
WAY_NAMES: dict[How, str] = {
    "mask": "masked",
    "subtract": "subtracted",
    "project": "projected out",
}
BATCH = 4096
SWAPS = 2000
"""Tries to bring a random group's energy near to what is wanted."""
NEAR = 0.02
"""Relative difference of energies that is near enough."""
LAMBDA = 1000.0
"""Of the calibrated projection (Chuang et al. 2023, arXiv 2302.00070)."""


class EmbeddingEdit:
    """A change to embeddings; this one changes nothing."""

    def apply(self, embeddings: Tensor) -> Tensor:
        """Edited embeddings `[n, dim]`, not normalised."""
        return embeddings


NO_EDIT = EmbeddingEdit()


@dataclass(frozen=True, eq=False)
class RemoveFeatures(EmbeddingEdit):
    """Takes features out of one modality's embeddings.

    how: "mask" decodes the other activations, without the dictionary's error; "subtract" takes away
        what the features add and keeps the error; "project" takes away the embedding's part, from
        the modality's mean, in the span of the directions that the features read (`readings`).
    readings: `[features, dim]`, for "project".
    share: of it that is taken away, in [0, 1].
    """

    space: FeatureSpace
    features: Tensor
    modality: Modality
    how: How
    readings: Tensor | None = None
    share: float = 1.0

    def apply(self, embeddings: Tensor) -> Tensor:
        return torch.cat([self._apply(part) for part in embeddings.split(BATCH)])

    @torch.no_grad()
    def _apply(self, x: Tensor) -> Tensor:
        dictionary = self.space.dictionary
        if self.how == "project":
            assert self.readings is not None
            basis = torch.linalg.qr(self.readings.T.to(x.device)).Q  # [dim, features]
            centred = x - dictionary.mean(self.modality).to(x.device)
            return x - self.share * (centred @ basis @ basis.T)
        activations = self.space.encode(x, self.modality)  # [n, features]
        weights = torch.ones(len(self.space), device=activations.device)
        weights[self.features] = 1 - self.share
        edited = dictionary.reweighted(
            x.to(activations.device),
            activations,
            weights,
            self.modality,
            keep_error=self.how == "subtract",
        )
        return edited.to(x.device)


@dataclass(frozen=True, eq=False)
class KeepFeatures(EmbeddingEdit):
    """Decodes the activations of some features alone."""

    space: FeatureSpace
    features: Tensor
    modality: Modality

    def apply(self, embeddings: Tensor) -> Tensor:
        others = torch.ones(len(self.space), dtype=torch.bool)
        others[self.features] = False
        removed = others.nonzero().squeeze(1)
        return RemoveFeatures(self.space, removed, self.modality, "mask").apply(embeddings)


@dataclass(frozen=True, eq=False)
class Project(EmbeddingEdit):
    """Multiplies embeddings, from a centre `[dim]` or from zero, by a matrix `[dim, dim]`."""

    matrix: Tensor
    centre: Tensor | None = None

    def apply(self, embeddings: Tensor) -> Tensor:
        matrix = self.matrix.to(embeddings.device)
        if self.centre is None:
            return embeddings @ matrix
        centre = self.centre.to(embeddings.device)
        return centre + (embeddings - centre) @ matrix


def reading_directions(
    space: FeatureSpace, embeddings: Tensor, features: Tensor, modality: Modality
) -> Tensor:
    """The directions along which features read an embedding: unit rows `[features, dim]`.

    Each is the mean gradient of the activation over the embeddings `[n, dim]` on which the feature
    is active; for a ReLU or TopK dictionary that is its encoder's row. A feature that is active on
    none keeps its decoder's direction.
    """
    x = embeddings.to(space.device).detach().clone().requires_grad_(True)
    encode = space.dictionary.encode
    rows = []
    with torch.enable_grad():
        activations = encode(x, modality)[:, features]  # [n, features]
        for place, feature in enumerate(features.tolist()):
            (gradient,) = torch.autograd.grad(activations[:, place].sum(), x, retain_graph=True)
            direction = gradient.sum(dim=0)
            if not direction.any():
                direction = space.dictionary.directions[feature]
            rows.append(direction.detach())
    return torch.nn.functional.normalize(torch.stack(rows), dim=1)


def calibrated_projection(
    spurious: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], strength: float = LAMBDA
) -> Tensor:
    """P0 (lambda M + I)^-1 of Chuang et al. 2023 (debias_vl, their equation 4): `[dim, dim]`.

    P0 projects onto the complement of the spurious prompts' span; M is the mean of (a - b)(a - b)^T
    over pairs of prompts that should come out equal.

    Args:
        spurious: embeddings of prompts that name the spurious factor's values, `[prompts, dim]`.
        pairs: embeddings `[dim]` of prompts that differ in the spurious factor alone.
        strength: lambda.

    Returns:
        P. A text vector v becomes P v; an embedding x, whose product with it is x.(P v), `x @ P`.
    """
    spurious = spurious.double()
    dim = spurious.shape[1]
    eye = torch.eye(dim, dtype=torch.double)
    basis = torch.linalg.svd(spurious, full_matrices=False)
    rank = int((1e-6 * basis.S[0] < basis.S).sum())
    directions = basis.Vh[:rank]  # [rank, dim]
    p0 = eye - directions.T @ directions
    differences = torch.stack([first - second for first, second in pairs]).double()
    m = differences.T @ differences / len(pairs)
    return (p0 @ torch.linalg.inv(strength * m + eye)).float()


def feature_energy(space: FeatureSpace, embeddings: Tensor, modality: Modality) -> np.ndarray:
    """Mean squared activation of each feature over embeddings `[n, dim]`: `[features]`. Directions
    have unit length, so this is the energy that the feature adds to an embedding."""
    total = torch.zeros(len(space), dtype=torch.double)
    with torch.no_grad():
        for part in embeddings.split(BATCH):
            total += space.encode(part, modality).double().square().sum(dim=0).cpu()
    return (total / max(1, len(embeddings))).numpy()


def random_features(
    energy: np.ndarray,
    features: np.ndarray,
    rng: np.random.Generator,
    *,
    avoid: np.ndarray | None = None,
) -> np.ndarray:
    """As many random features as `features`, of about the same total energy.

    A random group is drawn; then random swaps of a member with another feature are kept where they
    bring the total nearer to what is wanted, until it is within NEAR of it.

    Args:
        energy: of every feature, `[features]`.
        features: numbers of the group to match.
        avoid: features that the group must not have.
    """
    pool = (
        np.flatnonzero(energy > 0)
        if avoid is None
        else np.setdiff1d(np.flatnonzero(energy > 0), avoid)
    )
    wanted = energy[features].sum()
    order = rng.permutation(pool)
    inside, outside = order[: len(features)].copy(), order[len(features) :].copy()
    total = energy[inside].sum()
    for _ in range(SWAPS):
        if abs(total - wanted) <= NEAR * wanted or len(outside) == 0 or len(inside) == 0:
            break
        i, o = rng.integers(len(inside)), rng.integers(len(outside))
        moved = total - energy[inside[i]] + energy[outside[o]]
        if abs(moved - wanted) < abs(total - wanted):
            inside[i], outside[o] = outside[o], inside[i]
            total = moved
    return np.sort(inside)
