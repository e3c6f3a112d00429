"""Bootstrap intervals, and the weights of a bootstrap that merges."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

WEIGHTS_A_BLOCK = 16
"""A Philox block is 256 bits, that is 16 weights of 16 bits each."""
PHILOX_FACTORS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
PHILOX_STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
DRAWN_AT_ONCE = 1 << 17
"""Samples that a bootstrap of a mean draws at once."""
FEW = 10
"""Of fewer values, a bootstrap's replicates vary too little; intervals are then Student's."""
LEVEL = 0.95
"""Coverage of the intervals."""
FLOOR_QUANTILE = 0.975
"""Of what chance gives: a score's floor."""


def bootstrap_weights(seed: int, stream: str, start: int, pairs: int, replicates: int) -> Tensor:
    """Bootstrap weights of the pairs start..start + pairs of a stream: exponential, of mean 1.

    Exponential weights are those of the Bayesian bootstrap (Rubin 1981): unlike counts, no
    replicate leaves a pair out. Drawn from 16 random bits each, by a counter-based generator
    (Philox): a pair's weights depend on its number alone.

    Returns:
        `[pairs, replicates]` float32.
    """
    blocks = -(-replicates // WEIGHTS_A_BLOCK)  # a pair
    counter = np.array([start * blocks, 0, 0, 0], dtype=np.uint64)
    generator = np.random.Philox(key=_key(seed, stream), counter=counter)
    return _exponential(generator.random_raw(pairs * blocks * 4), pairs, replicates)


def bootstrap_weights_of(
    seed: int, stream: str, numbers: Tensor | np.ndarray, replicates: int
) -> Tensor:
    """`bootstrap_weights` of any pairs, by their numbers `[n]`: `[n, replicates]` float32."""
    blocks = -(-replicates // WEIGHTS_A_BLOCK)  # a pair
    first = np.asarray(numbers).astype(np.uint64)[:, None] * np.uint64(blocks)
    counters = (first + np.arange(1, blocks + 1, dtype=np.uint64)).ravel()  # numpy counts up first
    return _exponential(_philox(_key(seed, stream), counters), len(first), replicates)


def _key(seed: int, stream: str) -> np.ndarray:
    """Two uint64."""
    return np.frombuffer(hashlib.sha256(f"{seed}/{stream}".encode()).digest()[:16], np.uint64)


def _exponential(raw: np.ndarray, pairs: int, replicates: int) -> Tensor:
    """Weights `[pairs, replicates]` float32 of the random bits of all blocks, uint64."""
    bits = raw.astype("<u8").view("<u2").reshape(pairs, -1)
    return torch.from_numpy(_EXPONENTIAL_TABLE[bits[:, :replicates]])


def _philox(key: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """Philox-4x64-10 (Salmon et al. 2011) of 256-bit counters whose first words are given and whose
    others are 0: `[blocks]` uint64 -> `[blocks, 4]` uint64."""
    words = [counters, *(np.zeros_like(counters) for _ in range(3))]
    keys = [int(word) for word in key]
    for _ in range(10):
        high_0, low_0 = _wide_product(PHILOX_FACTORS[0], words[0])
        high_1, low_1 = _wide_product(PHILOX_FACTORS[1], words[2])
        first, second = (np.uint64(k) for k in keys)
        words = [high_1 ^ words[1] ^ first, low_1, high_0 ^ words[3] ^ second, low_0]
        keys = [(k + step) % 2**64 for k, step in zip(keys, PHILOX_STEPS, strict=True)]
    return np.stack(words, axis=1)


def _wide_product(factor: int, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The upper and the lower 64 bits of the products of 64-bit numbers."""
    half, lower = np.uint64(32), np.uint64(2**32 - 1)
    up, down = np.uint64(factor >> 32), np.uint64(factor % 2**32)
    words_up, words_down = words >> half, words & lower
    middle = words_up * down + (words_down * down >> half)
    other = words_down * up + (middle & lower)
    return words_up * up + (middle >> half) + (other >> half), words * np.uint64(factor)


_EXPONENTIAL_TABLE = -np.log((np.arange(65536) + 0.5) / 65536).astype(np.float32)
"""The Exp(1) weight of each 16-bit number."""


def ratio_interval(
    part: np.ndarray, whole: np.ndarray, unit: np.ndarray | float, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """95% intervals of ratios of sums in [0, 1], from their bootstrap replicates.

    Where no pair lies near a bound, replicates alone know nothing of what the next one would do:
    ten pairs of ratio 0 would give an interval of width 0. So the lower bound is that of replicates
    to which one more pair of ratio 0 belongs, the upper one that of replicates with one more of
    ratio 1, of weight Exp(1) as all others (Gaffke 2005; Learned-Miller and Thomas 2019, arXiv
    1905.06208). The additional pairs are added here, once, however many statistics were merged.

    Args:
        part: numerators `[replicates, features]`, at most `whole`.
        whole: denominators `[replicates, features]`.
        unit: what one pair of weight 1 adds to a denominator: `[features]`, or one for all.
        seed: of the additional pairs' weights, which depend on the feature and the replicate.

    Returns:
        Lower and upper bounds, `[features]` each.
    """
    replicates, features = part.shape
    weights = bootstrap_weights(seed, "additional pairs", 0, features, replicates)
    extra = weights.double().numpy().T * unit  # [replicates, features]
    tail = (1 - LEVEL) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        low = np.quantile(part / (whole + extra), tail, axis=0)
        high = np.quantile((part + extra) / (whole + extra), 1 - tail, axis=0)
    return low, high


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval; NaN where it is undefined."""

    value: float
    low: float
    high: float


NOT_KNOWN = Estimate(float("nan"), float("nan"), float("nan"))


def mean_estimate(values: np.ndarray, *, seed: int = 0) -> Estimate:
    """The mean of one value a sample, `[n]`, with its bootstrap interval; of hits (bool) that of
    `share_estimate`, since a bootstrap of few hits that are nearly all alike holds their share too
    seldom.
    """
    if len(values) == 0:
        return NOT_KNOWN
    if values.dtype == bool:
        return share_estimate(values)
    low, high = bootstrap_interval(values, seed=seed)
    return Estimate(float(np.mean(values)), low, high)


def share_estimate(hits: np.ndarray, *, level: float = LEVEL) -> Estimate:
    """The share of the hits among `[n]` bool, with its Clopper-Pearson interval, which is what
    `ratio_interval` comes to for ratios of 0 and 1: never of width 0."""
    if len(hits) == 0:
        return NOT_KNOWN
    share = float(np.mean(hits))
    return Estimate(share, *share_interval(share, len(hits), level=level))


def share_interval(share: float, samples: float, *, level: float = LEVEL) -> tuple[float, float]:
    """The Clopper-Pearson interval of a share of so many samples, which need not be whole."""
    from scipy.stats import beta

    hits, rest, tail = share * samples, (1 - share) * samples, (1 - level) / 2
    low = float(beta.ppf(tail, hits, rest + 1)) if share > 0 else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, rest)) if share < 1 else 1.0
    return low, high


def percentile_interval(replicates: np.ndarray, *, level: float = 0.95) -> tuple[float, float]:
    """The lower and the upper bound of what `replicates` `[n]` of an estimate leave at `level`."""
    tail = (1 - level) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_interval(
    values: np.ndarray, *, seed: int = 0, replicates: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean; of FEW values Student's.

    Args:
        values: one value a sample, `[n]`.
        level: coverage, in (0, 1).

    Returns:
        The lower and the upper bound; NaN for fewer than two samples.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < FEW:
        return _student_interval([values], float(np.sum(values)) / max(1, len(values)), level)
    means = _resampled_means(values, np.random.default_rng(seed), replicates)
    return percentile_interval(means, level=level)


def _resampled_means(values: np.ndarray, rng: np.random.Generator, replicates: int) -> np.ndarray:
    """Means of `values` `[n]` drawn with repetition: `[replicates]`; several at a time where they
    are few."""
    n = len(values)
    at_once = max(1, DRAWN_AT_ONCE // n)
    sizes = [min(at_once, replicates - start) for start in range(0, replicates, at_once)]
    return np.concatenate([values[rng.integers(n, size=(size, n))].mean(axis=1) for size in sizes])


def difference_interval(
    first: np.ndarray,
    second: np.ndarray,
    *,
    seed: int = 0,
    replicates: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of mean(second) - mean(first), of independent samples; where
    either has FEW, Welch's.

    Args:
        first: `[n]`.
        second: `[m]`.
        level: coverage, in (0, 1).

    Returns:
        The lower and the upper bound; NaN where either has fewer than two samples.
    """
    first, second = (np.asarray(values, dtype=float) for values in (first, second))
    if 0 < min(len(first), len(second)) < FEW:
        return _student_interval([first, second], float(second.mean() - first.mean()), level)
    if len(first) == 0 or len(second) == 0:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    means = [_resampled_means(values, rng, replicates) for values in (first, second)]
    return percentile_interval(means[1] - means[0], level=level)


def share_difference_interval(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """95% interval of mean(second) - mean(first) of hits, `[n]` and `[m]` of 0 and 1, from the
    intervals of both shares (Newcombe 1998); NaN where either has no samples."""
    one, two = share_estimate(first), share_estimate(second)
    difference = two.value - one.value
    return (
        difference - math.hypot(two.value - two.low, one.high - one.value),
        difference + math.hypot(two.high - two.value, one.value - one.low),
    )


def _student_interval(
    samples: Sequence[np.ndarray], value: float, level: float
) -> tuple[float, float]:
    """Student's interval of the mean of one sample, Welch's of the difference of two; NaN where one
    has fewer than two values."""
    if min(map(len, samples)) < 2:
        return float("nan"), float("nan")
    from scipy.stats import t

    errors = [float(np.var(values, ddof=1)) / len(values) for values in samples]
    total = sum(errors)
    if total == 0:
        return value, value
    parts = zip(errors, samples, strict=True)
    freedom = total**2 / sum(error**2 / (len(values) - 1) for error, values in parts)
    half = float(t.ppf((1 + level) / 2, freedom)) * math.sqrt(total)
    return value - half, value + half


def auroc_interval(
    truth: np.ndarray,
    scores: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    seed: int = 0,
    replicates: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Bootstrap interval of the area under the ROC curve, with exponential weights.

    Samples that a score tells apart perfectly would leave an interval of width 0, however few they
    are. So the lower bound is taken with one more positive and one more negative sample at the
    wrong ends, the upper one with both at the right ends, of half a sample's weight each: by
    simulation that holds the truth in 95% or more, from 20 positives and 20 negatives up.

    Args:
        truth: `[n]` bool, with both values.
        scores: `[n]`; ties count one half.
        groups: samples of one group are no independent ones, and are drawn together: `[n]`; None
            where each is its own.
        level: coverage, in (0, 1).
    """
    rng = np.random.default_rng(seed)
    known, group = np.unique(
        np.arange(len(truth)) if groups is None else groups, return_inverse=True
    )
    truth = np.concatenate([np.asarray(truth, dtype=bool), [True, False]])
    beyond = np.array([np.min(scores) - 1.0, np.max(scores) + 1.0])
    weights = rng.exponential(size=(replicates, len(known) + 2))
    weights[:, -2:] *= 0.5 * len(group) / len(known)
    if len(known) < len(group):
        weights = weights[:, np.concatenate([group, len(known) + np.arange(2)])]
    lows, highs = (
        weighted_auroc(truth, np.concatenate([scores, ends]), weights)
        for ends in (beyond, beyond[::-1])
    )
    tail = (1 - level) / 2
    low, high = np.clip([np.quantile(lows, tail), np.quantile(highs, 1 - tail)], 0.0, 1.0)
    return float(low), float(high)


def weighted_auroc(
    truth: np.ndarray, scores: np.ndarray, weights: Iterable[np.ndarray]
) -> np.ndarray:
    """The area under the ROC curve under each of several weightings of the samples: `[weightings]`;
    NaN where one leaves no positive or no negative.

    Args:
        truth: `[n]` bool.
        scores: `[n]`; ties count one half.
        weights: each `[n]`.
    """
    order = np.argsort(scores, kind="stable")
    positive, ordered = np.asarray(truth, dtype=bool)[order], np.asarray(scores)[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))  # of ties
    areas = []
    for weighting in weights:
        weight = weighting[order].astype(float)
        up = np.add.reduceat(weight * positive, starts)
        down = np.add.reduceat(weight * ~positive, starts)
        pairs = up.sum() * down.sum()
        areas.append((up * (down.cumsum() - down / 2)).sum() / pairs if pairs else np.nan)
    return np.array(areas)
