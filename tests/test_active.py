"""Sums over active places are those over whole batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from features.scores.active import ActivePairs

PAIRS, FEATURES, DIM = 12, 7, 3


def batch(seed: int, density: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Activations of images and texts, some negative, and a row a pair."""
    generator = torch.Generator().manual_seed(seed)
    size = (2, PAIRS, FEATURES)
    kept = torch.rand(size, generator=generator) < density
    image, text = torch.randn(size, generator=generator) * kept
    return image, text, torch.randn(PAIRS, DIM, generator=generator).double()


@given(seed=st.integers(0, 1000), density=st.sampled_from([0.0, 0.03, 0.3, 1.0]))
@settings(max_examples=40, deadline=None)
def test_sums_and_products_are_those_of_dense_batches(seed: int, density: float) -> None:
    image, text, rows = batch(seed, density)
    active = ActivePairs.of(image, text)
    assert active.counts.tolist() == ((image != 0) | (text != 0)).sum(0).tolist()
    for values, whole in ((active.image, image), (active.text, text)):
        expected = whole.double().abs()
        assert torch.equal(active.dense(values), expected)
        torch.testing.assert_close(active.sums(values), expected.sum(0))
        torch.testing.assert_close(active.products(values, rows), expected.T @ rows)


@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])
def test_a_part_of_the_places(density: float) -> None:
    image, text, rows = batch(1, density)
    active = ActivePairs.of(image, text)
    images = active.where(active.image > 0)
    assert len(images.pair) == int((image != 0).sum())
    assert (images.image > 0).all()
    torch.testing.assert_close(
        images.products(images.text, rows),
        (torch.where(image != 0, text, 0.0).double().abs().T @ rows),
    )
