"""How much alike the samples are that activate a feature, by the eyes of a judge encoder.

EmbSim and WinRate (Yan et al. 2025, arXiv 2502.14888) look at the m most activating samples; the
Monosemanticity Score (Pach et al. 2025, arXiv 2504.02821) and its cross-modal form (Kaushik et al.
2026, arXiv 2601.20028) at all of them. The judge should not be the encoder whose features are
judged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from features.modality import IMAGE_DOMINANT, TEXT_DOMINANT
from features.scores.active import ActivePairs
from features.store.pictures import PicturesOfBatch

FEATURE_CHUNK = 256
NO_SAMPLE = -1
"""Stands in `TopSamples.samples` where fewer than m samples activate a feature."""
NUMBERS = 2**32 - 1
"""The greatest number of a sample."""


class TopSamples:
    """The m most activating samples of each feature, streamed and mergeable.

    Only samples that activate a feature (|a| > 0) count. Of equal ones those with the lowest
    numbers stay, so that neither the batches nor the order of merging changes anything.
    """

    def __init__(self, features: int, m: int, device: torch.device | str = "cpu") -> None:
        self.m = m
        # The bits of |a| (float32; they grow with it) above those of NUMBERS - sample; 0 is nobody.
        self._keys = torch.zeros(features, m, dtype=torch.long, device=device)

    @property
    def values(self) -> Tensor:
        """|a|, `[features, m]` float32, the largest first; 0 where there is no sample."""
        return (self._keys >> 32).int().view(torch.float32)

    @property
    def samples(self) -> Tensor:
        """Their numbers, `[features, m]` int64; NO_SAMPLE where there is none."""
        return torch.where(self._keys > 0, NUMBERS - (self._keys & NUMBERS), NO_SAMPLE)

    def update(self, activations: Tensor, start: int) -> None:
        """Add samples.

        Args:
            activations: `[n, features]`; signs don't matter.
            start: the first sample's number; numbers stay below 2^32.
        """
        active = ActivePairs.of(activations, activations)
        self.add(active, active.image, start)

    def add(self, active: ActivePairs, values: Tensor, start: int) -> None:
        """Add samples.

        Args:
            values: |a| of the images or of the texts: `[places]`.
            start: as `update` takes it.
        """
        values = values.float().contiguous()
        keys = (values.view(torch.int32).long() << 32) + (NUMBERS - start - active.pair)
        better = keys > self._keys[active.feature, -1]  # few, but at first
        found = active.where(better)
        changed = found.counts.nonzero().squeeze(1)
        if len(changed) == 0:
            return
        place = torch.arange(len(found.feature), device=keys.device)
        place -= (found.counts.cumsum(0) - found.counts)[found.feature]  # within its feature
        row = torch.empty_like(found.counts)
        row[changed] = torch.arange(len(changed), device=keys.device)
        waiting = keys.new_zeros(len(changed), int(found.counts.max()))
        waiting[row[found.feature], place] = keys[better]
        self._keys[changed] = self._best(self._keys[changed], waiting)

    def merge(self, other: TopSamples) -> None:
        """Add the best of other samples, numbered apart from these."""
        self._keys = self._best(self._keys, other._keys.to(self._keys.device))

    def _best(self, keys: Tensor, others: Tensor) -> Tensor:
        return torch.cat([keys, others], dim=1).topk(self.m, dim=1).values


@dataclass(frozen=True)
class TopSimilarity:
    """EmbSim and WinRate `[features]`; NaN where fewer than two samples activate a feature."""

    embsim: np.ndarray
    winrate: np.ndarray


def top_similarity(
    samples: Tensor,
    embeddings: Callable[[Tensor], Tensor],
    total: int,
    generator: torch.Generator,
) -> TopSimilarity:
    """EmbSim and WinRate of each feature's top samples.

    EmbSim: mean off-diagonal cosine of the top m samples, less the same for m random ones. WinRate:
    share of the top m's off-diagonal cosines that exceed those of m random samples, one against
    one. Each feature has random samples of its own, drawn without repetition. Where fewer than m
    samples activate a feature, m is their number.

    Args:
        samples: `[features, m]`, NO_SAMPLE where there are fewer; in any order.
        embeddings: numbers `[n]` -> the judge's embeddings `[n, dim]`.
        total: samples to draw the random ones from.
        generator: on the CPU.
    """
    samples = samples.cpu().sort(dim=1, descending=True).values  # their order must not matter
    random = random_samples(len(samples), samples.shape[1], total, generator)
    random = torch.where(samples == NO_SAMPLE, NO_SAMPLE, random)
    embsim, winrate = [], []
    for top, other in zip(samples.split(FEATURE_CHUNK), random.split(FEATURE_CHUNK), strict=True):
        present = top != NO_SAMPLE  # [chunk, m]
        pair = present[:, :, None] & present[:, None, :]
        pair &= ~torch.eye(top.shape[1], dtype=torch.bool)  # [chunk, m, m]
        top_cosines, random_cosines = _cosines(top, embeddings), _cosines(other, embeddings)
        pairs = pair.sum((1, 2)).double()  # [chunk]
        gain = torch.where(pair, top_cosines - random_cosines, 0.0).sum((1, 2))
        wins = (pair & (top_cosines > random_cosines)).sum((1, 2))
        embsim.append(gain / pairs)
        winrate.append(wins / pairs)
    return TopSimilarity(torch.cat(embsim).numpy(), torch.cat(winrate).numpy())


def random_samples(rows: int, m: int, total: int, generator: torch.Generator) -> Tensor:
    """`[rows, m]` sample numbers, each row drawn without repetition; NO_SAMPLE beyond `total`."""
    drawn = min(m, total)
    samples = torch.full((rows, m), NO_SAMPLE, dtype=torch.long)
    if drawn == 0:
        return samples
    # Floyd's algorithm, all rows at once: draws without repetition in O(m^2) a row.
    for place, top in enumerate(range(total - drawn, total)):
        candidate = torch.randint(top + 1, (rows,), generator=generator)
        taken = (samples[:, :place] == candidate[:, None]).any(1)
        samples[:, place] = torch.where(taken, top, candidate)
    return samples


def _cosines(samples: Tensor, embeddings: Callable[[Tensor], Tensor]) -> Tensor:
    """Cosines among each row's samples: `[rows, m]` -> `[rows, m, m]` float64."""
    found = embeddings(samples.clamp(min=0).flatten()).double()  # [rows * m, dim]
    unit = F.normalize(found, dim=1).view(*samples.shape, found.shape[1])  # [rows, m, dim]
    return unit @ unit.transpose(1, 2)


@dataclass(frozen=True)
class Monosemanticity:
    """Monosemanticity Scores, and what random features would have.

    ms_image, ms_text, ms_cross: `[features]`; NaN where they are undefined (fewer than two samples
        activate the feature, or for ms_cross, none of one modality).
    floor_image, floor_text, floor_cross: the expected score of a feature whose activations are
        permuted over the samples (the two modalities apart): the mean cosine of two different
        images, of two different captions, and of any image with any caption.
    """

    ms_image: np.ndarray
    ms_text: np.ndarray
    ms_cross: np.ndarray
    floor_image: float
    floor_text: float
    floor_cross: float

    def without_cross(self) -> Monosemanticity:
        """The same with the cross-modal score undefined, as it is for a judge that embeds images
        and texts in different spaces."""
        undefined = np.full_like(self.ms_cross, np.nan)
        return replace(self, ms_cross=undefined, floor_cross=float("nan"))


class MonosemanticityStatistics:
    """The sums from which `Monosemanticity` follows, in float64, mergeable.

    Signs of activations don't matter: |a| is what counts, as for the dominance.
    """

    def __init__(self, features: int, dim: int, device: torch.device | str = "cpu") -> None:
        self.image = Moments.empty(features, dim, device)
        self.text = Moments.empty(features, dim, device)

    def update(self, image: Tensor, text: Tensor, judge_image: Tensor, judge_text: Tensor) -> None:
        """Add pairs.

        Args:
            image: activations `[n, features]`.
            text: activations `[n, features]`.
            judge_image: the judge's embeddings `[n, dim]`.
            judge_text: `[n, dim]`.
        """
        self.add(ActivePairs.of(image, text), judge_image, judge_text)

    def add(
        self,
        active: ActivePairs,
        judge_image: Tensor,
        judge_text: Tensor,
        pictures: PicturesOfBatch | None = None,
    ) -> None:
        """Add pairs, with the judge's embeddings `[n, dim]` of their images and texts.

        Args:
            pictures: what the pairs show, each of which counts once; None where each shows a
                picture of its own.
        """
        images, texts = active.images, active.texts
        if pictures is not None and not pictures.new.all():
            new, new_pair = (
                pictures.new.to(active.pair.device),
                pictures.new_pair.to(active.pair.device),
            )
            images, judge_image = images.of_pairs(new), judge_image[new]
            texts, judge_text = texts.of_pairs(new_pair), judge_text[new_pair]
        self.image.add(images, images.image, judge_image)
        self.text.add(texts, texts.text, judge_text)

    def merge(self, other: MonosemanticityStatistics) -> None:
        """Add the sums of other pairs."""
        self.image.merge(other.image)
        self.text.merge(other.text)

    def scores(self) -> Monosemanticity:
        """The scores over all pairs so far."""
        cross = (self.image.weighted * self.text.weighted).sum(1)  # [features]
        mass = self.image.total * self.text.total
        pairs = max(1, self.image.count * self.text.count)
        return Monosemanticity(
            ms_image=self.image.score(),
            ms_text=self.text.score(),
            ms_cross=torch.where(mass > 0, cross / mass, torch.nan).cpu().numpy(),
            floor_image=self.image.floor(),
            floor_text=self.text.floor(),
            floor_cross=float(self.image.embedding @ self.text.embedding) / pairs,
        )


@dataclass
class Moments:
    """Sums over one modality's samples, a being |activation| and e the judge's unit embedding."""

    count: int
    least: Tensor
    """min a: `[features]`"""
    greatest: Tensor
    """max a: `[features]`"""
    total: Tensor
    """sum a: `[features]`"""
    squares: Tensor
    """sum a^2: `[features]`"""
    weighted: Tensor
    """sum a e: `[features, dim]`"""
    embedding: Tensor
    """sum e: `[dim]`"""

    @classmethod
    def empty(cls, features: int, dim: int, device: torch.device | str) -> Moments:
        zeros = torch.zeros(features, dtype=torch.float64, device=device)
        weighted = torch.zeros(features, dim, dtype=torch.float64, device=device)
        return cls(
            count=0,
            least=zeros + torch.inf,
            greatest=zeros.clone(),
            total=zeros.clone(),
            squares=zeros.clone(),
            weighted=weighted,
            embedding=torch.zeros(dim, dtype=torch.float64, device=device),
        )

    def add(self, active: ActivePairs, a: Tensor, embeddings: Tensor) -> None:
        """Add samples: their |activations| `[places]` and the judge's embeddings `[n, dim]`."""
        e = F.normalize(embeddings.double(), dim=1)  # [n, dim]
        self.count += active.pairs
        least = torch.segment_reduce(a, "min", lengths=active.counts)  # inf without places
        least = torch.where(active.counts < active.pairs, 0.0, least)
        self.least = torch.minimum(self.least, least)
        greatest = torch.segment_reduce(a, "max", lengths=active.counts, initial=0.0)
        self.greatest = torch.maximum(self.greatest, greatest)
        self.total += active.sums(a)
        self.squares += active.sums(a.square())
        self.weighted += active.products(a, e)
        self.embedding += e.sum(0)

    def merge(self, other: Moments) -> None:
        self.count += other.count
        device = self.total.device
        self.least = torch.minimum(self.least, other.least.to(device))
        self.greatest = torch.maximum(self.greatest, other.greatest.to(device))
        self.total += other.total.to(device)
        self.squares += other.squares.to(device)
        self.weighted += other.weighted.to(device)
        self.embedding += other.embedding.to(device)

    def score(self) -> np.ndarray:
        """Pach et al.'s MS `[features]`, over the pairs of different samples, with activations
        scaled to [0, 1] by each feature's least and greatest: (||sum w e||^2 - sum w^2) /
        ((sum w)^2 - sum w^2), w = (a - least) / (greatest - least)."""
        span = self.greatest - self.least
        shift = torch.where(span > 0, self.least, 0.0)
        span = torch.where(span > 0, span, 1.0)
        weighted = (self.weighted - shift[:, None] * self.embedding) / span[:, None]
        total = (self.total - self.count * shift) / span
        squares = (self.squares - 2 * shift * self.total + self.count * shift**2) / span**2
        mass = total.square() - squares
        scores = (weighted.square().sum(1) - squares) / mass
        return torch.where(mass > 1e-6 * total.square(), scores, torch.nan).cpu().numpy()

    def floor(self) -> float:
        """Mean cosine of two different samples."""
        if self.count < 2:
            return float("nan")
        return (float(self.embedding.square().sum()) - self.count) / (self.count * (self.count - 1))


def in_driving_modality(
    image: np.ndarray | float, text: np.ndarray | float, modality_class: np.ndarray | str
) -> np.ndarray:
    """A score of the modality that drives each feature, the mean of both for cross-modal ones.

    Args:
        image, text: the score by modality, `[features]` or of one feature.
        modality_class: ImgD, TextD, or another for the mean.
    """
    image_drives = np.asarray(modality_class) == IMAGE_DOMINANT
    text_drives = np.asarray(modality_class) == TEXT_DOMINANT
    both = (np.asarray(image) + np.asarray(text)) / 2
    return np.where(image_drives, image, np.where(text_drives, text, both))
