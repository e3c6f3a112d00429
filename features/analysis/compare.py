"""Comparing FeatureSpaces: the same figures side by side, matched features, and in plain words what
differs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from features.analysis.matching import Matching
from features.analysis.seeds import (
    NORMAL,
    SeedFigure,
    difference_over_seeds,
    mean_figure,
    over_seeds,
)
from features.bootstrap import (
    NOT_KNOWN,
    Estimate,
    difference_interval,
    mean_estimate,
    share_difference_interval,
    share_estimate,
)
from features.errors import UserError
from features.modality import CROSS_MODAL, IMAGE_DOMINANT, TEXT_DOMINANT, UNSCORED
from features.percent import percent
from features.space.space import FeatureSpace

SCHEMA = 2
SAVED = ("fvu", "l0")
"""Figures of the dictionary's held-out pairs; all others are means over features."""
ONE_SEED = (
    "One training seed each: another training may differ as much. Compare three or more to know."
)


@dataclass(frozen=True)
class Figure:
    """What is compared."""

    key: str
    label: str
    more: str
    """How a space with a greater value differs, in words."""
    percent: bool = False


FIGURES = (
    Figure("fvu", "FVU within modality", "explains less of the held-out embeddings (higher FVU)"),
    Figure("l0", "L0", "has more features active for a sample (higher L0)"),
    Figure("dead", "dead", "has more dead features", percent=True),
    Figure("image_share", "image-dominant", "has more image-dominant features", percent=True),
    Figure("cross_share", "cross-modal", "has more cross-modal features", percent=True),
    Figure(
        "shared_share",
        "shared of the cross-modal",
        "has a greater share of its cross-modal features shared",
        percent=True,
    ),
    Figure("text_share", "text-dominant", "has more text-dominant features", percent=True),
    Figure("agreement", "agreement", "has features whose images and texts agree more"),
    Figure("specificity", "specificity", "has more modality-specific features"),
    Figure("ms_image", "MS, images", "has features that are more monosemantic on images"),
    Figure("ms_text", "MS, texts", "has features that are more monosemantic on texts"),
    Figure("ms_cross", "MS, across", "has features whose images and texts are more alike"),
)
"""Of each space. Classes are those of the fixed bounds: the relative ones move with the space.
Those cross-modal features are shared whose agreement lies above its floor: images and texts drive
them in the same pairs. Specificity is the mean of |2 MDS - 1|: 0 where both modalities drive every
feature alike, 1 where each is driven by one alone. MS is the Monosemanticity Score above the
judge's random floor, as a share of what lies above it: (MS - floor) / (1 - floor), so that spaces
with different judges compare."""


@dataclass(frozen=True)
class SpaceSummary:
    """One space's figures, by the keys of FIGURES; over several training seeds, the first one's
    where nothing else is said."""

    label: str
    seeds: int
    """Trainings that the estimates are means of, with intervals over them."""
    encoder: str
    kind: str
    modality_bias: bool
    features: int
    scored: int
    pairs: str
    pair_count: int
    judge: str
    judge_independent: bool
    estimates: dict[str, Estimate]
    monosemanticity: list[dict[str, Any]]
    """Means by class, as `features.scores.class_means` gives them."""


@dataclass(frozen=True)
class MatchSummary:
    """How the first space's features come back in another."""

    label: str
    matched: int
    scored: int
    """Scored features of the first space."""
    median_correlation: float | None
    floor: float
    same_class: Estimate
    """Share of the matched features with the same class (fixed bounds) in both."""
    pairs: list[dict[str, Any]]
    """The matched features: feature, partner, correlation, and both names, MDS, agreement
    and classes."""


@dataclass(frozen=True)
class Comparison:
    """The first space is what the others are compared with."""

    spaces: list[SpaceSummary]
    differences: list[list[str]]
    """For each label after the first, sentences on what differs."""
    matches: list[MatchSummary]
    """For each label after the first; empty where nothing was matched."""


def by_label(
    spaces: Sequence[FeatureSpace], labels: Sequence[str]
) -> dict[str, list[FeatureSpace]]:
    """The spaces of each label, in their order."""
    found: dict[str, list[FeatureSpace]] = {}
    for space, label in zip(spaces, labels, strict=True):
        found.setdefault(label, []).append(space)
    return found


def compare(
    spaces: Sequence[FeatureSpace],
    labels: Sequence[str],
    matchings: Sequence[Matching] = (),
    *,
    seed: int = 0,
) -> Comparison:
    """Compare spaces with the first of them.

    Args:
        spaces: two or more.
        labels: what each is called; spaces of one label are one dictionary trained from several
            seeds, and figures are then means over the trainings, with intervals that hold their
            variation (`features.analysis.seeds`).
        matchings: of the features of the first label's first space with those of each other
            label's; empty for none.
        seed: of the bootstrap.

    Raises:
        UserError: all spaces have one label.
    """
    groups = by_label(spaces, labels)
    if len(groups) < 2:
        raise UserError(f"all spaces are called {labels[0]}; a comparison needs two labels")
    columns = [[_feature_values(space) for space in group] for group in groups.values()]
    summaries = [
        _summary(group, label, values, seed)
        for (label, group), values in zip(groups.items(), columns, strict=True)
    ]
    figures = [
        _seed_figures(group, values) for group, values in zip(groups.values(), columns, strict=True)
    ]
    firsts = [group[0] for group in groups.values()]
    return Comparison(
        summaries,
        [
            _differences_over_seeds(summaries[0], figures[0], summaries[n], figures[n])
            if min(summaries[0].seeds, summaries[n].seeds) > 1
            else _differences(summaries[0], columns[0][0], summaries[n], columns[n][0], seed)
            for n in range(1, len(firsts))
        ],
        [
            _match_summary(firsts[0], space, label, matching, seed)
            for space, label, matching in zip(firsts[1:], list(groups)[1:], matchings, strict=True)
        ]
        if matchings
        else [],
    )


def cell(estimate: Estimate, is_share: bool) -> str:
    """A figure with its interval, alone where that is not known."""
    if not math.isfinite(estimate.value):
        return "-"
    digits = 1 if estimate.value >= 10 else 3 if estimate.value < 0.1 else 2
    value, low, high = (
        percent(x) if is_share else f"{x:.{digits}f}"
        for x in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} ({low} to {high})" if math.isfinite(estimate.low) else value


def _feature_values(space: FeatureSpace) -> dict[str, np.ndarray]:
    """One value a feature for each figure that is a mean over features."""
    table = space.features
    classes = table["class_fixed"].to_numpy()
    mds = table["mds"].to_numpy()
    scored = classes != UNSCORED
    values = {
        "dead": (table["active_pairs"].to_numpy() == 0).astype(float),
        "image_share": (classes[scored] == IMAGE_DOMINANT).astype(float),
        "cross_share": (classes[scored] == CROSS_MODAL).astype(float),
        "text_share": (classes[scored] == TEXT_DOMINANT).astype(float),
        "shared_share": table["shared"].to_numpy()[classes == CROSS_MODAL].astype(float),
        "agreement": table["agreement"].to_numpy()[scored],
        "specificity": np.abs(2 * mds[scored] - 1),
    }
    for name in ("ms_image", "ms_text", "ms_cross"):
        floor = space.config.floors[name]
        found = table[name].to_numpy()[scored]
        found = found[np.isfinite(found)]
        values[name] = found[:0] if floor is None else (found - floor) / (1 - floor)
    return values


def _summary(
    spaces: Sequence[FeatureSpace],
    label: str,
    columns: Sequence[dict[str, np.ndarray]],
    seed: int,
) -> SpaceSummary:
    """Of one label: its space, or several seeds."""
    space, values = spaces[0], columns[0]
    config = space.config
    if len(spaces) > 1:
        estimates = {
            figure.key: over_seeds(_seed_figures(spaces, columns)[figure.key]) for figure in FIGURES
        }
        for figure in FIGURES:
            if figure.percent:
                of_seeds = estimates[figure.key]
                bounds = (max(0.0, of_seeds.low), min(1.0, of_seeds.high))
                if math.isfinite(of_seeds.value):
                    estimates[figure.key] = Estimate(of_seeds.value, *bounds)
    else:
        estimates = {name: _saved(space, name) for name in SAVED}
        estimates |= {
            figure.key: share_estimate(values[figure.key])
            if figure.percent
            else mean_estimate(values[figure.key], seed=seed)
            for figure in FIGURES
            if figure.key in values
        }
    return SpaceSummary(
        label=label,
        seeds=len(spaces),
        encoder=config.encoder,
        kind=config.dictionary["kind"],
        modality_bias=config.dictionary["modality_bias"],
        features=len(space),
        scored=len(values["specificity"]),
        pairs=config.pairs,
        pair_count=config.pair_count,
        judge=config.judge,
        judge_independent=config.judge_independent,
        estimates=estimates,
        monosemanticity=config.class_means,
    )


def _saved(space: FeatureSpace, name: str) -> Estimate:
    """A figure of the dictionary's held-out pairs (`reconstruction_figures`)."""
    figures = (space.config.dictionary.get("held_out") or {}).get("within", {})
    value, low, high = (figures.get(key) for key in (name, f"{name}_low", f"{name}_high"))
    if value is None or low is None or high is None:
        return NOT_KNOWN
    return Estimate(value, low, high)


def _seed_figures(
    spaces: Sequence[FeatureSpace], columns: Sequence[dict[str, np.ndarray]]
) -> dict[str, list[SeedFigure]]:
    """Each figure of each training."""
    found: dict[str, list[SeedFigure]] = {}
    for name in SAVED:
        saved = [_saved(space, name) for space in spaces]
        found[name] = [SeedFigure(e.value, (e.high - e.low) / (2 * NORMAL)) for e in saved]
    return found | {name: [mean_figure(c[name]) for c in columns] for name in columns[0]}


def _differences_over_seeds(
    first: SpaceSummary,
    first_figures: dict[str, list[SeedFigure]],
    other: SpaceSummary,
    other_figures: dict[str, list[SeedFigure]],
) -> list[str]:
    """A sentence for each figure whose difference has an interval over seeds that leaves out 0."""
    sentences = []
    for figure in FIGURES:
        found = difference_over_seeds(first_figures[figure.key], other_figures[figure.key])
        if found.low > 0 or found.high < 0:
            more, less = (other, first) if found.low > 0 else (first, other)
            amount = _amount(found.value, found.low, found.high, figure.percent)
            sentences.append(f"{more.label} {figure.more} than {less.label}: {amount}.")
    seeds = f"{first.seeds} and {other.seeds}" if first.seeds != other.seeds else f"{first.seeds}"
    held = f"Over {seeds} training seeds each; the intervals hold their variation"
    if not sentences:
        none = f"No figure of {other.label} differs from {first.label}'s beyond chance."
        return [none, f"{held}."]
    return [*sentences, f"{held}, but of {len(FIGURES)} figures chance alone may single one out."]


def _differences(
    first: SpaceSummary,
    first_values: dict[str, np.ndarray],
    other: SpaceSummary,
    other_values: dict[str, np.ndarray],
    seed: int,
) -> list[str]:
    """A sentence for each figure whose difference has an interval that leaves out 0, or whose own
    intervals lie apart where there are no values by feature."""
    sentences = []
    for figure in FIGURES:
        if figure.key in first_values:
            a, b = first_values[figure.key], other_values[figure.key]
            if len(a) == 0 or len(b) == 0:
                continue
            low, high = (
                share_difference_interval(a, b)
                if figure.percent
                else difference_interval(a, b, seed=seed)
            )
            differs = low > 0 or high < 0
            amount = _amount(float(b.mean() - a.mean()), low, high, figure.percent)
        else:
            one, two = first.estimates[figure.key], other.estimates[figure.key]
            if not (math.isfinite(one.low) and math.isfinite(two.low)):
                continue
            differs = two.low > one.high or two.high < one.low
            low = two.value - one.value
            larger, smaller = (two, one) if low > 0 else (one, two)
            amount = f"{cell(larger, figure.percent)} against {cell(smaller, figure.percent)}"
        if differs:
            more, less = (other, first) if low > 0 else (first, other)
            sentences.append(f"{more.label} {figure.more} than {less.label}: {amount}.")
    if not sentences:
        sentences.append(f"No figure of {other.label} differs from {first.label}'s.")
    return [*sentences, ONE_SEED]


def _amount(value: float, low: float, high: float, percent: bool) -> str:
    bounds = sorted((abs(low), abs(high)))
    if percent:
        points, low, high = (100 * x for x in (abs(value), *bounds))
        return f"by {points:.0f} points ({low:.0f} to {high:.0f})"
    return f"by {abs(value):.3f} ({bounds[0]:.3f} to {bounds[1]:.3f})"


def _match_summary(
    first: FeatureSpace, second: FeatureSpace, label: str, matching: Matching, seed: int
) -> MatchSummary:
    ones, twos = first.features.to_pylist(), second.features.to_pylist()
    pairs = []
    for feature in np.flatnonzero(matching.matched).tolist():
        one, two = ones[feature], twos[int(matching.partner[feature])]
        if UNSCORED in (one["class_fixed"], two["class_fixed"]):
            continue
        pairs.append(
            {
                "feature": feature,
                "partner": two["feature"],
                "correlation": float(matching.correlation[feature]),
                "names": [one["name"], two["name"]],
                "mds": [one["mds"], two["mds"]],
                "agreement": [one["agreement"], two["agreement"]],
                "classes": [one["class_fixed"], two["class_fixed"]],
            }
        )
    pairs.sort(key=lambda pair: -pair["correlation"])
    same = np.array([pair["classes"][0] == pair["classes"][1] for pair in pairs], dtype=bool)
    correlations = [pair["correlation"] for pair in pairs]
    return MatchSummary(
        label=label,
        matched=len(pairs),
        scored=sum(row["class_fixed"] != UNSCORED for row in ones),
        median_correlation=float(np.median(correlations)) if pairs else None,
        floor=matching.floor if math.isfinite(matching.floor) else 0.0,
        same_class=mean_estimate(same, seed=seed),
        pairs=pairs,
    )
