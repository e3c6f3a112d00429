"""The Modality Dominance Score and its classes (Yan et al. 2025, arXiv 2502.14888)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from features.bootstrap import bootstrap_weights, bootstrap_weights_of, ratio_interval
from features.errors import UserError
from features.modality import (
    CROSS_MODAL,
    FIXED_BOUNDS,
    IMAGE_DOMINANT,
    TEXT_DOMINANT,
    UNSCORED,
    Rule,
)
from features.scores.active import ActivePairs
from features.store.pictures import PicturesOfBatch


@dataclass(frozen=True)
class Dominance:
    """What a feature's activations on pairs say about its modality; arrays `[features]`.

    mds: mean of |a_image| / (|a_image| + |a_text|) over the pairs in which either is not zero: 0
        where only texts drive the feature, 1 where only images do. NaN where it is unscored.
    ci_low, ci_high: 95% interval of mds from a bootstrap over the pairs
        (`features.bootstrap.ratio_interval`). Never of width 0: ten pairs leave much open.
    energy: sum |a_image| / (sum |a_image| + sum |a_text|) (Papadimitriou et al. 2025, arXiv
        2504.11695). NaN where the feature is never active.
    active_pairs, left_out: pairs that mds stands on, and the others.
    image_density, text_density: share of the samples in which the feature is active.
    image_mean_active, text_mean_active: mean |a| over those samples. NaN where there are none.
    """

    mds: np.ndarray
    ci_low: np.ndarray
    ci_high: np.ndarray
    energy: np.ndarray
    active_pairs: np.ndarray
    left_out: np.ndarray
    image_density: np.ndarray
    text_density: np.ndarray
    image_mean_active: np.ndarray
    text_mean_active: np.ndarray


class DominanceStatistics:
    """The sums from which `Dominance` follows, in float64, mergeable.

    The bootstrap weight of a pair depends on (seed, stream, its number in the stream) alone, so
    that neither the batch size nor the split over processes changes an interval. Pairs of the same
    picture have the weight of the first one.

    Args:
        features: features of the dictionary.
        seed: of the bootstrap.
        stream: the data set's name. What is merged must be of other streams, or of other pairs of
            the same stream.
        start: number of the first pair in its stream.
        replicates: of the bootstrap.
    """

    def __init__(
        self,
        features: int,
        *,
        seed: int = 0,
        stream: str = "pairs",
        start: int = 0,
        replicates: int = 200,
        device: torch.device | str = "cpu",
    ) -> None:
        self.features = features
        self.seed = seed
        self.stream = stream
        self.replicates = replicates
        self.pairs = 0
        self._next = start
        zeros = torch.zeros(features, dtype=torch.float64, device=device)
        self.ratio = zeros.clone()
        self.active = zeros.clone()
        self.pictures = zeros.clone()
        self.energy = torch.stack([zeros, zeros])  # [image and text, features]
        self.nonzero = torch.stack([zeros, zeros])  # [image and text, features]
        self.replicate_ratio = zeros[:, None].repeat(1, replicates)  # [features, replicates]
        self.replicate_active = zeros[:, None].repeat(1, replicates)  # [features, replicates]

    def update(self, image: Tensor, text: Tensor) -> None:
        """Add the stream's next pairs.

        Args:
            image: activations for the images, `[n, features]`; signs don't matter.
            text: activations for the captions of the same pairs, `[n, features]`.
        """
        self.add(ActivePairs.of(image, text))

    def add(self, active: ActivePairs, pictures: PicturesOfBatch | None = None) -> None:
        """Add the stream's next pairs.

        Args:
            pictures: what they show; None where each shows a picture of its own.
        """
        n = active.pairs
        if pictures is None or pictures.new.all():
            weights = bootstrap_weights(self.seed, self.stream, self._next, n, self.replicates)
        else:
            numbers = pictures.number
            weights = bootstrap_weights_of(self.seed, self.stream, numbers, self.replicates)
        weights = weights.to(active.image)  # [n, replicates]
        images, texts = active.images, active.texts
        ratio = images.image / (images.image + images.text)  # [places of images]
        rest = texts.text / (texts.image + texts.text)  # [places of texts]
        self.ratio += images.sums(ratio)
        self.active += active.counts
        self.pictures += active.picture_counts(pictures)
        self.energy += torch.stack([images.sums(images.image), texts.sums(texts.text)])
        self.nonzero += torch.stack([images.counts, texts.counts])
        of_images, of_texts = images.products(ratio, weights), texts.products(rest, weights)
        self.replicate_ratio += of_images
        self.replicate_active += of_images + of_texts
        self.pairs += n
        self._next += n

    @property
    def means(self) -> Tensor:
        """Mean |activation| of images and of texts over all pairs so far: `[2, features]`."""
        return self.energy / max(1, self.pairs)

    def merge(self, other: DominanceStatistics) -> None:
        """Add the sums of other pairs.

        Raises:
            ValueError: the features, the replicates or the seed differ.
        """
        if (self.features, self.replicates, self.seed) != (
            other.features,
            other.replicates,
            other.seed,
        ):
            raise ValueError("features, replicates and seed must be equal")
        for name in (
            "ratio",
            "active",
            "pictures",
            "energy",
            "nonzero",
            "replicate_ratio",
            "replicate_active",
        ):
            mine: Tensor = getattr(self, name)
            mine += getattr(other, name).to(mine.device)
        self.pairs += other.pairs

    def scores(self, min_pairs: int = 10) -> Dominance:
        """The scores; features that are active in fewer than `min_pairs` pairs of different
        pictures are unscored (NaN)."""
        active = self.active.cpu().numpy()  # [features]
        pictures = self.pictures.cpu().numpy()  # [features]
        energy = self.energy.cpu().numpy()  # [2, features]
        nonzero = self.nonzero.cpu().numpy()  # [2, features]
        unscored = too_few(pictures, min_pairs)
        with np.errstate(divide="ignore", invalid="ignore"):
            mds = self.ratio.cpu().numpy() / active
            energy_share = energy[0] / energy.sum(0)
            mean_active = energy / nonzero
            density = nonzero / np.float64(self.pairs)
            pairs_a_picture = active / pictures
        low, high = ratio_interval(
            self.replicate_ratio.T.cpu().numpy(),
            self.replicate_active.T.cpu().numpy(),
            pairs_a_picture,
            seed=self.seed,
        )
        for values in (mds, low, high):
            values[unscored] = np.nan
        return Dominance(
            mds=mds,
            ci_low=low,
            ci_high=high,
            energy=energy_share,
            active_pairs=active.astype(np.int64),
            left_out=self.pairs - active.astype(np.int64),
            image_density=density[0],
            text_density=density[1],
            image_mean_active=mean_active[0],
            text_mean_active=mean_active[1],
        )


def too_few(pictures: np.ndarray, min_pairs: int) -> np.ndarray:
    """Which features are active in too few pairs of different pictures to be scored: `[features]`
    bool.

    Args:
        pictures: sums of `PicturesOfBatch.share`, which may lie off by what adding them rounds.
    """
    return pictures.round(6) < max(1, min_pairs)


@dataclass(frozen=True)
class Classes:
    """A class a feature, and the bounds that made it.

    names: `[features]` of ImgD, TextD, CrossD, unscored.
    uncertain: `[features]` bool; the feature's interval crosses a bound.
    low, high: TextD lies below low, ImgD above high.
    """

    names: np.ndarray
    uncertain: np.ndarray
    low: float
    high: float


def classify(
    mds: np.ndarray,
    ci_low: np.ndarray,
    ci_high: np.ndarray,
    rule: Rule = "relative",
) -> Classes:
    """Sort features by modality.

    Args:
        mds: `[features]`; NaN is unscored.
        ci_low: `[features]`.
        ci_high: `[features]`.
        rule: "relative" as in the paper: below mean - sigma and above mean + sigma over the scored
            features (sigma is the population's); it always finds outliers. "fixed": 1/3 and 2/3.

    Raises:
        UserError: another rule.
    """
    mds = np.asarray(mds, dtype=float)
    scored = np.isfinite(mds)
    if rule == "fixed":
        low, high = FIXED_BOUNDS
    elif rule == "relative":
        mean, sigma = (mds[scored].mean(), mds[scored].std()) if scored.any() else (np.nan, np.nan)
        low, high = float(mean - sigma), float(mean + sigma)
    else:
        raise UserError(f"{rule}: unknown rule for the classes; use relative or fixed")
    names = np.select(
        [~scored, mds > high, mds < low], [UNSCORED, IMAGE_DOMINANT, TEXT_DOMINANT], CROSS_MODAL
    )
    crosses = [(ci_low < bound) & (bound < ci_high) for bound in (low, high)]
    return Classes(names, scored & (crosses[0] | crosses[1]), low, high)
