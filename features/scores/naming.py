"""Names for features: the term of the captions that goes with a feature's activations.

A feature's name is the term (`features.scores.terms`) whose presence correlates best with its
activation over all pairs (the point-biserial correlation), where that is more than permuted
activations give.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from features.bootstrap import FLOOR_QUANTILE
from features.scores.active import ActivePairs
from features.scores.terms import OF_ATTRIBUTE, pair_terms, phrases_among
from features.scores.words import words

CANDIDATES = 5
"""Terms of a feature among which its second one is looked for."""


class NamingStatistics:
    """Sums from which the correlation of each feature with each term follows, in float64,
    mergeable, by modality."""

    def __init__(
        self, features: int, terms: Sequence[str], device: torch.device | str = "cpu"
    ) -> None:
        self.terms = list(terms)
        self._phrases = phrases_among(self.terms)
        self._index = {term: index for index, term in enumerate(self.terms)}
        self.pairs = 0
        self.device = torch.device(device)
        self.present = self._zeros(len(self.terms))
        self.total = self._zeros(2, features)  # [image and text, features]
        self.squares = self._zeros(2, features)
        self.together = self._zeros(2, len(self.terms), features)

    def update(self, image: Tensor, text: Tensor, samples: pa.Table) -> None:
        """Add pairs.

        Args:
            image: activations `[n, features]`; signs don't matter.
            text: activations `[n, features]`.
            samples: their n rows of the store's samples.
        """
        self.add(ActivePairs.of(image, text), samples)

    def add(self, active: ActivePairs, samples: pa.Table) -> None:
        """Add pairs, with their rows of the store's samples."""
        found = pair_terms(samples, self._phrases).among(self._index)
        pair, term = (torch.from_numpy(numbers).to(self.device) for numbers in found)  # [n] each
        self.present += torch.bincount(term, minlength=len(self.terms))
        images, texts = active.images, active.texts
        for modality, (places, a) in enumerate(((images, images.image), (texts, texts.text))):
            self.total[modality] += places.sums(a)
            self.squares[modality] += places.sums(a.square())
            places.add_by_label(self.together[modality], a, pair, term)
        self.pairs += active.pairs

    def merge(self, other: NamingStatistics) -> None:
        """Add the sums of other pairs.

        Raises:
            ValueError: the terms differ.
        """
        if self.terms != other.terms:
            raise ValueError("the terms must be equal")
        for name in ("present", "total", "squares", "together"):
            mine: Tensor = getattr(self, name)
            mine += getattr(other, name).to(self.device)
        self.pairs += other.pairs

    def correlations(self, modality: int) -> Tensor:
        """Point-biserial correlations with one modality's activations (0 image, 1 text):
        `[terms, features]` float64, 0 where the feature or the term doesn't vary."""
        n = max(1, self.pairs)
        share = self.present / n  # [terms]
        mean = self.total[modality] / n  # [features]
        covariance = self.together[modality] / n - share[:, None] * mean
        variance = (self.squares[modality] / n - mean.square()).clamp(min=0)
        scale = (share * (1 - share)).sqrt()[:, None] * variance.sqrt()
        return torch.where(scale > 1e-12, covariance / scale, 0.0)

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=self.device)


@dataclass(frozen=True)
class Names:
    """A name a feature, "" where there is none, and its term's correlation `[features]` (NaN)."""

    names: list[str]
    scores: np.ndarray


def name_features(
    statistics: NamingStatistics,
    image_share: np.ndarray,
    classes: Sequence[str],
    floor: float = 0.0,
) -> Names:
    """Name each feature by the term that goes best with it, in its stronger modality.

    Where features of one class would have one name, all but the one that fits it best get the
    next-best term that says something else too: "moon, night", but not "man, gender: man".

    Args:
        image_share: the images' share of each feature's activation, `[features]`; from 0.5 on the
            image is the stronger one. NaN for features that get no name.
        classes: each feature's class.
        floor: a term that correlates no better is no name (`naming_floor`).
    """
    features = len(image_share)
    if not statistics.terms:
        return Names([""] * features, np.full(features, np.nan))
    scores, terms = _best_terms(statistics, image_share)  # [best, features] each
    named = np.isfinite(image_share) & (scores[0] > floor)
    names = [
        statistics.terms[term] if has else "" for term, has in zip(terms[0], named, strict=True)
    ]
    sharing: dict[tuple[str, str], list[int]] = defaultdict(list)
    for feature in np.flatnonzero(named).tolist():
        sharing[classes[feature], names[feature]].append(feature)
    for group in sharing.values():
        for feature in sorted(group, key=lambda f: -scores[0, f])[1:]:
            fitting = terms[1:, feature][scores[1:, feature] > floor]
            others = (statistics.terms[term] for term in fitting)
            taken = _said(names[feature])
            new = next((term for term in others if not _said(term) & taken), None)
            if new is not None:
                names[feature] += f", {new}"
    return Names(names, np.where(named, scores[0], np.nan))


def naming_floor(
    chance: NamingStatistics, image_share: np.ndarray, design_effect: float = 1.0
) -> float:
    """What names get by chance: the 97.5% quantile, over the features, of the best term's
    correlation; 0 where there are no features or no terms.

    Args:
        chance: of the same pairs, their activations permuted over them.
        image_share: as `name_features` takes it; features of NaN are left out.
        design_effect: of pairs that show the same picture (`Pictures.design_effect`), which
            permuting activations over all pairs leaves out: correlations grow by its root.
    """
    known = np.isfinite(image_share)
    if not chance.terms or not known.any():
        return 0.0
    scores, _ = _best_terms(chance, image_share)
    return max(0.0, float(np.quantile(scores[0, known], FLOOR_QUANTILE))) * design_effect**0.5


def _best_terms(
    statistics: NamingStatistics, image_share: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Correlations and numbers of each feature's best terms in its stronger modality, the best
    first: `[CANDIDATES or fewer, features]` each."""
    by_image = torch.from_numpy(np.nan_to_num(image_share) >= 0.5).to(statistics.device)
    best = min(CANDIDATES, len(statistics.terms))
    image, text = (statistics.correlations(modality).topk(best, dim=0) for modality in (0, 1))
    scores = torch.where(by_image, image.values, text.values)
    terms = torch.where(by_image, image.indices, text.indices)
    return scores.cpu().numpy(), terms.cpu().numpy()


def _said(term: str) -> set[str]:
    """The words of a term, without the name of its attribute."""
    return words(term.rpartition(OF_ATTRIBUTE)[2])
