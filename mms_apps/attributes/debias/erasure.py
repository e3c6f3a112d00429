"""Linear erasure of a factor from embeddings: the mean difference, and LEACE.

Both take away what the factor's values covary with, the first by an orthogonal projection, the
second by the projection that changes the embeddings least (Belrose et al. 2023, arXiv 2306.03819).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mms_apps.attributes.edits import Project
from mms_apps.attributes.labels import cells

RANK = 1e-6
"""A singular value below this share of the largest is none."""


def independence_weights(attribute: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Weights `[n]`, of mean 1, under which attribute and factor are independent:
    P(a) P(f) / P(a, f) (Kamiran and Calders 2012, equation 4). Where some values never meet they
    are as near to it as those that do allow."""
    together = _shares(cells(attribute, factor))
    weights = _shares(attribute) * _shares(factor) / together
    return weights / weights.mean()


def mean_difference(
    embeddings: Tensor, factor: np.ndarray, weights: np.ndarray, share: float = 1.0
) -> Project:
    """Takes a share of the part along the differences between the factor's means away.

    Args:
        embeddings: `[n, dim]`.
        factor: `[n]`.
        weights: `[n]`; `independence_weights` keep an attribute that goes with the factor.
        share: 0 takes nothing, 1 all.
    """
    mean, _, covariance = _moments(embeddings, factor, weights)
    basis = _span(covariance)  # [dim, rank]
    eye = torch.eye(len(mean), dtype=torch.double)
    return Project((eye - share * basis @ basis.T).float(), mean.float())


def leace(
    embeddings: Tensor, factor: np.ndarray, weights: np.ndarray, shrinkage: float = 0.0
) -> Project:
    """Least-squares concept erasure in closed form: x - W+ P W (x - mean), where W is the inverse
    root of the covariance and P projects onto the span of W cov(x, z) (Belrose et al. 2023,
    theorem 4.3). No linear classifier finds the factor in the (weighted) samples afterwards.

    Args:
        embeddings: `[n, dim]`.
        factor: z, `[n]`, taken one-hot.
        weights: `[n]`; `independence_weights` keep an attribute that goes with the factor.
        shrinkage: of the covariance towards the same variance in all directions; with 1 it is the
            mean difference.
    """
    mean, variance, covariance = _moments(embeddings, factor, weights)
    dim = len(mean)
    eye = torch.eye(dim, dtype=torch.double)
    variance = (1 - shrinkage) * variance + shrinkage * variance.trace() / dim * eye
    values, vectors = torch.linalg.eigh(variance)
    known = values > RANK * values.max()
    root, axes = values[known].sqrt(), vectors[:, known]  # [rank], [dim, rank]
    whitening, back = (axes / root) @ axes.T, (axes * root) @ axes.T  # W and W+
    basis = _span(whitening @ covariance)
    return Project((eye - back @ basis @ basis.T @ whitening).T.float(), mean.float())


def _moments(
    embeddings: Tensor, factor: np.ndarray, weights: np.ndarray
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted mean `[dim]`, covariance `[dim, dim]`, and covariance with the one-hot factor
    `[dim, values]`."""
    x = embeddings.detach().cpu().double()
    weight = torch.from_numpy(weights / weights.sum()).double()  # [n]
    z = torch.from_numpy((factor[:, None] == np.unique(factor)).astype(float))  # [n, values]
    mean = weight @ x
    centred, concept = x - mean, z - weight @ z
    return mean, (weight * centred.T) @ centred, (weight * centred.T) @ concept


def _span(columns: Tensor) -> Tensor:
    """An orthonormal basis `[dim, rank]` of what columns `[dim, k]` span."""
    found = torch.linalg.svd(columns, full_matrices=False)
    return found.U[:, RANK * found.S.max() < found.S]


def _shares(names: np.ndarray) -> np.ndarray:
    """How frequent each sample's name is, in (0, 1]: `[n]`."""
    _, place, counts = np.unique(names, return_inverse=True, return_counts=True)
    return counts[place] / len(names)
