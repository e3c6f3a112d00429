"""What an edit of features is compared with, each with its strength chosen on validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mms_apps.attributes.debias.choosing import ChosenFeatures
from mms_apps.attributes.debias.comparison import Debiased
from mms_apps.attributes.debias.erasure import independence_weights, leace, mean_difference
from mms_apps.attributes.debias.retraining import last_layer, last_layer_outcomes, reweighted
from mms_apps.attributes.debias.validation import Outcome, Validation, best
from mms_apps.attributes.edits import (
    NO_EDIT,
    EmbeddingEdit,
    Project,
    RemoveFeatures,
    calibrated_projection,
    feature_energy,
    random_features,
    reading_directions,
)
from mms_apps.attributes.estimators import STRENGTHS
from mms_apps.attributes.labels import Samples
from mms_apps.attributes.model import AttributeModel

RANDOM_SETS = 5
"""Random groups of features whose accuracies are averaged."""
SHARES = (0.25, 0.5, 0.75, 1.0)
"""Of the mean difference that is taken away."""
SHRINKAGES = (0.0, 0.01, 0.1)
"""Of LEACE's covariance."""
LAMBDAS = (10.0, 100.0, 1000.0)
"""Of debias_vl's calibration."""


@dataclass(frozen=True)
class FactorPrompts:
    """Prompts for debias_vl.

    spurious: that name the factor's values.
    pairs: that differ in the factor alone.
    """

    spurious: Sequence[str]
    pairs: Sequence[tuple[str, str]]


def baselines(
    model: AttributeModel,
    fitted: Samples,
    validation: Validation,
    factor: str,
    prompts: FactorPrompts,
    *,
    seed: int = 0,
) -> dict[str, Debiased]:
    """The model as each baseline makes it. A method's strength is chosen on the validation samples
    by `validation.best`, the rule by which features are chosen; where none helps, the method
    leaves the model as it is.

    Args:
        fitted: samples from which a method learns what to erase, or to weigh.
        validation: other samples. `last_layer` fits on them too, and is judged there by
            cross-validation.
    """
    none = Debiased(model)

    def outcome(debiased: Debiased) -> Outcome:
        model, embeddings = debiased.model, validation.samples.embeddings
        return validation.outcome(model, model.predict_proba(embeddings, debiased.edit))

    before = outcome(none)

    def chosen(made: Sequence[Debiased]) -> Debiased:
        return best(before, [(debiased, outcome(debiased)) for debiased in made]) or none

    def edits(
        word: str, strengths: Sequence[float], edit: Callable[[float], EmbeddingEdit]
    ) -> Debiased:
        return chosen([Debiased(model, edit(s), f"{word} {s:g}") for s in strengths])

    values = fitted.columns[factor].astype(str)
    weights = independence_weights(fitted.columns[model.config.attribute].astype(str), values)
    x = fitted.embeddings
    strength = best(before, last_layer_outcomes(model, validation, STRENGTHS, seed))
    return {
        "mean_difference": edits("share", SHARES, lambda s: mean_difference(x, values, weights, s)),
        "debias_vl": edits("lambda", LAMBDAS, prompt_projections(model, prompts)),
        "leace": edits("shrinkage", SHRINKAGES, lambda s: leace(x, values, weights, s)),
        "reweighting": chosen(
            [Debiased(reweighted(model, fitted, factor, s), NO_EDIT, f"C {s:g}") for s in STRENGTHS]
        ),
        "last_layer": none
        if strength is None
        else Debiased(last_layer(model, validation, strength, seed), NO_EDIT, f"C {strength:g}"),
    }


def prompt_projections(model: AttributeModel, prompts: FactorPrompts) -> Callable[[float], Project]:
    """The calibrated projection of Chuang et al. 2023 from prompts, by its lambda."""
    encoder = model.space.encoder

    def vectors(texts: Sequence[str]) -> Tensor:
        return torch.clone(encoder.encode_texts(list(texts))).cpu()

    spurious = vectors(prompts.spurious)
    first, second = (vectors([pair[side] for pair in prompts.pairs]) for side in (0, 1))
    pairs = list(zip(first, second, strict=True))
    return lambda strength: Project(calibrated_projection(spurious, pairs, strength))


def random_edits(
    choice: ChosenFeatures, edit: RemoveFeatures, validation: Samples, *, seed: int = 0
) -> list[RemoveFeatures]:
    """RANDOM_SETS edits like `edit`, of random features of the same number and energy."""
    space, modality = edit.space, edit.modality
    energy = feature_energy(space, validation.embeddings, modality)
    rng = np.random.default_rng(seed)
    chosen = np.array(choice.features, dtype=int)
    found = []
    for _ in range(RANDOM_SETS):
        features = torch.from_numpy(random_features(energy, chosen, rng, avoid=chosen))
        readings = None
        if edit.how == "project":
            readings = reading_directions(space, validation.embeddings, features, modality)
        found.append(RemoveFeatures(space, features, modality, edit.how, readings))
    return found
