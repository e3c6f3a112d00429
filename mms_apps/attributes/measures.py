"""Measures of predictions by group, with intervals.

fairlearn's MetricFrame gives the values; the intervals are from a bootstrap over samples (or over
clusters of samples) of the sums behind them, since MetricFrame's own takes seconds for a hundred
replicates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from features.bootstrap import (
    NOT_KNOWN,
    Estimate,
    auroc_interval,
    percentile_interval,
    share_interval,
    weighted_auroc,
)
from features.extras import require
from mms_apps.attributes.permutation import (
    DIFFERENCES,
    NO_DIFFERENCE,
    PERMUTATIONS,
    Difference,
    greatest_difference,
    permutation_tests,
)

SMALL_GROUP = 30
"""A smaller group is listed and marked, but says too little for a gap or a difference."""
MIN_GROUP = 5
"""Samples that a group needs for something to be chosen by it."""
BINS = 10
"""Equal bins of the confidence for the calibration error (Guo et al. 2017)."""
REPLICATES = 1000


@dataclass(frozen=True)
class GroupRow:
    """Measures of one group; rates are one-vs-rest, by class."""

    group: str
    samples: int
    counted: bool
    """Whether it has SMALL_GROUP samples of different clusters, pictures say, and so counts in the
    gaps and differences."""
    accuracy: Estimate
    auroc: Estimate
    """Of two classes; of more, the mean over one-vs-rest."""
    calibration: Estimate
    """Expected calibration error."""
    selected: dict[str, Estimate]
    """Share predicted as the class."""
    tpr: dict[str, Estimate]
    fpr: dict[str, Estimate]


@dataclass(frozen=True)
class Measures:
    """Measures of predictions, overall and by group.

    gap: accuracy less that of the worst group.
    difference: between the groups with the most and the least, the greatest over the classes.
    Samples of groups of fewer than SMALL_GROUP clusters are in neither; undefined where fewer than
    two groups are larger.
    """

    samples: int
    accuracy: Estimate
    calibration: Estimate
    worst_accuracy: Estimate
    worst_group: str
    gap: Difference
    parity_difference: Difference
    tpr_difference: Difference
    fpr_difference: Difference
    smallest_group: str
    smallest_samples: int
    groups: list[GroupRow]


@dataclass(frozen=True)
class GroupAccuracy:
    """Accuracy under each bootstrap replicate, the first of which is the data itself.

    overall: `[1 + replicates]`; by_group: `[1 + replicates, groups]`, NaN for an empty group.
    """

    overall: np.ndarray
    by_group: np.ndarray

    @property
    def worst(self) -> np.ndarray:
        """Accuracy of the worst group: `[1 + replicates]`."""
        return np.nanmin(self.by_group, axis=1)

    @property
    def gap(self) -> np.ndarray:
        """`[1 + replicates]`"""
        return self.overall - self.worst


def estimate(values: np.ndarray) -> Estimate:
    """The first of the values with the interval that the others leave. It holds the value itself,
    which of a greatest or least of several rates lies beyond what most replicates give."""
    value, rest = float(values[0]), values[1:][np.isfinite(values[1:])]
    if len(rest) == 0:
        return Estimate(value, float("nan"), float("nan"))
    low, high = percentile_interval(rest)
    return Estimate(value, min(low, value), max(high, value))


def estimate_share(values: np.ndarray, units: int) -> Estimate:
    """`estimate` of a share of hits, whose interval also holds the Clopper-Pearson interval of as
    many independent samples as would make it vary so (Korn and Graubard 1998). Of few hits that are
    nearly all alike a bootstrap's alone is too narrow, and of width 0 where all are.

    Args:
        units: samples, or clusters of them, that were drawn: as many independent samples as there
            are where no replicate differs.
    """
    found = estimate(values)
    if not units or not math.isfinite(found.low):
        return found
    variance = float(np.nanvar(values[1:]))
    unlike = found.value * (1 - found.value)
    low, high = share_interval(found.value, unlike / variance if variance * unlike else units)
    return Estimate(found.value, min(low, found.low), max(high, found.high))


def estimate_difference(values: np.ndarray, rates: Sequence[Estimate]) -> Estimate:
    """`estimate` of the greatest difference of rates; where it is the same in every replicate, it
    is as uncertain as the most uncertain of them."""
    found = estimate(values)
    if found.low < found.high or not math.isfinite(found.low):
        return found
    margin = max((rate.high - rate.low for rate in rates if rate.low < rate.high), default=0.0)
    low, high = np.clip([found.value - margin, found.value + margin], 0.0, 1.0)
    return Estimate(found.value, float(low), float(high))


def units_of(clusters: np.ndarray | None, inside: np.ndarray) -> int:
    """How many samples, `[n]` bool, or clusters of them, are drawn of those inside."""
    if clusters is None:
        return int(np.sum(inside))
    return len(np.unique(np.asarray(clusters, dtype=str)[inside]))


def bootstrap_weights(
    samples: int, replicates: int, seed: int, clusters: Sequence[str] | np.ndarray | None = None
) -> np.ndarray:
    """How often each replicate draws each sample: `[1 + replicates, samples]`, the first all ones.

    Args:
        clusters: by sample; those of one cluster are drawn together. None draws samples alone.
    """
    rng = np.random.default_rng(seed)
    names = np.arange(samples) if clusters is None else np.asarray(clusters, dtype=str)
    _, place = np.unique(names, return_inverse=True)
    count = int(place.max()) + 1 if samples else 0
    weights = np.ones((1 + replicates, samples), dtype=np.float32)
    for replicate in range(1, 1 + replicates):
        drawn = np.bincount(rng.integers(count, size=count), minlength=count)
        weights[replicate] = drawn[place]
    return weights


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Means `[1 + replicates]` of values `[n]` under the weights of `bootstrap_weights`; NaN where
    a replicate draws none of them."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return (weights @ values.astype(float)) / weights.sum(axis=1)


def group_accuracy(
    hits: np.ndarray, groups: Sequence[str] | np.ndarray, weights: np.ndarray
) -> GroupAccuracy:
    """Accuracy under bootstrap weights.

    Args:
        hits: whether each prediction is right, `[n]`.
        groups: `[n]`.
        weights: `[1 + replicates, n]` of `bootstrap_weights`.
    """
    members = _members(np.asarray(groups, dtype=str))  # [n, groups]
    with np.errstate(divide="ignore", invalid="ignore"):
        by_group = (weights @ (members * hits[:, None])) / (weights @ members)
    return GroupAccuracy(weighted_mean(hits, weights), by_group)


def measure(
    truth: np.ndarray,
    probabilities: np.ndarray,
    groups: np.ndarray,
    classes: Sequence[str],
    *,
    clusters: np.ndarray | None = None,
    seed: int = 0,
    replicates: int = REPLICATES,
    permutations: int = PERMUTATIONS,
) -> Measures:
    """Measures of predictions.

    Args:
        truth: `[n]`, each one of the classes.
        probabilities: `[n, classes]`.
        groups: `[n]` of str.
        clusters: as `bootstrap_weights` takes them.
    """
    require("attributes")
    from fairlearn.metrics import MetricFrame, count
    from sklearn.metrics import accuracy_score

    names = np.array(classes)
    predicted = names[probabilities.argmax(axis=1)]
    metrics = {"accuracy": accuracy_score, "count": count}
    frame = MetricFrame(metrics=metrics, y_true=truth, y_pred=predicted, sensitive_features=groups)
    labels = [str(group) for group in frame.by_group.index]
    sizes = frame.by_group["count"].to_numpy().astype(int)
    counted = np.array([units_of(clusters, groups == label) for label in labels]) >= SMALL_GROUP
    weights = bootstrap_weights(len(truth), replicates, seed, clusters)
    accuracy = group_accuracy(truth == predicted, groups, weights)
    rates = _rates(truth, predicted, groups, names, weights)
    calibration = _calibration(truth == predicted, probabilities.max(axis=1), groups, weights)
    drawn_of: dict[str, dict[str, np.ndarray]] = {
        "selected": {name: np.ones(len(truth), dtype=bool) for name in classes},
        "tpr": {name: truth == name for name in classes},
        "fpr": {name: truth != name for name in classes},
    }
    rows = []
    for g, label in enumerate(labels):
        inside = groups == label
        units = units_of(clusters, inside)
        among = {
            rate: [
                estimate_share(rates[rate][:, c, g], units_of(clusters, inside & of[name]))
                for c, name in enumerate(classes)
            ]
            for rate, of in drawn_of.items()
        }
        rows.append(
            GroupRow(
                group=label,
                samples=int(sizes[g]),
                counted=bool(counted[g]),
                accuracy=estimate_share(accuracy.by_group[:, g], units),
                auroc=_auroc_estimate(
                    truth[inside], probabilities[inside], names, weights[:, inside], seed
                ),
                calibration=estimate(calibration[:, 1 + g]),
                **{rate: dict(zip(classes, found, strict=True)) for rate, found in among.items()},
            )
        )
    smallest = int(sizes.argmin())
    if counted.sum() >= 2:
        large = np.isin(groups.astype(str), np.array(labels)[counted])
        of_large = group_accuracy((truth == predicted)[large], groups[large], weights[:, large])
        worst = np.array(labels)[counted][int(np.nanargmin(of_large.by_group[0]))]
        large_rows = [row for row in rows if row.counted]
        worst_accuracy = estimate_share(
            of_large.worst, min(units_of(clusters, groups == row.group) for row in large_rows)
        )
        tests = permutation_tests(
            truth[large],
            predicted[large],
            groups[large],
            classes,
            clusters=None if clusters is None else clusters[large],
            permutations=permutations,
            seed=seed,
        )
        differences = {
            name: Difference(
                **asdict(estimate_difference(values, uncertain)),
                chance=tests[name].chance,
                p=tests[name].p,
            )
            for name, values, uncertain in (
                ("gap", of_large.gap, [row.accuracy for row in large_rows]),
                *(
                    (
                        name,
                        greatest_difference(rates[rate][:, :, counted]),
                        [one for row in large_rows for one in getattr(row, rate).values()],
                    )
                    for name, rate in (("parity", "selected"), ("tpr", "tpr"), ("fpr", "fpr"))
                ),
            )
        }
    else:
        worst, worst_accuracy = "", NOT_KNOWN
        differences = dict.fromkeys(DIFFERENCES, NO_DIFFERENCE)
    return Measures(
        samples=len(truth),
        accuracy=estimate_share(
            accuracy.overall, units_of(clusters, np.ones(len(truth), dtype=bool))
        ),
        calibration=estimate(calibration[:, 0]),
        worst_accuracy=worst_accuracy,
        worst_group=str(worst),
        gap=differences["gap"],
        parity_difference=differences["parity"],
        tpr_difference=differences["tpr"],
        fpr_difference=differences["fpr"],
        smallest_group=labels[smallest],
        smallest_samples=int(sizes[smallest]),
        groups=rows,
    )


def _members(groups: np.ndarray) -> np.ndarray:
    """Which sample is in which group, groups sorted: `[n, groups]`."""
    names, place = np.unique(groups, return_inverse=True)
    return np.eye(len(names))[place]


def _rates(
    truth: np.ndarray,
    predicted: np.ndarray,
    groups: np.ndarray,
    classes: np.ndarray,
    weights: np.ndarray,
) -> dict[str, np.ndarray]:
    """selected, tpr and fpr one-vs-rest: each `[1 + replicates, classes, groups]`."""
    members = _members(groups.astype(str))  # [n, groups]
    shares: dict[str, list[np.ndarray]] = {"selected": [], "tpr": [], "fpr": []}
    for name in classes:
        is_class, chosen = (truth == name)[:, None], (predicted == name)[:, None]
        for rate, among in (
            ("selected", np.ones_like(is_class)),
            ("tpr", is_class),
            ("fpr", ~is_class),
        ):
            with np.errstate(divide="ignore", invalid="ignore"):
                part = (weights @ (members * (among & chosen))) / (weights @ (members * among))
            shares[rate].append(part)
    return {rate: np.stack(parts, axis=1) for rate, parts in shares.items()}


def _calibration(
    hits: np.ndarray, confidence: np.ndarray, groups: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Expected calibration error, overall and by group: `[1 + replicates, 1 + groups]`."""
    members = np.column_stack([np.ones(len(hits)), _members(groups.astype(str))])
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    total = np.zeros((len(weights), members.shape[1]))
    for place in range(BINS):
        inside = members * (bins == place)[:, None]
        total += np.abs(weights @ (inside * (hits - confidence)[:, None]))
    with np.errstate(divide="ignore", invalid="ignore"):
        return total / (weights @ members)


def _auroc_estimate(
    truth: np.ndarray,
    probabilities: np.ndarray,
    classes: np.ndarray,
    weights: np.ndarray,
    seed: int,
) -> Estimate:
    """The mean AUROC over the classes; where it is the same in every replicate, since classes are
    told apart perfectly, with the mean of their bounds by `auroc_interval`."""
    found = estimate(_auroc(truth, probabilities, classes, weights))
    if found.low < found.high or not math.isfinite(found.low):
        return found
    bounds = [
        auroc_interval(truth == name, probabilities[:, number], seed=seed)
        for number, name in enumerate(classes)
        if 0 < (truth == name).sum() < len(truth)
    ]
    low, high = np.mean(bounds, axis=0)
    return Estimate(found.value, float(low), float(high))


def _auroc(
    truth: np.ndarray, probabilities: np.ndarray, classes: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """The mean over the classes, one-vs-rest, of those that some samples are and others are not:
    `[1 + replicates]`; NaN where there is none."""
    areas = [
        weighted_auroc(truth == name, probabilities[:, number], weights)
        for number, name in enumerate(classes)
        if 0 < (truth == name).sum() < len(truth)
    ]
    if not areas:
        return np.full(len(weights), np.nan)
    known = np.isfinite(areas)
    with np.errstate(invalid="ignore"):
        return np.where(known, areas, 0).sum(axis=0) / known.sum(axis=0)
