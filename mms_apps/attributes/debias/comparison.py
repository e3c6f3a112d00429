"""What methods of de-biasing do on a test set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache

import numpy as np
import torch

from features.bootstrap import Estimate
from features.errors import UserError
from mms_apps.attributes.edits import NO_EDIT, EmbeddingEdit
from mms_apps.attributes.labels import Samples
from mms_apps.attributes.leakage import leakage_hits
from mms_apps.attributes.measures import (
    MIN_GROUP,
    REPLICATES,
    bootstrap_weights,
    estimate,
    estimate_share,
    group_accuracy,
    units_of,
    weighted_mean,
)
from mms_apps.attributes.model import AttributeModel
from mms_apps.attributes.permutation import Difference, gap_test


@dataclass(frozen=True)
class Debiased:
    """A model behind an edit of the embeddings that it reads.

    setting: the strength that was chosen, in words; empty where the model is left as it was.
    """

    model: AttributeModel
    edit: EmbeddingEdit = NO_EDIT
    setting: str = ""


@dataclass(frozen=True)
class MethodRow:
    """What one method does on the test set.

    setting: `Debiased.setting`.
    samples: of the test set.
    accuracy, worst_group, gap: of the attribute (`measures.Measures`); by chance is what the gap is
        where the groups are permuted within the attribute's values.
    leakage: accuracy with which a probe finds the factor in the edited embeddings.
    utility: accuracy on an unrelated attribute; utility_cost: how much less than without an edit.
    gap_change: the gap less that without an edit; accuracy_change: likewise.
    gap_less_features, worst_less_features: this method's less that of `features`, paired.
    """

    method: str
    setting: str
    samples: int
    accuracy: Estimate
    worst_group: Estimate
    worst_group_name: str
    worst_group_samples: int
    gap: Difference
    leakage: Estimate
    utility: Estimate
    utility_cost: Estimate
    gap_change: Estimate
    accuracy_change: Estimate
    gap_less_features: Estimate
    worst_less_features: Estimate


def compare_methods(
    methods: Mapping[str, Sequence[Debiased]],
    test: Samples,
    factor: str,
    groups: np.ndarray,
    *,
    probe_samples: Samples,
    unrelated: AttributeModel,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> list[MethodRow]:
    """Measure methods on a test set.

    Args:
        methods: models by method; of several, the accuracies are averaged. `none` and `features`
            must be among them.
        test: with the attributes of both models and the factor; samples of one id (several draws
            of one drawing) are resampled together.
        groups: `[n]`.
        probe_samples: to fit the probes of the leakage on.
        unrelated: the model of an attribute that the edits should leave as it is.
    """
    attribute = methods["none"][0].model.config.attribute
    weights = bootstrap_weights(len(test), replicates, seed, test.ids)
    names, sizes = np.unique(groups, return_counts=True)
    large = np.isin(groups, names[sizes >= MIN_GROUP])
    if len(names[sizes >= MIN_GROUP]) < 2:
        raise UserError(
            f"{factor}: fewer than two groups have {MIN_GROUP} test samples; give more pairs"
        )
    truth = test.columns[attribute].astype(str)
    other_truth = test.columns[unrelated.config.attribute].astype(str)
    known = np.isin(other_truth, unrelated.classes)
    if not known.any():
        raise UserError(
            f"{unrelated.config.attribute}: none of the test samples has one of its classes"
        )

    @cache
    def leakage(edit: EmbeddingEdit) -> np.ndarray:
        return leakage_hits(
            edit.apply(probe_samples.embeddings),
            probe_samples.columns[factor].astype(str),
            probe_samples.columns[attribute].astype(str),
            edit.apply(test.embeddings),
            test.columns[factor].astype(str),
        )

    seen: dict[str, dict[str, np.ndarray]] = {}
    gaps: dict[str, Difference] = {}
    for method, variants in methods.items():
        hits, leaks, other = [], [], []
        for debiased in variants:
            edited = debiased.edit.apply(test.embeddings)
            hits.append(debiased.model.predictions(edited) == truth)
            elsewhere = unrelated.predictions(edited[torch.from_numpy(known)])
            other.append(elsewhere == other_truth[known])
            leaks.append(leakage(debiased.edit))
        parts = [group_accuracy(h[large], groups[large], weights[:, large]) for h in hits]
        seen[method] = {
            "accuracy": np.mean([p.overall for p in parts], axis=0),
            "worst": np.mean([p.worst for p in parts], axis=0),
            "gap": np.mean([p.gap for p in parts], axis=0),
            "leakage": weighted_mean(np.mean(leaks, axis=0), weights),
            "utility": weighted_mean(np.mean(other, axis=0), weights[:, known]),
            "worst_name": np.unique(groups[large])[
                np.mean([p.by_group[0] for p in parts], axis=0).argmin()
            ],
        }
        chance = gap_test(
            np.array(hits)[:, large],
            truth[large],
            groups[large],
            clusters=test.ids[large],
            seed=seed,
        )
        gaps[method] = Difference(
            **asdict(estimate(seen[method]["gap"])), chance=chance.chance, p=chance.p
        )
    none, features = seen["none"], seen["features"]
    every = np.ones(len(test), dtype=bool)
    smallest = min(units_of(test.ids, groups == name) for name in names[sizes >= MIN_GROUP])
    return [
        MethodRow(
            method=method,
            setting=methods[method][0].setting,
            samples=len(test),
            accuracy=estimate_share(mean["accuracy"], units_of(test.ids, every)),
            worst_group=estimate_share(mean["worst"], smallest),
            worst_group_name=str(mean["worst_name"]),
            worst_group_samples=int((groups == mean["worst_name"]).sum()),
            gap=gaps[method],
            leakage=estimate_share(mean["leakage"], units_of(test.ids, every)),
            utility=estimate_share(mean["utility"], units_of(test.ids, known)),
            utility_cost=estimate(none["utility"] - mean["utility"]),
            gap_change=estimate(mean["gap"] - none["gap"]),
            accuracy_change=estimate(mean["accuracy"] - none["accuracy"]),
            gap_less_features=estimate(mean["gap"] - features["gap"]),
            worst_less_features=estimate(mean["worst"] - features["worst"]),
        )
        for method, mean in seen.items()
    ]
