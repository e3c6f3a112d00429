"""Scores of whole classes of features, beside what random features get.

The paper (Yan et al. 2025, arXiv 2502.14888) looks at each feature's 20 most activating samples;
how much that number matters is answered by computing the same for others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from features.bootstrap import FLOOR_QUANTILE, mean_estimate
from features.files import jsonable
from features.modality import CROSS_MODAL, IMAGE_DOMINANT, TEXT_DOMINANT
from features.scores.agreement import Agreement
from features.scores.monosemanticity import (
    NO_SAMPLE,
    Monosemanticity,
    TopSamples,
    TopSimilarity,
    random_samples,
    top_similarity,
)
from features.store.store import ActivationStore

SWEEP = (10, 20, 30, 50)
"""Numbers of most activating samples for which EmbSim and WinRate are computed."""


@dataclass(frozen=True)
class TopScores:
    """EmbSim and WinRate by modality, "image" and "text".

    m: samples that they look at.
    similar: of the features.
    embsim_floor, winrate_floor: the 97.5% quantile over as many sets of m random samples as there
        are features with m active ones; NaN where there are none.
    """

    m: int
    similar: dict[str, TopSimilarity]
    embsim_floor: dict[str, float]
    winrate_floor: dict[str, float]


def top_scores(best: dict[str, TopSamples], judge: ActivationStore, m: int, seed: int) -> TopScores:
    """EmbSim and WinRate of the m most activating samples, and of random ones.

    Args:
        best: m samples or more a feature, by modality.
        judge: whose embeddings are compared.
    """
    generator = torch.Generator().manual_seed(seed)
    scores = TopScores(m, {}, {}, {})
    for place, modality in enumerate(("image", "text")):

        def embeddings(numbers: Tensor, place: int = place) -> Tensor:
            return judge.rows(numbers)[place]

        top = best[modality].samples[:, :m].cpu()  # [features, m]
        scores.similar[modality] = top_similarity(top, embeddings, len(judge), generator)
        full = int((top != NO_SAMPLE).all(dim=1).sum())
        drawn = random_samples(full, m, len(judge), generator)  # [full, m]
        chance = top_similarity(drawn, embeddings, len(judge), generator)
        scores.embsim_floor[modality] = _floor(chance.embsim)
        scores.winrate_floor[modality] = _floor(chance.winrate)
    return scores


class Measure(NamedTuple):
    """A score of every feature."""

    name: str
    """embsim, winrate, ms or agreement"""
    modality: str
    """image, text or cross"""
    m: int | None
    """Samples that it looks at; None for all."""
    values: np.ndarray
    """`[features]`; NaN is undefined."""
    floor: float
    """What a random feature gets; NaN where it isn't known."""


def all_measures(
    all_top_scores: Iterable[TopScores], monosemanticity: Monosemanticity, agreement: Agreement
) -> list[Measure]:
    """EmbSim and WinRate for each number of samples, the Monosemanticity Scores, and agreement,
    whose floor is the mean of the features' own."""
    measures = []
    for top in all_top_scores:
        for modality, similar in top.similar.items():
            measures += [
                Measure("embsim", modality, top.m, similar.embsim, top.embsim_floor[modality]),
                Measure("winrate", modality, top.m, similar.winrate, top.winrate_floor[modality]),
            ]
    return [
        *measures,
        Measure("ms", "image", None, monosemanticity.ms_image, monosemanticity.floor_image),
        Measure("ms", "text", None, monosemanticity.ms_text, monosemanticity.floor_text),
        Measure("ms", "cross", None, monosemanticity.ms_cross, monosemanticity.floor_cross),
        Measure("agreement", "cross", None, agreement.agreement, agreement.mean_floor),
    ]


def class_means(
    measures: Iterable[Measure], classes: np.ndarray, *, seed: int = 0
) -> list[dict[str, Any]]:
    """Each modality class's mean of each measure, as records for JSON.

    Args:
        classes: each feature's class, `[features]`.
        seed: of the bootstrap over the class's features.

    Returns:
        Records of measure, modality, m, class, n (features of the class with a defined value),
        mean, ci_low and ci_high (95% interval), floor; None where undefined.
    """
    records = []
    for measure in measures:
        for name in (IMAGE_DOMINANT, CROSS_MODAL, TEXT_DOMINANT):
            values = measure.values[(classes == name) & np.isfinite(measure.values)]
            mean = mean_estimate(values, seed=seed)
            records.append(
                {
                    "measure": measure.name,
                    "modality": measure.modality,
                    "m": measure.m,
                    "class": name,
                    "n": len(values),
                    "mean": mean.value,
                    "ci_low": mean.low,
                    "ci_high": mean.high,
                    "floor": measure.floor,
                }
            )
    return jsonable(records)


def _floor(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.quantile(known, FLOOR_QUANTILE)) if len(known) else math.nan
