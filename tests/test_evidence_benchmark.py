"""The benchmark of evidence: where the truth lies, and cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.evidence import CURVE_GRID, STEPS, curves
from benchmarks.evidence_pointing import (
    CAPTIONS,
    Encoded,
    cases,
    cells_on,
    feature_carriers,
    probe_carriers,
    share_row,
    words_that_say,
)
from features.embedded.world import SIZE, EmbeddedPairs, drawn_mask, render
from features.evidence.windows import GRID
from features.evidence.words import WORD, WordEvidence
from features.space.space import FeatureSpace


def test_the_mask_is_where_the_picture_shows_the_drawing() -> None:
    source = EmbeddedPairs("heldout", 1)
    for row in range(5):
        drawing, factors = source.drawing(row), source.factors(row)
        black = Image.new("RGBA", drawing.size)
        black.putalpha(drawing.getchannel("A"))
        ground, shown = (
            np.asarray(render(d, factors)).astype(float).sum(2)
            for d in (Image.new("RGBA", drawing.size), black)
        )
        mask = drawn_mask(drawing, factors)
        assert mask.shape == (SIZE, SIZE) and 0.1 < mask.mean() < 0.9
        assert (shown[mask] < 0.52 * ground[mask]).all()
        assert (shown[~mask] > 0.48 * ground[~mask]).all()


def test_cells_lie_on_a_region_of_which_they_hold_a_part_or_more_than_half() -> None:
    side = SIZE // GRID
    mask = np.zeros((SIZE, SIZE), bool)
    mask[0, 0] = True
    mask[side : 2 * side, side : side + 3] = True
    tolerant, strict = (cells_on(mask, tolerance=tolerance) for tolerance in (True, False))
    assert np.argwhere(tolerant).tolist() == [[0, 0], [1, 1]]
    assert np.argwhere(strict).tolist() == [[1, 1]]


@pytest.mark.parametrize("factor", CAPTIONS)
def test_the_words_that_say_a_factor(factor: str) -> None:
    source = EmbeddedPairs("heldout", 3)
    for row in range(0, source.total(), 7):
        caption = source.described(row).captions[0]
        spans = tuple(match.span() for match in WORD.finditer(caption))
        found = WordEvidence(caption, spans, torch.zeros(1, len(spans)), torch.zeros(1))
        words = [found.word(place) for place in range(len(spans))]
        says = words_that_say(factor, source, row, found)
        said = [word for word, on in zip(words, says, strict=True) if on]
        bare = [word.strip(",:") for word in said]
        if factor == "gender":
            assert bare and set(bare) <= {"man", "woman", "men", "women", "person", "people"}
        elif factor == "skin_tone":
            assert bare[-2:] == ["skin", "tone"]
        else:
            name = source.rows[row]["text"]
            assert " ".join(words[int(n)] for n in np.flatnonzero(~says)) == name


def test_carriers_are_those_that_find_a_value_and_cases_show_it() -> None:
    rng = np.random.default_rng(0)
    labels = ["man", "woman"] * 40
    truth = np.array([label == "man" for label in labels]).astype(float)
    pre = rng.normal(size=(80, 5))
    pre[:, 3] = truth + 0.1 * rng.normal(size=80)
    pairs = Encoded([{"gender": label} for label in labels], pre, pre, pre * (pre > 0.5))
    factors = {"gender": ("man", "woman")}
    [carrier] = feature_carriers(pairs, factors)
    assert (carrier.value, carrier.feature) == ("man", 3), "none finds women"
    found = cases({1: pairs}, [carrier])
    assert 20 < len(found) <= 30
    assert all(labels[case.row] == "man" and pre[case.row, 3] > 0.5 for case in found)
    first, second = probe_carriers(pairs, factors)
    assert callable(first.target) and callable(second.target)
    embeddings = torch.from_numpy(pre).float()
    assert (first.value, second.value) == ("man", "woman")
    assert torch.allclose(first.target(embeddings), -second.target(embeddings))
    assert first.target(embeddings)[::2].min() > first.target(embeddings)[1::2].max()


def test_a_share_has_an_interval_even_where_all_hit() -> None:
    row = share_row("all", [1.0] * 20, [str(n % 10) for n in range(20)], 0)
    assert (row.value, row.ci_high, row.n) == (1.0, 1.0, 20)
    assert 0.6 < row.ci_low < 0.95
    half = share_row("half", [0.0, 1.0] * 20, [str(n) for n in range(40)], 0)
    assert half.ci_low < 0.4 and half.ci_high > 0.6


def test_curves_begin_with_the_whole_and_end_with_nothing(space: FeatureSpace) -> None:
    image = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8).astype(np.uint8)
    )
    order = torch.randperm(CURVE_GRID**2, generator=torch.Generator().manual_seed(0))
    found = curves(space, image, 3, [order, order.flip(0)])
    assert found.shape == (2, 2, STEPS + 1)
    whole = space.dictionary.pre_activations(space.encoder.encode_images([image]), "image")[0, 3]
    assert torch.allclose(found[:, 0, 0], whole, atol=1e-5)
    assert torch.allclose(found[:, 1, -1], whole, atol=1e-5)
    assert torch.allclose(found[:, 0, -1], found[:, 1, 0], atol=1e-5)
    # what is covered first in one order is uncovered last in the other
    assert torch.allclose(found[0, 0], found[1, 1].flip(0), atol=1e-5)


@pytest.fixture(scope="module")
def space(space_folder, clip_folder) -> FeatureSpace:
    return FeatureSpace.load(space_folder, device="cpu", encoder=f"local-dir:{clip_folder}")
