"""A model and an edit that takes a factor out, beside the baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from features.errors import UserError
from features.modality import Modality
from features.space.space import FeatureSpace
from mms_apps.attributes.debias.baselines import FactorPrompts, baselines, random_edits
from mms_apps.attributes.debias.choosing import ChosenFeatures, choose_edit
from mms_apps.attributes.debias.comparison import Debiased, MethodRow, compare_methods
from mms_apps.attributes.debias.validation import Validation
from mms_apps.attributes.edits import WAY_NAMES, RemoveFeatures
from mms_apps.attributes.estimators import TEMPLATES
from mms_apps.attributes.labels import Samples, cells, classes_of, split_samples
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
        unrelated_classes: those that fewer than two of the samples to fit on have are left out.
        prompts: of the attribute, by class, for zero-shot.

    Raises:
        UserError: there are too few samples, the factor has one value, or the attributes are not
            three.
    """
    require_three(attribute, factor, unrelated)
    train, test = (
        s.having(attribute, classes).having(factor, factor_values) for s in (train, test)
    )
    if len(train) == 0 or len(test) == 0:
        raise UserError(
            f"{attribute}, {factor}: {len(train)} training and {len(test)} test samples have both; "
            "give pairs that do"
        )
    if test.shared_with(train).any():
        raise UserError("the pairs to test on are among the training pairs; give others")
    fitted, validation = split_samples(train, VALIDATION, seed)
    seen = np.unique(fitted.columns[attribute].astype(str))
    if len(seen) < 2:
        raise UserError(
            f"{attribute}: the samples to fit on have the one value {seen[0]}; give more pairs"
            if len(seen)
            else f"{attribute}: no sample to fit on is left beside the validation; give more pairs"
        )
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
    common = set(classes_of(fitted, unrelated))
    other = fit_model(
        space,
        fitted,
        unrelated,
        [name for name in unrelated_classes if name in common],
        method,
        modality=modality,
        max_features=max_features,
        seed=seed,
    )

    template = TEMPLATES[0]
    prompts_of_factor = FactorPrompts(
        [template.format(value) for value in factor_values],
        [
            (template.format(f"{name} {first}"), template.format(f"{name} {second}"))
            for name in classes
            for first, second in combinations(factor_values, 2)
        ],
    )

    def groups(samples: Samples) -> np.ndarray:
        return cells(*(samples.columns[name].astype(str) for name in (attribute, factor)))

    choice, edit, methods = every_method(
        model,
        fitted,
        validation,
        test,
        factor,
        groups,
        prompts_of_factor,
        probe_samples=train,
        unrelated=other,
        seed=seed,
    )
    return Debiasing(model, choice, edit, factor, unrelated, methods)


def require_three(attribute: str, factor: str, unrelated: str) -> None:
    """Raise UserError where what is predicted, what it should not rest on and what should stay are
    not three attributes."""
    if factor == attribute:
        raise UserError(f"factor {factor}: is what is predicted; name another attribute")
    if unrelated in (attribute, factor):
        what = "predicted" if unrelated == attribute else "taken out"
        raise UserError(f"unrelated {unrelated}: is what is {what}; name another attribute")


def every_method(
    model: AttributeModel,
    fitted: Samples,
    validation: Samples,
    test: Samples,
    factor: str,
    groups: Callable[[Samples], np.ndarray],
    prompts: FactorPrompts,
    *,
    probe_samples: Samples,
    unrelated: AttributeModel,
    seed: int = 0,
) -> tuple[ChosenFeatures, RemoveFeatures, list[MethodRow]]:
    """Features, the baselines, and random features, all by the same splits.

    Args:
        fitted: the samples that the model was fitted on, or could be.
        validation: other samples, by which strengths are chosen.
        test: others again, for the figures.
        groups: of samples, `[n]`: none should do worse.
        prompts: for debias_vl.
        probe_samples, unrelated: as `compare_methods` takes them.
    """
    choice, edit = choose_edit(model, validation, factor, groups(validation))
    split = Validation(validation, groups(validation))
    count = len(choice.features)
    words = f"{count} {'feature' if count == 1 else 'features'}, {WAY_NAMES[choice.how]}"
    others = baselines(model, fitted, split, factor, prompts, seed=seed)
    methods: dict[str, Sequence[Debiased]] = {
        "none": [Debiased(model)],
        "features": [Debiased(model, edit, words if count else "")],
        **{name: [debiased] for name, debiased in others.items()},
        "random": [
            Debiased(model, random, words if count else "")
            for random in random_edits(choice, edit, validation, seed=seed)
        ],
    }
    rows = compare_methods(
        methods,
        test,
        factor,
        groups(test),
        probe_samples=probe_samples,
        unrelated=unrelated,
        seed=seed,
    )
    return choice, edit, rows
