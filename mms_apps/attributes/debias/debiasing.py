"""A model and an edit that takes a factor out, beside the baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from features.errors import UserError
from features.modality import Modality
from features.space.space import FeatureSpace
from mms_apps.attributes.debias.baselines import prompt_projection, random_edits
from mms_apps.attributes.debias.choosing import ChosenFeatures, choose_edit
from mms_apps.attributes.debias.comparison import MethodRow, compare_methods
from mms_apps.attributes.edits import EmbeddingEdit, RemoveFeatures
from mms_apps.attributes.estimators import TEMPLATES
from mms_apps.attributes.labels import Samples, cells
from mms_apps.attributes.model import AttributeModel, Method, fit_model

VALIDATION = 0.3
"""Share of the training samples that edits are chosen on."""


@dataclass(frozen=True)
class Debiasing:
    """A comparison of methods, and the edit that was chosen."""

    model: AttributeModel
    choice: ChosenFeatures
    edit: RemoveFeatures
    factor: str
    unrelated: str
    methods: list[MethodRow]


def debias(
    space: FeatureSpace,
    train: Samples,
    test: Samples,
    attribute: str,
    classes: Sequence[str],
    factor: str,
    factor_values: Sequence[str],
    unrelated: str,
    unrelated_classes: Sequence[str],
    method: Method,
    *,
    modality: Modality = "image",
    prompts: Mapping[str, Sequence[str]] | None = None,
    max_features: int = 20,
    seed: int = 0,
) -> Debiasing:
    """Fit a model, choose an edit that takes a factor out, and compare it with the baselines. The
    groups are the cells of attribute and factor.

    Args:
        train: to fit (1 - VALIDATION of it) and to choose on, by id.
        test: with none of the training samples.
        prompts: of the attribute, by class, for zero-shot.

    Raises:
        UserError: there are too few samples, or the factor has one value.
    """
    train, test = (
        s.having(attribute, classes).having(factor, factor_values) for s in (train, test)
    )
    if len(train) == 0 or len(test) == 0:
        raise UserError(
            f"{attribute}, {factor}: {len(train)} training and {len(test)} test samples have both; "
            "give pairs that do"
        )
    if set(train.ids) & set(test.ids):
        raise UserError("the pairs to test on are among the training pairs; give others")
    fitted, validation = split_samples(train, VALIDATION, seed)
    model = fit_model(
        space,
        fitted,
        attribute,
        classes,
        method,
        modality=modality,
        prompts=prompts,
        max_features=max_features,
        seed=seed,
    )
    other = fit_model(
        space,
        fitted,
        unrelated,
        unrelated_classes,
        method,
        modality=modality,
        max_features=max_features,
        seed=seed,
    )

    def groups(samples: Samples) -> np.ndarray:
        return cells(*(samples.columns[name].astype(str) for name in (attribute, factor)))

    choice, edit = choose_edit(model, validation, factor, groups(validation))
    template = TEMPLATES[0]
    projection = prompt_projection(
        model,
        [template.format(value) for value in factor_values],
        [
            (template.format(f"{name} {first}"), template.format(f"{name} {second}"))
            for name in classes
            for first, second in combinations(factor_values, 2)
        ],
    )
    edits: dict[str, Sequence[EmbeddingEdit]] = {
        "none": [EmbeddingEdit()],
        "features": [edit],
        "debias_vl": [projection],
        "random": random_edits(choice, edit, validation, seed=seed),
    }
    methods = compare_methods(
        model,
        edits,
        test,
        factor,
        groups(test),
        probe_samples=train,
        unrelated=other,
        seed=seed,
    )
    return Debiasing(model, choice, edit, factor, unrelated, methods)


def split_samples(samples: Samples, share: float, seed: int) -> tuple[Samples, Samples]:
    """The others, and about `share` of the samples; those of one id fall on one side."""
    ids = np.unique(samples.ids.astype(str))
    chosen = np.random.default_rng(seed).permutation(ids)[: round(share * len(ids))]
    inside = np.isin(samples.ids.astype(str), chosen)
    return samples.take(~inside), samples.take(inside)
