"""Figures of a dictionary trained from several seeds: means, differences, and their intervals.

One training says nothing of how another would have ended. Over two trainings or more, intervals are
Student's over the trainings, and never narrower than those over what each figure is a mean of, so
that trainings that happen to agree don't feign certainty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from features.bootstrap import LEVEL, NOT_KNOWN, Estimate

NORMAL = 1.959964
"""Standard errors that an interval of LEVEL reaches to either side."""


@dataclass(frozen=True)
class SeedFigure:
    """A figure of one training.

    error: its standard error, over the features or pairs that it is a mean of.
    """

    value: float
    error: float


def mean_figure(values: np.ndarray) -> SeedFigure:
    """The mean of one value a feature, `[n]`; NaN for none."""
    if len(values) == 0:
        return SeedFigure(math.nan, math.nan)
    return SeedFigure(float(np.mean(values)), float(np.std(values)) / math.sqrt(len(values)))


def over_seeds(figures: Sequence[SeedFigure]) -> Estimate:
    """The mean over two trainings or more, with its 95% interval; those of NaN are left out."""
    known = [figure for figure in figures if math.isfinite(figure.value)]
    if len(known) < 2:
        return NOT_KNOWN
    value, between, within = _moments(known)
    half = max(_student(len(known) - 1) * math.sqrt(between), NORMAL * math.sqrt(within))
    return Estimate(value, value - half, value + half)


def difference_over_seeds(first: Sequence[SeedFigure], second: Sequence[SeedFigure]) -> Estimate:
    """Mean of the second less that of the first, of two trainings or more each, with its 95%
    interval (Welch's); those of NaN are left out."""
    sides = [[f for f in side if math.isfinite(f.value)] for side in (first, second)]
    if min(map(len, sides)) < 2:
        return NOT_KNOWN
    (one, one_between, one_within), (two, two_between, two_within) = map(_moments, sides)
    between = one_between + two_between
    spread = NORMAL * math.sqrt(one_within + two_within)
    if between > 0:
        parts = ((one_between, len(sides[0])), (two_between, len(sides[1])))
        freedom = between**2 / sum(part**2 / (n - 1) for part, n in parts)
        spread = max(spread, _student(freedom) * math.sqrt(between))
    return Estimate(two - one, two - one - spread, two - one + spread)


def _moments(figures: Sequence[SeedFigure]) -> tuple[float, float, float]:
    """The mean, and its variance by the trainings' spread and by their own errors."""
    values = np.array([figure.value for figure in figures])
    errors = np.array([figure.error for figure in figures])
    n = len(values)
    return float(values.mean()), float(values.var(ddof=1)) / n, float(np.square(errors).mean()) / n


def _student(freedom: float) -> float:
    """Standard errors that Student's interval of LEVEL reaches to either side."""
    from scipy.stats import t

    return float(t.ppf(1 - (1 - LEVEL) / 2, freedom))
