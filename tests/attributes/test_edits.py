"""Edits of embeddings against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from features.dictionary import DictionaryConfig
from features.dictionary.identity import IdentityDictionary
from features.space.space import FeatureSpace
from mms_apps.attributes.edits import (
    KeepFeatures,
    RemoveFeatures,
    calibrated_projection,
    feature_energy,
    random_features,
    reading_directions,
)


@pytest.fixture
def unit() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(50, 16, generator=generator), dim=-1)


def test_subtract_takes_the_features_part_and_keeps_the_error(
    space: FeatureSpace, unit: torch.Tensor
) -> None:
    chosen = torch.tensor([1, 5, 9])
    activations = space.encode_images(unit)
    edited = RemoveFeatures(space, chosen, "image", "subtract").apply(unit)
    for row in range(50):
        expected = unit[row].clone()
        for feature in chosen.tolist():
            expected -= activations[row, feature] * space.dictionary.directions[feature]
        assert edited[row].numpy() == pytest.approx(expected.numpy(), abs=1e-5)


def test_mask_decodes_the_others_and_keep_is_its_complement(
    space: FeatureSpace, unit: torch.Tensor
) -> None:
    chosen, others = torch.tensor([0, 2]), torch.tensor([1, *range(3, 24)])
    activations = space.encode_images(unit)
    activations[:, chosen] = 0
    expected = space.decode(activations, "image")
    masked = RemoveFeatures(space, chosen, "image", "mask").apply(unit)
    assert masked.numpy() == pytest.approx(expected.numpy(), abs=1e-6)
    kept = KeepFeatures(space, others, "image").apply(unit)
    assert kept.numpy() == pytest.approx(masked.numpy(), abs=1e-6)


def test_project_leaves_nothing_along_what_the_features_read(
    space: FeatureSpace, unit: torch.Tensor
) -> None:
    chosen = torch.tensor([3, 4])
    readings = reading_directions(space, unit, chosen, "image")
    edited = RemoveFeatures(space, chosen, "image", "project", readings).apply(unit)
    along = (edited - space.dictionary.mean("image")) @ readings.T
    assert along.abs().max() < 1e-5


def test_reading_directions_are_the_encoders_rows(space: FeatureSpace, unit: torch.Tensor) -> None:
    active = (space.encode_images(unit) > 0).any(dim=0).nonzero().squeeze(1)[:5]
    found = reading_directions(space, unit, active, "image")
    rows = torch.nn.functional.normalize(space.dictionary.encoder[active], dim=1)
    assert found.numpy() == pytest.approx(rows.numpy(), abs=1e-4)
    identity = IdentityDictionary(
        DictionaryConfig(kind="identity", dim=16, features=16, k=16, modality_bias=False)
    )
    own = FeatureSpace(space.config, identity, space.features[:16], space.exemplars)
    found = reading_directions(own, unit, torch.tensor([2]), "image")
    assert found.numpy() == pytest.approx(np.eye(16)[[2]], abs=1e-5)


def test_no_features_change_nothing(space: FeatureSpace, unit: torch.Tensor) -> None:
    edited = RemoveFeatures(space, torch.tensor([], dtype=torch.int64), "image", "subtract")
    assert torch.equal(edited.apply(unit), unit)


def test_the_calibrated_projection_is_its_formula() -> None:
    rng = np.random.default_rng(0)
    spurious = rng.normal(size=(2, 6))
    pairs = [(rng.normal(size=6), rng.normal(size=6)) for _ in range(3)]
    p0 = np.eye(6) - spurious.T @ np.linalg.inv(spurious @ spurious.T) @ spurious
    m = sum(np.outer(a - b, a - b) for a, b in pairs) / 3
    expected = p0 @ np.linalg.inv(10 * m + np.eye(6))
    tensors = [(torch.from_numpy(a), torch.from_numpy(b)) for a, b in pairs]
    found = calibrated_projection(torch.from_numpy(spurious), tensors, 10.0)
    assert found.numpy() == pytest.approx(expected, abs=1e-5)


def test_random_features_match_number_and_energy() -> None:
    rng = np.random.default_rng(0)
    energy = rng.exponential(size=200)
    chosen = np.argsort(energy)[60:90]
    found = random_features(energy, chosen, rng, avoid=chosen)
    assert len(found) == len(set(found)) == 30
    assert not set(found) & set(chosen)
    assert energy[found].sum() == pytest.approx(energy[chosen].sum(), rel=0.02)


def test_energy_is_the_mean_squared_activation(space: FeatureSpace, unit: torch.Tensor) -> None:
    expected = space.encode_images(unit).double().square().mean(dim=0)
    assert feature_energy(space, unit, "image") == pytest.approx(expected.numpy())
