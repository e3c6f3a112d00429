"""Planted ground truth: which features are aligned with a factor of known modality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from features.embedded.world import PLANTED_IMAGE, PLANTED_TEXT

ALIGNED = 0.75
"""A feature is aligned with a factor's value when its activation finds the value at this AUROC."""


@dataclass(frozen=True)
class Alignment:
    """The best AUROC `[features]` of each feature with a vision-only and a text-only factor."""

    image: np.ndarray
    text: np.ndarray

    @property
    def vision_only(self) -> np.ndarray:
        """Features aligned with a vision-only factor and, more so, than with a text-only one."""
        return (self.image >= ALIGNED) & (self.image > self.text)

    @property
    def text_only(self) -> np.ndarray:
        """Features aligned with a text-only factor and, more so, than with a vision-only one."""
        return (self.text >= ALIGNED) & (self.text > self.image)


def auroc_by_value(activations: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """AUROC of each feature for each value against the rest: `[values, features]`.

    Ties count one half (the Mann-Whitney statistic).

    Args:
        activations: `[n, features]`, of one modality.
        labels: the factor's value for each of the n samples.
    """
    from scipy.stats import rankdata

    ranks = rankdata(activations, axis=0)  # [n, features]
    label_array = np.array(labels)
    rows = []
    for value in np.unique(label_array):
        positive = label_array == value
        p, q = positive.sum(), (~positive).sum()
        rows.append((ranks[positive].sum(axis=0) - p * (p + 1) / 2) / (p * q))
    return np.stack(rows)


def align(
    image_activations: np.ndarray,
    text_activations: np.ndarray,
    attributes: Sequence[dict[str, str | None]],
) -> Alignment:
    """Align features with the planted factors, each read in the modality that shows it."""

    def best(activations: np.ndarray, factors: Sequence[str]) -> np.ndarray:
        scores = [auroc_by_value(activations, [str(a[f]) for a in attributes]) for f in factors]
        return np.concatenate(scores).max(axis=0)

    return Alignment(
        image=best(image_activations, PLANTED_IMAGE), text=best(text_activations, PLANTED_TEXT)
    )
