"""Closed forms against literal double loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from features.scores.monosemanticity import (
    NO_SAMPLE,
    MonosemanticityStatistics,
    TopSamples,
    random_samples,
    top_similarity,
)

PAIRS, FEATURES, DIM = 24, 5, 6


def data(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Activations and judge embeddings of images and texts."""
    generator = torch.Generator().manual_seed(seed)
    shape = (PAIRS, FEATURES)
    image, text = (
        torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.6)
        for _ in range(2)
    )
    image[:, 1] += 0.3  # never zero: the scaling to [0, 1] must take the least off
    judge = [F.normalize(torch.randn(PAIRS, DIM, generator=generator), dim=1) for _ in range(2)]
    return image, text, judge[0], judge[1]


def statistics(*tensors: Tensor, batch: int = 7) -> MonosemanticityStatistics:
    result = MonosemanticityStatistics(tensors[0].shape[1], tensors[2].shape[1])
    for rows in zip(*(t.split(batch) for t in tensors), strict=True):
        result.update(*rows)
    return result


def looped_ms(activations: Tensor, embeddings: Tensor) -> list[float]:
    scores = []
    for a in activations.abs().double().T:
        a = (a - a.min()) / (a.max() - a.min())
        above = below = 0.0
        for i in range(len(a)):
            for j in range(len(a)):
                if i != j:
                    weight = float(a[i] * a[j])
                    above += weight * float(embeddings[i].double() @ embeddings[j].double())
                    below += weight
        scores.append(above / below)
    return scores


def test_ms_matches_the_double_loop() -> None:
    image, text, judge_image, judge_text = data()
    image[:, 2] *= -1  # signs don't matter
    scores = statistics(image, text, judge_image, judge_text).scores()
    np.testing.assert_allclose(scores.ms_image, looped_ms(image, judge_image), atol=1e-6)
    np.testing.assert_allclose(scores.ms_text, looped_ms(text, judge_text), atol=1e-6)


def test_cross_modal_ms_matches_the_double_loop() -> None:
    image, text, judge_image, judge_text = data()
    scores = statistics(image, text, judge_image, judge_text).scores()
    for k in range(FEATURES):
        above = below = 0.0
        for i in range(PAIRS):
            for j in range(PAIRS):
                weight = float(image[i, k] * text[j, k])
                above += weight * float(judge_image[i] @ judge_text[j])
                below += weight
        assert scores.ms_cross[k] == pytest.approx(above / below, abs=1e-6)


def test_merging_equals_one_pass() -> None:
    tensors = data()
    whole = statistics(*tensors)
    first = statistics(*(t[:10] for t in tensors))
    first.merge(statistics(*(t[10:] for t in tensors)))
    for field, value in vars(whole.scores()).items():
        np.testing.assert_allclose(getattr(first.scores(), field), value, rtol=1e-9)


def test_floor_is_the_mean_over_permutations() -> None:
    image, text, judge_image, judge_text = data()
    scores = statistics(image, text, judge_image, judge_text).scores()
    generator = torch.Generator().manual_seed(1)
    drawn = []
    for _ in range(400):
        orders = [torch.randperm(PAIRS, generator=generator) for _ in range(2)]
        shuffled = statistics(image[orders[0]], text[orders[1]], judge_image, judge_text, batch=99)
        permuted = shuffled.scores()
        drawn.append([permuted.ms_image[0], permuted.ms_text[0], permuted.ms_cross[0]])
    expected = [scores.floor_image, scores.floor_text, scores.floor_cross]
    np.testing.assert_allclose(np.mean(drawn, axis=0), expected, atol=0.01)


def test_undefined_scores_are_nan() -> None:
    image, text, judge_image, judge_text = data()
    image[:, 0] = 0
    image[:, 1] = 0
    image[3, 1] = 1
    text[:, 2] = 0
    scores = statistics(image, text, judge_image, judge_text).scores()
    assert np.isnan(scores.ms_image[:2]).all() and not np.isnan(scores.ms_image[2:]).any()
    assert np.isnan(scores.ms_cross[[0, 2]]).all()


@pytest.mark.parametrize("batch", [1, 5, 24])
def test_top_samples_stream(batch: int) -> None:
    image = data()[0] * torch.tensor([1.0, -1.0, 1.0, 1.0, 0.0])
    top = TopSamples(FEATURES, 6)
    for index, rows in enumerate(image.split(batch)):
        top.update(rows, index * batch)
    for k in range(4):
        order = image[:, k].abs().argsort(descending=True)[:6]
        assert top.samples[k].tolist() == order.tolist()
    assert top.samples[4].tolist() == [NO_SAMPLE] * 6


def test_top_samples_merge() -> None:
    image = data()[0]
    whole, first, second = (TopSamples(FEATURES, 20) for _ in range(3))
    whole.update(image, 0)
    first.update(image[:3], 0)
    second.update(image[3:], 3)
    second.merge(first)
    assert torch.equal(second.values, whole.values)
    untied = [0, 2, 3, 4]
    active = whole.samples[untied] != NO_SAMPLE
    assert torch.equal(second.samples[untied][active], whole.samples[untied][active])


def test_embsim_and_winrate_match_the_double_loop() -> None:
    image, _, judge, _ = data()
    top = TopSamples(FEATURES, 8)
    top.update(image * (torch.arange(PAIRS) < 12)[:, None] * torch.tensor([1, 1, 1, 1, 0]), 0)
    result = top_similarity(
        top.samples, lambda i: judge[i], PAIRS, torch.Generator().manual_seed(4)
    )
    random = random_samples(FEATURES, 8, PAIRS, torch.Generator().manual_seed(4))
    for k in range(4):
        members = sorted((s for s in top.samples[k].tolist() if s != NO_SAMPLE), reverse=True)
        others = random[k, : len(members)].tolist()
        gains, wins = [], []
        for i in range(len(members)):
            for j in range(len(members)):
                if i != j:
                    mine = float(judge[members[i]] @ judge[members[j]])
                    theirs = float(judge[others[i]] @ judge[others[j]])
                    gains.append(mine - theirs)
                    wins.append(mine > theirs)
        assert result.embsim[k] == pytest.approx(np.mean(gains), abs=1e-6)
        assert result.winrate[k] == pytest.approx(np.mean(wins))
    assert np.isnan(result.embsim[4]) and np.isnan(result.winrate[4])


def test_alike_samples_win() -> None:
    judge = torch.cat([torch.eye(DIM)[:1].repeat(10, 1), torch.eye(DIM).repeat(20, 1)])
    alike = torch.arange(10)[None]
    result = top_similarity(alike, lambda i: judge[i], len(judge), torch.Generator().manual_seed(0))
    assert result.embsim[0] > 0.5 and result.winrate[0] > 0.5


def test_random_samples_are_drawn_without_repetition_and_evenly() -> None:
    samples = random_samples(3000, 4, 10, torch.Generator().manual_seed(0))
    assert all(len(set(row)) == 4 for row in samples.tolist())
    np.testing.assert_allclose(samples.flatten().bincount() / 12000, 0.1, atol=0.015)
    assert random_samples(2, 4, 3, torch.Generator()).eq(NO_SAMPLE).sum() == 2
