"""The Modality Dominance Score against literal loops, merging, intervals, classes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from features.bootstrap import bootstrap_weights, bootstrap_weights_of
from features.errors import UserError
from features.scores.dominance import Dominance, DominanceStatistics, classify

FIELDS = tuple(Dominance.__dataclass_fields__)


def activations(
    n: int, features: int, seed: int = 0, density: float = 0.3
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, n, features)
    values = torch.rand(shape, generator=generator)
    kept = torch.rand(shape, generator=generator) < density
    image, text = values * kept
    return image, text


def statistics(image: Tensor, text: Tensor, batch: int = 1000, **options) -> DominanceStatistics:  # type: ignore[no-untyped-def]
    result = DominanceStatistics(image.shape[1], **options)
    for i, t in zip(image.split(batch), text.split(batch), strict=True):
        result.update(i, t)
    return result


def test_matches_a_literal_double_loop() -> None:
    image, text = activations(60, 5)
    image[:, 3] *= -1  # signs don't matter
    scores = statistics(image, text).scores(min_pairs=1)
    for k in range(5):
        ratios, sum_image, sum_text = [], 0.0, 0.0
        for m in range(60):
            a, b = abs(image[m, k].item()), abs(text[m, k].item())
            sum_image, sum_text = sum_image + a, sum_text + b
            if a + b > 0:
                ratios.append(a / (a + b))
        assert scores.mds[k] == pytest.approx(sum(ratios) / len(ratios), rel=1e-12)
        assert scores.energy[k] == pytest.approx(sum_image / (sum_image + sum_text), rel=1e-12)
        assert scores.active_pairs[k] == len(ratios)
        assert scores.left_out[k] == 60 - len(ratios)
        nonzero = [v for v in image[:, k].abs().tolist() if v > 0]
        assert scores.image_density[k] == pytest.approx(len(nonzero) / 60)
        assert scores.image_mean_active[k] == pytest.approx(np.mean(nonzero))


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 40),
    cuts=st.lists(st.integers(0, 40), max_size=3),
    seed=st.integers(0, 1000),
    batch=st.integers(1, 50),
)
def test_merging_equals_one_pass(n: int, cuts: list[int], seed: int, batch: int) -> None:
    image, text = activations(n, 4, seed)
    once = statistics(image, text, seed=seed, replicates=20)
    bounds = sorted({0, n, *(min(c, n) for c in cuts)})
    parts = [
        statistics(image[a:b], text[a:b], batch, seed=seed, replicates=20, start=a)
        for a, b in pairwise(bounds)
    ]
    merged = parts[-1]
    for part in reversed(parts[:-1]):
        merged.merge(part)
    left, right = once.scores(1), merged.scores(1)
    for field in FIELDS:
        # The replicates' products are in float32, their sums in float64.
        tolerance = 1e-6 if field.startswith("ci") else 1e-12
        np.testing.assert_allclose(
            getattr(left, field), getattr(right, field), rtol=tolerance, err_msg=field
        )


def test_merging_refuses_other_settings() -> None:
    with pytest.raises(ValueError, match="equal"):
        DominanceStatistics(3).merge(DominanceStatistics(4))


def test_too_few_pairs_are_unscored_not_a_half() -> None:
    image, text = torch.zeros(30, 3), torch.zeros(30, 3)
    image[:5, 1] = 1.0
    image[:, 2] = 1.0
    scores = statistics(image, text).scores(min_pairs=10)
    assert np.isnan(scores.mds[:2]).all() and np.isnan(scores.ci_low[:2]).all()
    assert scores.mds[2] == 1.0
    assert scores.active_pairs.tolist() == [0, 5, 30]
    assert np.isnan(scores.energy[0]) and np.isnan(scores.image_mean_active[0])


def test_extremes() -> None:
    image, text = torch.zeros(20, 3), torch.zeros(20, 3)
    image[:, 0] = 0.5
    text[:, 1] = 0.5
    image[:, 2] = text[:, 2] = 0.2
    scores = statistics(image, text).scores()
    np.testing.assert_allclose(scores.mds, [1, 0, 0.5])
    assert scores.ci_high[0] == 1 and scores.ci_low[1] == 0
    # Twenty pairs of one kind leave it open whether one in ten is of the other.
    assert 0.75 < scores.ci_low[0] < 0.9 and 0.1 < scores.ci_high[1] < 0.25
    assert scores.ci_low[2] < 0.5 < scores.ci_high[2]


def ratios(kind: str, truth: float, shape: tuple[int, int], seed: int) -> np.ndarray:
    """Of independent pairs, by features, with a mean of `truth`."""
    rng = np.random.default_rng(seed)
    if kind == "0 or 1":
        return (rng.random(shape) < truth).astype(float)
    if kind == "skewed":
        return rng.beta(1, (1 - truth) / truth, shape)
    return (rng.random(shape) < 2 * truth) * rng.beta(2, 2, shape)


@pytest.mark.parametrize("kind", ["0 or 1", "skewed", "mostly 0"])
@pytest.mark.parametrize("truth", [0.02, 0.1, 0.5, 0.98])
@pytest.mark.parametrize("pairs", [10, 50])
def test_intervals_hold_the_truth_from_ten_pairs_up(kind: str, truth: float, pairs: int) -> None:
    if kind == "mostly 0" and truth > 0.5:
        pytest.skip("a mean of a half is all it can have")
    features = 800
    ratio = torch.from_numpy(ratios(kind, truth, (pairs, features), seed=1))
    scores = statistics(ratio, 1 - ratio).scores(min_pairs=10)
    covered = ((scores.ci_low <= truth) & (truth <= scores.ci_high)).mean()
    assert 0.92 <= covered <= (0.995 if kind == "0 or 1" else 1)
    widths = scores.ci_high - scores.ci_low
    assert widths.min() > 0 and widths.mean() < 2.2 / pairs**0.5


def test_a_features_additional_pairs_do_not_depend_on_the_others_or_on_merging() -> None:
    image, text = activations(40, 5)
    whole = statistics(image, text, replicates=50)
    alone = statistics(image[:, :2], text[:, :2], replicates=50)
    np.testing.assert_allclose(whole.scores().ci_low[:2], alone.scores().ci_low, rtol=1e-9)
    merged = statistics(image[:1], text[:1], replicates=50)
    for pair in range(1, 40):
        merged.merge(
            statistics(image[pair : pair + 1], text[pair : pair + 1], replicates=50, start=pair)
        )
    for _ in range(2):  # asking does not add to them
        np.testing.assert_allclose(whole.scores().ci_high, merged.scores().ci_high, rtol=1e-9)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 30), seed=st.integers(0, 1000), density=st.floats(0.05, 1))
def test_intervals_hold_the_score_and_stay_in_bounds(n: int, seed: int, density: float) -> None:
    image, text = activations(n, 6, seed, density)
    scores = statistics(image, text, replicates=40).scores(min_pairs=1)
    known = np.isfinite(scores.mds)
    low, mds, high = (x[known] for x in (scores.ci_low, scores.mds, scores.ci_high))
    assert ((low >= 0) & (low <= mds) & (mds <= high) & (high <= 1) & (low < high)).all()


def test_weights_are_exponential_and_belong_to_the_pair() -> None:
    weights = bootstrap_weights(7, "a", 0, 4000, 50)
    assert weights.shape == (4000, 50)
    assert weights.min() > 0
    assert weights.mean() == pytest.approx(1, abs=0.01)
    assert weights.var() == pytest.approx(1, abs=0.02)
    assert weights.median() == pytest.approx(np.log(2), abs=0.01)
    assert torch.equal(bootstrap_weights(7, "a", 1500, 10, 50), weights[1500:1510])
    numbers = torch.tensor([3999, 0, 17, 2500, 17])
    assert torch.equal(bootstrap_weights_of(7, "a", numbers, 50), weights[numbers])
    late = 2**31 + 5
    assert torch.equal(
        bootstrap_weights_of(7, "a", torch.tensor([late]), 200),
        bootstrap_weights(7, "a", late, 1, 200),
    )
    assert not torch.equal(bootstrap_weights(7, "b", 0, 4000, 50), weights)
    assert not torch.equal(bootstrap_weights(8, "a", 0, 4000, 50), weights)


def test_the_interval_is_the_normal_one_on_many_pairs() -> None:
    image, text = activations(3000, 6, density=1.0)
    scores = statistics(image, text, replicates=400).scores()
    ratio = (image / (image + text)).double()
    half = 1.96 * (ratio.std(0) / 3000**0.5).numpy()
    np.testing.assert_allclose(scores.ci_high - scores.ci_low, 2 * half, rtol=0.2)
    assert ((scores.ci_low < scores.mds) & (scores.mds < scores.ci_high)).all()


def test_classes_of_the_paper() -> None:
    mds = np.array([0.5] * 8 + [0.95, 0.05, np.nan])
    low, high = mds - 0.01, mds + 0.01
    result = classify(mds, low, high)
    scored = mds[:-1]
    assert result.low == pytest.approx(scored.mean() - scored.std())
    assert result.high == pytest.approx(scored.mean() + scored.std())
    assert result.names.tolist() == ["CrossD"] * 8 + ["ImgD", "TextD", "unscored"]
    assert not result.uncertain.any()


def test_fixed_classes_and_uncertainty() -> None:
    mds = np.array([0.3, 0.7, 0.5, np.nan])
    low = np.array([0.2, 0.69, 0.4, np.nan])
    high = np.array([0.4, 0.71, 0.6, np.nan])
    result = classify(mds, low, high, "fixed")
    assert result.names.tolist() == ["TextD", "ImgD", "CrossD", "unscored"]
    assert result.uncertain.tolist() == [True, False, False, False]
    assert (result.low, result.high) == (1 / 3, 2 / 3)


def test_nothing_scored_and_unknown_rule() -> None:
    nothing = np.full(3, np.nan)
    assert set(classify(nothing, nothing, nothing).names) == {"unscored"}
    with pytest.raises(UserError, match="relative or fixed"):
        classify(nothing, nothing, nothing, "other")  # type: ignore[arg-type]
