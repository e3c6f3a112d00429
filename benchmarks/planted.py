"""Planted ground truth: which features are aligned with a factor of known modality, and whether
their scores say so.

A dictionary is fitted on the training pairs; alignment and MDS are measured on the held-out
combinations, each under several draws of the planted factors.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import Result, mean_row
from features.dictionary import (
    DICTIONARIES,
    Dictionary,
    TrainConfig,
    fit_dictionary,
    trained_kinds,
)
from features.embedded.evaluate import embed_pairs
from features.embedded.world import PLANTED_IMAGE, PLANTED_TEXT, EmbeddedPairs
from features.encoders.encoder import Encoder
from features.modality import FIXED_BOUNDS
from features.scores.dominance import DominanceStatistics
from features.store.extract import extract

ALIGNED = 0.75
"""A feature is aligned with a factor's value when its activation finds the value at this AUROC."""
HELD_OUT_DRAWS = range(1, 9)
MIN_PAIRS = 10
SHARED_FACTORS = ("gender", "skin_tone", "subgroup")
"""What images and captions both show: gender, skin tone and the role's kind."""
MIN_SAMPLES = 30
"""Fewer samples of a value say too little about the alignment with it."""


@dataclass(frozen=True)
class Alignment:
    """The best AUROC `[features]` of each feature with a vision-only, a text-only and a shared
    factor."""

    image: np.ndarray
    text: np.ndarray
    shared: np.ndarray

    @property
    def vision_only(self) -> np.ndarray:
        """Features aligned with a vision-only factor and, more so, than with a text-only one."""
        return (self.image >= ALIGNED) & (self.image > self.text)

    @property
    def text_only(self) -> np.ndarray:
        """Features aligned with a text-only factor and, more so, than with a vision-only one."""
        return (self.text >= ALIGNED) & (self.text > self.image)

    @property
    def of_both(self) -> np.ndarray:
        """Features aligned with a shared factor and, more so, than with one of one modality."""
        return (self.shared >= ALIGNED) & (self.shared > np.maximum(self.image, self.text))


@dataclass(frozen=True)
class Draws:
    """Unit embeddings `[n, dim]` of the held-out combinations under all draws, and their
    attributes."""

    images: Tensor
    texts: Tensor
    attributes: list[dict[str, str | None]]


def planted_rows(encoder: Encoder, work: Path, seed: int) -> list[Result]:
    """`planted/auroc`: does MDS tell features of vision-only factors from those of text-only ones?
    `planted/cross_share/...`: which share of the features of shared factors comes out cross-modal,
    for each kind of dictionary with a bias by modality and without?"""
    store = extract(EmbeddedPairs("train"), encoder, work / "train", progress=False)
    draws = held_out_draws(encoder)
    rows = []
    for kind in trained_kinds():
        for bias in (True, False):
            config = TrainConfig(kind=kind, modality_bias=bias, seed=seed)
            folder = work / f"{kind}-{bias}"
            dictionary = fit_dictionary(store, config, folder, progress=False)
            mds, alignment = scores_and_alignment(dictionary, draws, seed)
            if kind == TrainConfig.kind and bias == DICTIONARIES[kind].default_modality_bias:
                rows += dominance_rows(mds, alignment, seed)
            name = kind if bias else f"{kind}_no_bias"
            rows.append(cross_share_row(name, mds, alignment, seed))
    return rows


def held_out_draws(encoder: Encoder) -> Draws:
    """The held-out combinations under each draw of the planted factors."""
    found = [embed_pairs(encoder, EmbeddedPairs("heldout", draw)) for draw in HELD_OUT_DRAWS]
    return Draws(
        F.normalize(torch.cat([images for images, _, _ in found]), dim=-1),
        F.normalize(torch.cat([texts for _, texts, _ in found]), dim=-1),
        [attributes for _, _, drawn in found for attributes in drawn],
    )


@torch.no_grad()
def scores_and_alignment(
    dictionary: Dictionary, draws: Draws, seed: int
) -> tuple[np.ndarray, Alignment]:
    """MDS `[features]` (NaN where unscored) and alignment of a dictionary's features."""
    image = dictionary.encode(draws.images, "image")  # [n, features]
    text = dictionary.encode(draws.texts, "text")  # [n, features]
    statistics = DominanceStatistics(dictionary.config.features, seed=seed)
    statistics.update(image, text)
    mds = np.asarray(statistics.scores(min_pairs=MIN_PAIRS).mds)
    return mds, align(image.abs().numpy(), text.abs().numpy(), draws.attributes)


def align(
    image_activations: np.ndarray,
    text_activations: np.ndarray,
    attributes: Sequence[dict[str, str | None]],
) -> Alignment:
    """Align features with the factors: planted ones in the modality that shows them, shared ones in
    either.

    Args:
        image_activations: `[n, features]`.
        text_activations: `[n, features]`.
        attributes: of the n pairs.
    """

    def best(activations: np.ndarray, factors: Sequence[str]) -> np.ndarray:
        scores = [auroc_by_value(activations, [str(a[f]) for a in attributes]) for f in factors]
        return np.concatenate(scores).max(axis=0)

    return Alignment(
        image=best(image_activations, PLANTED_IMAGE),
        text=best(text_activations, PLANTED_TEXT),
        shared=np.maximum(
            best(image_activations, SHARED_FACTORS), best(text_activations, SHARED_FACTORS)
        ),
    )


def auroc_by_value(activations: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """AUROC of each feature for each value against the rest: `[values, features]`.

    Ties count one half (the Mann-Whitney statistic). Values of fewer than MIN_SAMPLES samples, and
    "None", are left out; a row of 0.5 stands for a factor that has no others.

    Args:
        activations: `[n, features]`, of one modality.
        labels: the factor's value for each of the n samples.
    """
    from scipy.stats import rankdata

    ranks = rankdata(activations, axis=0)  # [n, features]
    label_array = np.array(labels)
    counts = Counter(labels)
    rows = []
    for value in sorted(counts):
        p, q = counts[value], len(labels) - counts[value]
        if value != "None" and p >= MIN_SAMPLES and q:
            positive = label_array == value
            rows.append((ranks[positive].sum(axis=0) - p * (p + 1) / 2) / (p * q))
    return np.stack(rows) if rows else np.full((1, activations.shape[1]), 0.5)


def dominance_rows(mds: np.ndarray, alignment: Alignment, seed: int) -> list[Result]:
    """The AUROC of MDS, and its mean over the features of each modality's factors."""
    scored = np.isfinite(mds)
    vision, text_only = alignment.vision_only & scored, alignment.text_only & scored
    rows = [auroc_row(mds[vision], mds[text_only], seed)]
    for name, group in (("vision_only", vision), ("text_only", text_only)):
        rows.append(mean_row(f"planted/mds/{name}", mds[group], "MDS", seed))
    return rows


def cross_share_row(name: str, mds: np.ndarray, alignment: Alignment, seed: int) -> Result:
    """Share of the scored features aligned with a shared factor whose MDS lies in the fixed bounds
    of the cross-modal class."""
    low, high = FIXED_BOUNDS
    values = mds[alignment.of_both & np.isfinite(mds)]
    crosses = (values >= low) & (values <= high)
    return mean_row(f"planted/cross_share/{name}", crosses, "share", seed)


def auroc_row(vision: np.ndarray, text: np.ndarray, seed: int, replicates: int = 1000) -> Result:
    """AUROC of MDS for vision-only against text-only features, with a bootstrap over features
    within each group; NaN where a group is empty."""
    from sklearn.metrics import roc_auc_score

    n = len(vision) + len(text)
    if len(vision) == 0 or len(text) == 0:
        return Result("planted/auroc", math.nan, math.nan, math.nan, n, "AUROC")
    truth = np.repeat([1, 0], [len(vision), len(text)])
    rng = np.random.default_rng(seed)
    draws = [
        roc_auc_score(
            truth, np.concatenate([rng.choice(group, len(group)) for group in (vision, text)])
        )
        for _ in range(replicates)
    ]
    low, high = np.quantile(draws, [0.025, 0.975])
    auroc = float(roc_auc_score(truth, np.concatenate([vision, text])))
    return Result("planted/auroc", auroc, float(low), float(high), n, "AUROC")
