"""Agreement: whether images and texts drive a feature in the same pairs.

An MDS of 0.5 says that both modalities drive a feature equally over all pairs, not that they do so
in the same ones. Agreement is the weighted Jaccard index over the pairs of the activations, each
modality's scaled by its mean, beside what the texts of other pairs give.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from features.bootstrap import FLOOR_QUANTILE, bootstrap_weights_of, ratio_interval
from features.scores.active import ActivePairs, runs
from features.scores.dominance import too_few
from features.store.pictures import PicturesOfBatch

PERMUTATIONS = 40
"""Ways in which images get the texts of other pairs, for the floor."""
PLACES_AT_ONCE = 1 << 15
"""Images' places whose floors are added to together, which bounds the memory."""


@dataclass(frozen=True)
class Agreement:
    """How far a feature's images and texts agree; arrays `[features]`, NaN where it is unscored.

    agreement: sum_m min(u_m, v_m) / sum_m max(u_m, v_m) over the pairs m, with u_m = |a(x_m)| /
        mean |a(x)| of the images and v_m = |a(y_m)| / mean |a(y)| of the texts, the means over all
        pairs: 1 where both drive the feature alike in each pair, 0 where no pair drives it in both.
    ci_low, ci_high: its 95% interval from a bootstrap over the pairs (the means move too).
    floor: the 97.5% quantile of the same with the texts of other pairs, drawn from all of them.
    """

    agreement: np.ndarray
    ci_low: np.ndarray
    ci_high: np.ndarray
    floor: np.ndarray

    @property
    def mean_floor(self) -> float:
        """Mean floor of the scored features; NaN where there are none."""
        known = self.floor[np.isfinite(self.floor)]
        return float(known.mean()) if len(known) else math.nan

    @property
    def shared(self) -> np.ndarray:
        """`[features]` bool: the agreement lies above its floor."""
        return self.agreement > self.floor

    @property
    def uncertain(self) -> np.ndarray:
        """`[features]` bool: the agreement's interval crosses the floor."""
        return (self.ci_low < self.floor) & (self.floor < self.ci_high)


class AgreementStatistics:
    """The sums from which `Agreement` follows, in float64; they merge where the means are equal.

    The means must be known beforehand, so this takes a second pass over the pairs, after the one
    that found them (`DominanceStatistics.means`). A bootstrap replicate has means of its own. To
    first order, which pairs' image or text is the lesser stays as it is, and the sums over each
    kind of pair are rescaled; so four sums a replicate are enough.

    Args:
        means: mean |activation| of images and of texts over all pairs, `[2, features]`.
        seed: of the bootstrap.
        stream: the data set's name, as `DominanceStatistics` takes it.
        start: number of the first pair in its stream.
        replicates: of the bootstrap.
    """

    def __init__(
        self,
        means: Tensor,
        *,
        seed: int = 0,
        stream: str = "pairs",
        start: int = 0,
        replicates: int = 200,
    ) -> None:
        self.means = means.double()
        self.seed = seed
        self.stream = stream
        self.replicates = replicates
        self._next = start
        zeros = torch.zeros(means.shape[1], dtype=torch.float64, device=means.device)
        self.pictures = zeros.clone()
        self.least = zeros.clone()  # sum of min(u, v)
        self.greatest = zeros.clone()  # sum of max(u, v)
        self.replicate_weight = torch.zeros(replicates, dtype=torch.float64, device=means.device)
        # Over pairs whose lesser is the image, the lesser is the text; all images; all texts.
        self.replicate_sums = zeros[:, None].repeat(4, 1, replicates)  # [4, features, replicates]
        self.chance_least = zeros.repeat(PERMUTATIONS, 1)  # [permutations, features]
        self.chance_greatest = zeros.repeat(PERMUTATIONS, 1)  # [permutations, features]

    def update(self, image: Tensor, text: Tensor) -> None:
        """Add the stream's next pairs.

        Args:
            image: activations for the images, `[n, features]`; signs don't matter.
            text: activations for the captions of the same pairs, `[n, features]`.
        """
        numbers = torch.arange(self._next, self._next + len(image))
        self._next += len(image)
        self.add(ActivePairs.of(image, text), self.weights_of(numbers))

    def weights_of(self, numbers: Tensor) -> Tensor:
        """The bootstrap weights `[n, replicates]` of pairs by their numbers in the stream `[n]`."""
        return bootstrap_weights_of(self.seed, self.stream, numbers, self.replicates)

    def add(
        self, active: ActivePairs, weights: Tensor, pictures: PicturesOfBatch | None = None
    ) -> None:
        """Add pairs.

        Args:
            weights: theirs (`weights_of`), `[n, replicates]`; of the same picture they are equal.
            pictures: what the pairs show; None where each shows a picture of its own.
        """
        weights = weights.to(active.image)
        (u, other_v), (other_u, v) = self._scaled(active.images), self._scaled(active.texts)
        image_less, text_less = u <= other_v, v < other_u
        lesser = (
            (active.images.where(image_less), u[image_less]),
            (active.texts.where(text_less), v[text_less]),
        )
        self.pictures += active.picture_counts(pictures)
        for places, values in lesser:
            self.least += places.sums(values)
        self.greatest += active.images.sums(torch.where(image_less, 0.0, u))
        self.greatest += active.texts.sums(torch.where(text_less, 0.0, v))
        parts = (*lesser, (active.images, u), (active.texts, v))
        for sums, (places, values) in zip(self.replicate_sums, parts, strict=True):
            sums += places.products(values, weights)
        self.replicate_weight += weights.sum(0)

    def update_chance(self, image: Tensor, text: Tensor) -> None:
        """Add pairs to the floor: within them, images are paired with the texts of others.

        Args:
            image: activations `[n, features]` of pairs drawn from all over the data
                (`ActivationStore.shuffled_batches`): neighbours may be of one kind.
            text: of the same pairs, `[n, features]`.
        """
        self.add_chance(ActivePairs.of(image, text))

    def add_chance(self, active: ActivePairs, pictures: PicturesOfBatch | None = None) -> None:
        """Add pairs to the floor, as `update_chance`, of each picture the first: chance varies as
        among so many pictures, not as among so many pairs.

        Args:
            pictures: what the pairs show; None where each shows a picture of its own.
        """
        if pictures is not None and not pictures.new.all():
            active = active.of_pairs(pictures.new.to(active.pair.device))
        n = active.pairs
        if n < 2:  # there is no other pair
            return
        images, texts = active.images, active.texts
        u, v = self._scaled(images)[0], self._scaled(texts)[1]
        both = images.sums(u) + texts.sums(v)  # of min(u, other) + max(u, other)
        furthest = min(PERMUTATIONS, n - 1)
        image_keys, text_keys = (part.feature * n + part.pair for part in (images, texts))
        sums = u.new_zeros(active.features * furthest)
        for some in torch.arange(len(u), device=u.device).split(PLACES_AT_ONCE):
            image, text = _texts_before(image_keys[some], text_keys, n, furthest)
            own = image_keys[some][image]
            distance = (own - text_keys[text]) % n  # 1 to furthest
            place = own // n * furthest + distance - 1
            sums.index_add_(0, place, torch.minimum(u[some][image], v[text]))
        order = torch.arange(PERMUTATIONS, device=u.device) % furthest
        least = sums.view(active.features, furthest)[:, order].T  # [permutations, features]
        self.chance_least += least
        self.chance_greatest += both - least

    def merge(self, other: AgreementStatistics) -> None:
        """Add the sums of other pairs.

        Raises:
            ValueError: the means, the replicates or the seed differ.
        """
        if (self.replicates, self.seed) != (other.replicates, other.seed) or not torch.equal(
            self.means, other.means.to(self.means.device)
        ):
            raise ValueError("means, replicates and seed must be equal")
        for name in (
            "pictures",
            "least",
            "greatest",
            "replicate_weight",
            "replicate_sums",
            "chance_least",
            "chance_greatest",
        ):
            mine: Tensor = getattr(self, name)
            mine += getattr(other, name).to(mine.device)

    def scores(self, min_pairs: int = 10) -> Agreement:
        """The scores; features that are active in fewer than `min_pairs` pairs of different
        pictures are unscored (NaN)."""
        pictures = self.pictures.cpu().numpy()  # [features]
        greatest = self.greatest.cpu().numpy()  # [features]
        weight = self.replicate_weight  # [replicates]
        image_less, text_less, image, text = self.replicate_sums  # [features, replicates] each
        # Divided by the replicate's own means, which are relative to those of all pairs.
        least = _ratio(image_less * weight, image) + _ratio(text_less * weight, text)
        total = weight * ((image > 0).double() + (text > 0).double())  # of min(u, v) + max(u, v)
        with np.errstate(divide="ignore", invalid="ignore"):
            agreement = self.least.cpu().numpy() / greatest
            chance = self.chance_least.cpu().numpy() / self.chance_greatest.cpu().numpy()
            unit = greatest / pictures  # what an active picture adds to the denominator, on average
        low, high = ratio_interval(
            least.T.cpu().numpy(), (total - least).T.cpu().numpy(), unit, seed=self.seed
        )
        floor = np.quantile(chance, FLOOR_QUANTILE, axis=0)
        for values in (agreement, low, high, floor):
            values[too_few(pictures, min_pairs)] = np.nan
        return Agreement(agreement, low, high, floor)

    def _scaled(self, active: ActivePairs) -> tuple[Tensor, Tensor]:
        """Activations over their modality's mean, `[places]` each; 0 where that is 0."""
        image_mean, text_mean = self.means[:, active.feature]  # [places] each
        return _ratio(active.image, image_mean), _ratio(active.text, text_mean)


def _texts_before(
    image_keys: Tensor, text_keys: Tensor, pairs: int, furthest: int
) -> tuple[Tensor, Tensor]:
    """Images with the texts of the same feature at up to `furthest` pairs before each; before the
    first pair comes the last one.

    Args:
        image_keys: feature times pairs plus pair, of the places of images: `[images]`.
        text_keys: of the places of texts, ascending: `[texts]`.

    Returns:
        Numbers of images and of texts, `[matches]` each.
    """
    pair = image_keys % pairs
    wraps = (pair < furthest).nonzero().squeeze(1)
    starts = image_keys - pair.clamp(max=furthest)
    ends = (image_keys - pair + pairs)[wraps]  # of the feature
    low = torch.searchsorted(text_keys, torch.cat([starts, ends + pair[wraps] - furthest]))
    matches = torch.searchsorted(text_keys, torch.cat([image_keys, ends])) - low
    image = torch.cat([torch.arange(len(pair), device=pair.device), wraps])
    return image.repeat_interleave(matches), runs(low, matches)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, 0 where whole is 0."""
    return torch.where(whole > 0, part / whole, 0.0)
