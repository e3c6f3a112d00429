"""Edits found from examples and from words."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch._subclasses import FakeTensorMode

from features.errors import UserError
from features.space.space import FeatureSpace
from mms_apps.steering import Steering
from mms_apps.steering.finding import WAYS, AffineMap, _embedded, _rows, find, pursue, sure_of

DIM = 16


def samples(present: int, n: int = 60, seed: int = 0) -> torch.Tensor:
    """Unit embeddings with one feature on, others varying; feature 9 is in all."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.1 * torch.randn(n, DIM, generator=generator).abs()
    x[:, 9] += 0.5
    x[:, present] += 1.0
    return F.normalize(x, dim=1)


@pytest.mark.parametrize("how", WAYS)
def test_examples_become_like_the_target(space: FeatureSpace, how: str) -> None:
    source, target = samples(3), samples(5, seed=1)
    steering = find(space, source, target, how, taken=4)
    moved = Steering(steering.edits, score_sets=steering.score_sets, max_drift=180).apply(
        space, samples(3, seed=2)
    )
    assert F.cosine_similarity(moved.embedding, target.mean(0)[None]).min() > 0.95
    used = {e.feature for e in steering.edits} | {
        f for s in steering.score_sets for f in s.features
    }
    assert {3, 5} <= used and len(used) <= 4


def test_a_score_set_moves_each_sample_as_far_as_it_has_to_go(space: FeatureSpace) -> None:
    source, target = samples(3), samples(5, seed=1)
    (score,) = find(space, source, target, "score_set", taken=8).score_sets
    weight = torch.tensor(score.weight)
    steering = Steering(score_sets=(score,))
    near = F.normalize(0.5 * samples(3, seed=2) + samples(5, seed=3), dim=1)
    near_change, far_change = (
        steering.change(space, x, "image").norm(dim=1).mean() for x in (near, source)
    )
    assert near_change < 0.6 * far_change
    moved = source + steering.change(space, source, "image") @ space.dictionary.directions
    assert (moved @ weight).mean() == pytest.approx(score.value, abs=0.15 * abs(score.value))


def test_the_pursuit_finds_the_best_single_feature_and_signs_that_samples_allow(
    space: FeatureSpace,
) -> None:
    source = samples(3)
    wanted = torch.zeros(DIM)
    wanted[3], wanted[5], wanted[7] = -1.0, 0.8, -0.5
    features, steps = pursue(space, wanted, source, "image", 1)
    assert features.tolist() == [3] and steps.tolist() == pytest.approx([-1.0])
    source = source.clone()
    source[:, 7] = 0  # nobody has feature 7: it can't be taken away
    features, steps = pursue(space, wanted, F.normalize(source, dim=1), "image", 8)
    assert set(features.tolist()) == {3, 5}
    usable = [f for f in range(DIM) if space.mean_active("image")[f] > 0 and f != 7]
    best = min(
        float((wanted**2).sum() - sum(wanted[f] ** 2 for f in pair))
        for pair in itertools.combinations(usable, 2)
    )
    left = wanted.clone()
    left[features] -= steps
    assert float((left**2).sum()) == pytest.approx(best)


def test_words_find_edits_too(embedded: FeatureSpace) -> None:
    texts = embedded.encoder.encode_texts(["a picture of man", "man"]).clone()
    to = embedded.encoder.encode_texts(["a picture of woman", "woman"]).clone()
    for how in ("features", "difference"):
        moved = find(embedded, "man", ["woman"], how).apply(embedded, texts, "text").embedding
        assert (F.cosine_similarity(moved, to) > F.cosine_similarity(texts, to)).all()
    with pytest.raises(UserError, match="needs examples"):
        find(embedded, "man", "woman", "score_set")


def test_mistakes_are_said(space: FeatureSpace) -> None:
    with pytest.raises(UserError, match="no way to find edits; use features, difference"):
        find(space, samples(3), samples(5), "magic")
    with pytest.raises(UserError, match="no samples"):
        find(space, samples(3)[:0], samples(5))
    for target in (samples(5)[:, :7], samples(5)[0], torch.full((2, DIM), torch.nan)):
        with pytest.raises(UserError, match="embeddings"):
            find(space, samples(3), target)
    with pytest.raises(UserError, match="modality audio: use image or text"):
        find(space, samples(3), samples(5), modality="audio")  # type: ignore[arg-type]


def test_examples_may_be_arrays(space: FeatureSpace) -> None:
    source, target = samples(3), samples(5)
    assert find(space, source.numpy(), target.numpy()) == find(space, source, target)


def test_lists_of_embeddings_are_stacked(space: FeatureSpace) -> None:
    source, target = samples(3), samples(5)
    for how in WAYS:
        found = find(space, source, target, how)
        assert find(space, list(source), tuple(target), how) == found
        assert (
            find(space, [row[None].numpy() for row in source], list(target.numpy()), how) == found
        )
    assert find(space, 3 * source.double().requires_grad_(), target) is not None
    with pytest.raises(UserError, match=r"embeddings of several sizes, \[16\] and \[7\]"):
        find(space, [source[0], source[0, :7]], target)


@pytest.mark.parametrize(
    "wrong",
    [
        Image.new("RGB", (4, 4)),
        [Image.new("RGB", (4, 4))],
        [3],
        3,
        None,
        [None],
        ["man", 3],
        ["man", torch.zeros(DIM)],
        "  ",
        ["man", ""],
        np.array([None, "man"]),
        {"man": 1},
    ],
)
def test_what_is_neither_words_nor_embeddings_is_refused(space: FeatureSpace, wrong: Any) -> None:
    for given in ((wrong, samples(5)), (samples(3), wrong)):
        with pytest.raises(UserError, match=r"samples .*: give words or embeddings"):
            find(space, *given)
    with pytest.raises(UserError, match=r"samples .*: give words or embeddings"):
        sure_of(wrong, samples(5))


def test_samples_from_which_nothing_follows_are_said(space: FeatureSpace) -> None:
    source, target = samples(3), samples(5)
    with pytest.raises(UserError, match="a score set needs samples that vary"):
        find(space, source[:1], target[:1], "score_set")
    with pytest.raises(UserError, match="a score set needs samples that vary"):
        find(space, source[:1].expand(4, -1), target[:1].expand(3, -1), "score_set")
    with pytest.raises(UserError, match="have one mean"):
        find(space, source, source, "score_set")
    for how in WAYS:
        for taken in (0, -1, 2.5, "8"):
            with pytest.raises(UserError, match=r"taken .*: must be a whole number, 1 or more"):
                find(space, source, target, how, taken=taken)  # type: ignore[arg-type]


def test_a_probe_is_found_from_arrays_of_any_length_and_no_impossible_probability() -> None:
    source, target = samples(3), samples(5, seed=1)
    probe = sure_of(source, target, 0.9)
    for given in ((source.numpy(), target.numpy()), (list(source), list(target))):
        assert sure_of(*given, 0.9) == probe  # type: ignore[arg-type]
    scaled = sure_of(30 * source, 20 * target, 0.9)
    assert scaled.weight == pytest.approx(probe.weight, rel=1e-2, abs=1e-2)
    for probability in (95, 1.0, 0, -0.5, "0.9", None):
        with pytest.raises(UserError, match="probability"):
            sure_of(source, target, probability)  # type: ignore[arg-type]
    for wrong in ("man", source[0], source * torch.nan, source[:, :7]):
        with pytest.raises(UserError, match="embeddings"):
            sure_of(wrong, target)  # type: ignore[arg-type]


def test_a_probe_is_sure_where_it_should_be() -> None:
    source, target = samples(3), samples(5, seed=1)
    probe = sure_of(source, target, 0.9)
    odds = torch.cat([source, target]) @ torch.tensor(probe.weight) + probe.bias
    assert (odds[:60] < 0).all() and (odds[60:] > 0).all() and probe.probability == 0.9


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_probe_is_found_from_few_samples(count: int) -> None:
    source, target = samples(3)[:count], samples(5, seed=1)
    probe = sure_of(source, target)
    odds = torch.cat([source, target]) @ torch.tensor(probe.weight) + probe.bias
    assert odds[:count].max() < odds[count:].min()
    with pytest.raises(UserError, match="no samples to tell apart"):
        sure_of(source[:0], target)


def test_examples_may_lie_on_several_devices() -> None:
    with FakeTensorMode():
        given = [torch.ones(3), torch.ones(3, device="cuda:0")]
        for rows in (given, given[::-1]):
            assert _rows(rows).device == rows[0].device
        space: Any = SimpleNamespace(embeddings_of=lambda rows: rows, device=given[1].device)
        assert _embedded(space, torch.ones(2, 3)).device == space.device


def test_an_affine_map_is_fitted_to_half_precision() -> None:
    source = samples(3).bfloat16()
    assert AffineMap.fit(source, source + 1).bias.isfinite().all()


def test_an_affine_map_is_recovered() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = 0.2 * torch.randn(DIM, DIM, generator=generator)
    x = F.normalize(torch.randn(400, DIM, generator=generator), dim=1)
    found = AffineMap.fit(x, x + x @ weight + 0.1)
    torch.testing.assert_close(found.move(x), x @ weight + 0.1, atol=0.02, rtol=0.05)
