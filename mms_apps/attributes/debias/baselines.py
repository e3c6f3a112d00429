"""What an edit is compared with: a projection from prompts, random features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mms_apps.attributes.debias.choosing import ChosenFeatures
from mms_apps.attributes.edits import (
    Project,
    RemoveFeatures,
    calibrated_projection,
    feature_energy,
    random_features,
    reading_directions,
)
from mms_apps.attributes.labels import Samples
from mms_apps.attributes.model import AttributeModel

RANDOM_SETS = 5
"""Random groups of features whose accuracies are averaged."""


def prompt_projection(
    model: AttributeModel, spurious: Sequence[str], pairs: Sequence[tuple[str, str]]
) -> Project:
    """The calibrated projection of Chuang et al. 2023 from prompts.

    Args:
        spurious: prompts that name the factor's values.
        pairs: prompts that differ in the factor alone.
    """
    encoder = model.space.encoder

    def vectors(texts: Sequence[str]) -> Tensor:
        return torch.clone(encoder.encode_texts(list(texts))).cpu()

    first, second = vectors([a for a, _ in pairs]), vectors([b for _, b in pairs])
    matrix = calibrated_projection(vectors(spurious), list(zip(first, second, strict=True)))
    return Project(matrix)


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
