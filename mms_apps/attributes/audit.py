"""What a model does by group, what its embeddings give away, and where it leans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from features.bootstrap import Estimate
from features.errors import UserError
from features.modality import CROSS_MODAL, IMAGE_DOMINANT, TEXT_DOMINANT
from mms_apps.attributes.edits import (
    EmbeddingEdit,
    KeepFeatures,
    RemoveFeatures,
    feature_energy,
    random_features,
)
from mms_apps.attributes.labels import Samples, among, crossed_name
from mms_apps.attributes.leakage import group_leakage
from mms_apps.attributes.measures import (
    REPLICATES,
    Measures,
    bootstrap_weights,
    estimate,
    estimate_share,
    measure,
    weighted_mean,
)
from mms_apps.attributes.model import AttributeModel

MODALITY_CLASSES = (IMAGE_DOMINANT, CROSS_MODAL, TEXT_DOMINANT)
UNSPECIFIED = "unspecified"
"""Value of an attribute that could be told but is not."""
RANDOM_GROUPS = 10
"""Random groups of features beside each modality class."""
MIN_LEAN = 3
"""Unlabelled samples that a role must have to be listed."""


@dataclass(frozen=True)
class ClassEffect:
    """Accuracy with only the features of one modality class, or without them.

    random: mean accuracy with as many random features of the same energy instead.
    difference: accuracy less random, paired.
    """

    what: str
    """ "keep" or "remove"."""
    modality_class: str
    features: int
    energy: float
    """Share of the energy of all features."""
    accuracy: Estimate
    random: Estimate
    difference: Estimate


@dataclass(frozen=True)
class Lean:
    """Which way a model leans on samples whose attribute is not specified.

    role: of the samples; "all" for all of them.
    shares: of the samples predicted as each class.
    """

    role: str
    samples: int
    shares: dict[str, Estimate]


@dataclass(frozen=True)
class Audit:
    """An audit of one model on one data set.

    group: the attribute whose values are the groups, or several (`labels.crossed_name`).
    measures: by these groups.
    ungrouped: samples that were left out because they have no group.
    leakage: accuracy with which the group is found in embeddings by a probe, cross-validated;
        leakage_chance: the share of the most frequent group.
    classes: what each modality class carries of the prediction.
    lean: all unspecified samples, then by role, the most surely one-sided first.
    """

    attribute: str
    group: str
    measures: Measures
    unlabelled: int
    ungrouped: int
    leakage: Estimate
    leakage_chance: float
    classes: list[ClassEffect]
    lean: list[Lean]


def audit(
    model: AttributeModel,
    samples: Samples,
    group: str | Sequence[str],
    *,
    role: str | None = None,
    unspecified: str = UNSPECIFIED,
    edit: EmbeddingEdit | None = None,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> Audit:
    """Audit a model.

    Args:
        samples: that the model was not fitted on, with its attribute and the group.
        group: attribute whose values are the groups; of several, the groups are the combinations of
            their values.
        role: attribute by which unspecified samples are listed; None for none.
        unspecified: the value that unspecified samples have as their attribute.
        edit: of the embeddings, before the model sees them.

    Raises:
        UserError: no sample has both a label and a group, or the groups are the attribute's values.
    """
    if edit is not None:
        samples = replace(samples, embeddings=edit.apply(samples.embeddings))
    crossed = (group,) if isinstance(group, str) else tuple(dict.fromkeys(group))
    samples, group = samples.with_crossed(crossed), crossed_name(crossed)
    samples.require([model.config.attribute, *([role] if role else [])])
    require_other_groups(model.config.attribute, crossed)
    labels = samples.columns[model.config.attribute]
    groups = samples.columns[group]
    labelled = among(labels, model.classes)
    grouped = np.array([bool(value) for value in groups], dtype=bool)
    if not labelled.any():
        common = Counter(str(value) for value in labels if value).most_common(8)
        raise UserError(
            f"{model.config.attribute}: no sample has one of the model's classes "
            f"{', '.join(model.classes)}; their values are "
            f"{', '.join(value for value, _ in common) or 'none'}: give pairs that have the "
            "model's values, or make a model of theirs"
        )
    if not (labelled & grouped).any():
        raise UserError(
            f"{group}: no sample has both a group and one of the classes "
            f"{', '.join(model.classes)}; give other pairs or another group"
        )
    both = samples.take(labelled & grouped)
    truth = both.columns[model.config.attribute].astype(str)
    names = both.columns[group].astype(str)
    measures = measure(
        truth,
        model.probabilities(both.embeddings),
        names,
        model.classes,
        clusters=both.ids,
        seed=seed,
        replicates=replicates,
    )
    leakage, chance = group_leakage(both, names, seed=seed, replicates=replicates)
    return Audit(
        attribute=model.config.attribute,
        group=group,
        measures=measures,
        unlabelled=int((~labelled).sum()),
        ungrouped=int((labelled & ~grouped).sum()),
        leakage=leakage,
        leakage_chance=chance,
        classes=class_effects(model, samples.take(labelled), seed=seed, replicates=replicates),
        lean=[] if role is None else lean(model, samples.take(labels == unspecified), role),
    )


def class_effects(
    model: AttributeModel,
    samples: Samples,
    *,
    random_groups: int = RANDOM_GROUPS,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> list[ClassEffect]:
    """What keeping only each modality class's features, and removing them, does to the accuracy,
    beside random groups of as many features and the same energy.

    Args:
        samples: each with one of the model's classes.
    """
    space, modality = model.space, model.config.modality
    truth = samples.columns[model.config.attribute].astype(str)
    weights = bootstrap_weights(len(samples), replicates, seed, samples.ids)
    energy = feature_energy(space, samples.embeddings, modality)
    rng = np.random.default_rng(seed)

    def accuracy(what: str, features: np.ndarray) -> np.ndarray:
        import torch

        chosen = torch.from_numpy(features)
        edit = (
            KeepFeatures(space, chosen, modality)
            if what == "keep"
            else RemoveFeatures(space, chosen, modality, "mask")
        )
        return weighted_mean(model.predictions(edit.apply(samples.embeddings)) == truth, weights)

    found = []
    units = len(np.unique(samples.ids))
    for name in MODALITY_CLASSES:
        features = space.select(name).numpy()
        active = features[energy[features] > 0]
        if len(active) == 0:
            continue
        controls = [random_features(energy, active, rng) for _ in range(random_groups)]
        for what in ("keep", "remove"):
            own = accuracy(what, active)
            control = np.mean([accuracy(what, other) for other in controls], axis=0)
            found.append(
                ClassEffect(
                    what=what,
                    modality_class=name,
                    features=len(active),
                    energy=float(energy[active].sum() / energy.sum()),
                    accuracy=estimate_share(own, units),
                    random=estimate_share(control, units),
                    difference=estimate(own - control),
                )
            )
    return found


def lean(model: AttributeModel, samples: Samples, role: str) -> list[Lean]:
    """The shares of each class among the predictions of samples, overall and by role, with Wilson
    intervals; of samples of one id the first, and roles of fewer than MIN_LEAN count only in
    "all"."""
    if len(samples) == 0:
        return []
    samples = samples.take(np.sort(np.unique(samples.ids.astype(str), return_index=True)[1]))
    predicted = model.predictions(samples.embeddings)
    roles = samples.columns[role]
    given = [value for value in roles if value]

    def row(name: str, inside: np.ndarray) -> Lean:
        count = int(inside.sum())
        shares = {
            label: wilson(int((predicted[inside] == label).sum()), count) for label in model.classes
        }
        return Lean(name, count, shares)

    names, sizes = np.unique(np.array(given, dtype=str), return_counts=True)
    rows = [row(str(name), roles == name) for name in names[sizes >= MIN_LEAN]]
    rows.sort(key=lambda lean: -max(share.low for share in lean.shares.values()))
    return [row("all", np.ones(len(samples), dtype=bool)), *rows]


def wilson(hits: int, samples: int) -> Estimate:
    """A share with its Wilson interval, which holds for few samples and for none or all hits."""
    from scipy.stats import binomtest

    interval = binomtest(hits, samples).proportion_ci(method="wilson")
    return Estimate(hits / samples, float(interval.low), float(interval.high))


def require_other_groups(attribute: str, group: Sequence[str]) -> None:
    """Raise UserError where the attribute that is predicted is to give the groups alone: samples of
    a group then have one label, so that no rate can be compared between groups."""
    if set(group) == {attribute}:
        raise UserError(
            f"{attribute}: is what is predicted; group by another attribute, or by both together"
        )


def require_groups(samples: Samples, group: str | Sequence[str]) -> Sequence[str]:
    """The groups of an attribute, or of several together.

    Raises:
        UserError: there are fewer than two, or most samples have one of their own, as by numbers.
    """
    crossed = (group,) if isinstance(group, str) else tuple(dict.fromkeys(group))
    group = crossed_name(crossed)
    counts = Counter(value for value in samples.with_crossed(crossed).columns[group] if value)
    values = sorted(counts)
    if len(values) < 2:
        raise UserError(
            f"{group}: {len(values)} group ({', '.join(values) or 'no value'}); an audit needs at "
            "least two"
        )
    alone = sum(1 for count in counts.values() if count == 1)
    if 2 * alone > counts.total():
        raise UserError(
            f"{group}: {len(values)} groups of {counts.total()} samples, most of them of one, as "
            "numbers or free text have; put ranges in their place, or group by another attribute"
        )
    return values
