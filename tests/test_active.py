"""Sums over active places are those over whole batches."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from features.dictionary.base import SparseCode
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


@given(
    seed=st.integers(0, 1000),
    density=st.sampled_from([0.0, 0.03, 0.3, 1.0]),
    at_once=st.sampled_from([1, 5, 1000]),
)
@settings(max_examples=40, deadline=None)
def test_sums_by_label_are_those_of_dense_batches(seed: int, density: float, at_once: int) -> None:
    image, text, _ = batch(seed, density)
    has = torch.rand(PAIRS, 4, generator=torch.Generator().manual_seed(seed)) < 0.4
    pair, label = has.nonzero(as_tuple=True)
    active = ActivePairs.of(image, text)
    sums = torch.ones(4, FEATURES, dtype=torch.float64)
    with mock.patch("features.scores.active.JOINED_AT_ONCE", at_once):
        active.add_by_label(sums, active.text, pair, label)
    torch.testing.assert_close(sums, 1 + has.double().T @ text.double().abs())


@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])
def test_a_part_of_the_places(density: float) -> None:
    image, text, rows = batch(1, density)
    active = ActivePairs.of(image, text)
    images = active.images
    assert len(images.pair) == int((image != 0).sum())
    assert (images.image > 0).all()
    torch.testing.assert_close(
        images.products(images.text, rows),
        (torch.where(image != 0, text, 0.0).double().abs().T @ rows),
    )


@given(seed=st.integers(0, 1000), k=st.sampled_from([1, 3, FEATURES]))
@settings(max_examples=40, deadline=None)
def test_codes_have_the_places_of_the_dense_batch(seed: int, k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes, dense = [], []
    for _ in range(2):
        indices = torch.rand(PAIRS, FEATURES, generator=generator).argsort(1)[:, :k]
        values = torch.randn(PAIRS, k, generator=generator)
        values *= torch.rand(PAIRS, k, generator=generator) < 0.6
        codes.append(SparseCode(values, indices))
        dense.append(torch.zeros(PAIRS, FEATURES).scatter(1, indices, values))
    found = ActivePairs.of_codes(codes[0], codes[1], FEATURES)
    expected = ActivePairs.of(dense[0], dense[1])
    assert found.pairs == expected.pairs and found.features == expected.features
    for name in ("pair", "feature", "counts", "image", "text"):
        mine, theirs = getattr(found, name), getattr(expected, name)
        assert torch.equal(mine, theirs) and mine.dtype == theirs.dtype


def test_codes_without_an_activation_have_no_places() -> None:
    code = SparseCode(torch.zeros(PAIRS, 2), torch.zeros(PAIRS, 2, dtype=torch.long))
    found = ActivePairs.of_codes(code, code, FEATURES)
    assert len(found.pair) == 0 and found.counts.tolist() == [0] * FEATURES
