"""Agreement against literal loops, merging, intervals, its floor, and what MDS cannot see."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from features.scores.agreement import PERMUTATIONS, Agreement, AgreementStatistics
from features.scores.dominance import DominanceStatistics

FIELDS = ("agreement", "ci_low", "ci_high", "floor")


def drawn(n: int, features: int, seed: int = 0, density: float = 0.3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, n, features)
    values = torch.randint(1, 5, shape, generator=generator).double()
    image, text = values * (torch.rand(shape, generator=generator) < density)
    return image, text


def means(image: Tensor, text: Tensor) -> Tensor:
    found = DominanceStatistics(image.shape[1], replicates=1)
    found.update(image, text)
    return found.means


def statistics(image: Tensor, text: Tensor, batch: int = 1000, **options) -> AgreementStatistics:  # type: ignore[no-untyped-def]
    options = {"means": means(image, text), "replicates": 30} | options
    found = AgreementStatistics(options.pop("means"), **options)
    for i, t in zip(image.split(batch), text.split(batch), strict=True):
        found.update(i, t)
    order = torch.randperm(len(image), generator=torch.Generator().manual_seed(0))
    found.update_chance(image[order], text[order])
    return found


def test_it_is_a_literal_double_loop() -> None:
    image, text = drawn(50, 6)
    image[:, 3] *= -1  # signs don't matter
    text[:, 4] = 0  # images alone drive it
    image[:, 5] = 3 * text[:, 5]  # the scale of a modality doesn't matter
    scores = statistics(image, text).scores(min_pairs=1)
    for k in range(6):
        a, b = image[:, k].abs().tolist(), text[:, k].abs().tolist()
        mean_a, mean_b = sum(a) / 50, sum(b) / 50
        least = greatest = 0.0
        for m in range(50):
            u = a[m] / mean_a if mean_a else 0.0
            v = b[m] / mean_b if mean_b else 0.0
            least, greatest = least + min(u, v), greatest + max(u, v)
        assert scores.agreement[k] == pytest.approx(least / greatest, rel=1e-12)
    assert scores.agreement[4] == 0
    assert scores.agreement[5] == pytest.approx(1)


def test_the_floor_is_the_quantile_over_literal_permutations() -> None:
    image, text = drawn(60, 3)
    found = AgreementStatistics(means(image, text))
    found.update(image, text)
    found.update_chance(image, text)
    scores = found.scores(min_pairs=1)
    u, v = (a / a.mean(0) for a in (image, text))
    chance = []
    for shift in range(1, PERMUTATIONS + 1):
        other = torch.stack([v[(m - shift) % 60] for m in range(60)])
        chance.append((torch.minimum(u, other).sum(0) / torch.maximum(u, other).sum(0)).numpy())
    np.testing.assert_allclose(scores.floor, np.quantile(chance, 0.975, axis=0), rtol=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(2, 40),
    cuts=st.lists(st.integers(0, 40), max_size=3),
    seed=st.integers(0, 1000),
    batch=st.integers(1, 50),
    order=st.randoms(use_true_random=False),
)
def test_merging_in_any_order_equals_one_pass(  # type: ignore[no-untyped-def]
    n: int, cuts: list[int], seed: int, batch: int, order
) -> None:
    image, text = drawn(n, 4, seed)
    known = means(image, text)
    whole = AgreementStatistics(known, seed=seed, replicates=20)
    whole.update(image, text)
    whole.update_chance(image, text)
    bounds = sorted({0, n, *(min(c, n) for c in cuts)})
    parts = []
    for a, b in pairwise(bounds):
        part = AgreementStatistics(known, seed=seed, replicates=20, start=a)
        for i, t in zip(image[a:b].split(batch), text[a:b].split(batch), strict=True):
            part.update(i, t)
        parts.append(part)
    parts[0].update_chance(image, text)
    order.shuffle(parts)
    merged = parts[0]
    for part in parts[1:]:
        merged.merge(part)
    for field in FIELDS:
        np.testing.assert_allclose(
            getattr(whole.scores(1), field),
            getattr(merged.scores(1), field),
            rtol=1e-9,
            atol=1e-12,
            err_msg=field,
        )


def test_merging_refuses_other_means() -> None:
    with pytest.raises(ValueError, match="means"):
        AgreementStatistics(torch.ones(2, 3)).merge(AgreementStatistics(torch.full((2, 3), 2.0)))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 30), seed=st.integers(0, 1000), density=st.floats(0.05, 1))
def test_bounds_and_symmetry(n: int, seed: int, density: float) -> None:
    image, text = drawn(n, 5, seed, density)
    scores = statistics(image, text).scores(min_pairs=1)
    swapped = statistics(7 * text, image).scores(min_pairs=1)
    known = np.isfinite(scores.agreement)
    assert (known == ((image + text) > 0).any(0).numpy()).all()
    low, value, high = (getattr(scores, f)[known] for f in ("ci_low", "agreement", "ci_high"))
    assert ((low >= 0) & (value >= 0) & (value <= 1) & (high <= 1 + 1e-9) & (low < high)).all()
    np.testing.assert_allclose(swapped.agreement[known], value, rtol=1e-9, atol=1e-12)


def test_few_pairs_are_unscored() -> None:
    image, text = torch.zeros(30, 2), torch.zeros(30, 2)
    image[:9, 0] = text[:9, 0] = 1
    image[:10, 1] = text[:10, 1] = 1
    scores = statistics(image, text).scores(min_pairs=10)
    assert np.isnan([scores.agreement[0], scores.ci_low[0], scores.floor[0]]).all()
    assert scores.agreement[1] == pytest.approx(1)
    assert not scores.shared[0] and not scores.uncertain[0] and scores.shared[1]
    nothing = np.full(2, np.nan)
    assert np.isnan(Agreement(nothing, nothing, nothing, nothing).mean_floor)


def test_it_tells_apart_what_mds_calls_balanced() -> None:
    """Two features alike to MDS: images and texts drive one in the same pairs, the other here and
    there."""
    generator = torch.Generator().manual_seed(0)
    n = 600
    active = torch.rand(n, generator=generator) < 0.2
    turn = torch.arange(n) % 2 == 0
    image, text = (0.5 + torch.rand(n, 2, generator=generator) for _ in range(2))
    image[:, 0] *= active
    text[:, 0] *= active
    image[:, 1] *= active & turn
    text[:, 1] *= active & ~turn
    dominance = DominanceStatistics(2)
    dominance.update(image, text)
    np.testing.assert_allclose(dominance.scores().mds, 0.5, atol=0.1)
    scores = statistics(image, text, replicates=200).scores()
    assert scores.shared.tolist() == [True, False]
    assert scores.ci_low[0] > 0.5 and scores.ci_high[1] < 0.1
    assert not scores.uncertain[0]


def population(kind: str, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    def gamma() -> np.ndarray:
        return rng.gamma(2, 1, n)

    if kind == "shared":
        common = gamma()
        return common * rng.gamma(5, 0.2, n), common * rng.gamma(5, 0.2, n)
    place = rng.random(n)
    image = place < (0.53 if kind == "few in both" else 0.65)
    text = place > (0.47 if kind == "few in both" else 0.35)
    return gamma() * image, gamma() * text


@pytest.mark.parametrize("kind", ["shared", "some in both", "few in both"])
@pytest.mark.parametrize("pairs", [12, 60])
def test_intervals_hold_the_populations_agreement(kind: str, pairs: int) -> None:
    rng = np.random.default_rng(0)
    a, b = population(kind, 400_000, rng)
    u, v = a / a.mean(), b / b.mean()
    truth = np.minimum(u, v).sum() / np.maximum(u, v).sum()
    features = 400
    image, text = (
        torch.from_numpy(np.stack(side, axis=1))
        for side in zip(*(population(kind, pairs, rng) for _ in range(features)), strict=True)
    )
    scores = statistics(image, text, replicates=200).scores(min_pairs=1)
    covered = ((scores.ci_low <= truth) & (truth <= scores.ci_high)).mean()
    assert covered >= 0.92
    assert (scores.ci_high - scores.ci_low).mean() < 2 / pairs**0.5


@pytest.mark.parametrize(("pairs", "density"), [(2, 1.0), (7, 0.5), (60, 0.1), (60, 1.0)])
def test_the_floor_pairs_images_with_the_texts_before(pairs: int, density: float) -> None:
    generator = torch.Generator().manual_seed(pairs)
    size = (2, pairs, 300)  # more features than are taken together
    kept = torch.rand(size, generator=generator) < density
    image, text = torch.rand(size, generator=generator).double() * kept
    found = AgreementStatistics(torch.stack([image.mean(0), text.mean(0)]))
    found.update_chance(image, text)
    u, v = (a / a.mean(0).clamp(min=1e-300) for a in (image, text))
    for permutation in range(PERMUTATIONS):
        other = v.roll(1 + permutation % (pairs - 1), dims=0)
        least, greatest = torch.minimum(u, other).sum(0), torch.maximum(u, other).sum(0)
        torch.testing.assert_close(found.chance_least[permutation], least)
        torch.testing.assert_close(found.chance_greatest[permutation], greatest)
