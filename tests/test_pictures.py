"""Pairs that show the same picture are no independent samples."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from features.analysis.concepts import concept_support
from features.bootstrap import auroc_interval
from features.scores.active import ActivePairs
from features.scores.agreement import AgreementStatistics
from features.scores.dominance import DominanceStatistics
from features.scores.naming import NamingStatistics, name_features, naming_floor
from features.space.score import score
from features.store.content import content_key, picture_of
from features.store.pictures import Pictures, pictures_shown
from features.store.store import ActivationStore, StoreConfig
from features.store.write import sample_table, write_store
from tests.test_space import DIM, PAIRS, axes, embeddings


@pytest.mark.parametrize("made", ["PNG", "JPEG", "none"])
def test_a_key_says_which_picture_it_is_of(made: str) -> None:
    def key(seed: int, captions: list[str]) -> str:
        pixels = np.random.default_rng(seed).integers(0, 256, (9, 8, 3), np.uint8)
        file = io.BytesIO()
        if made != "none":
            Image.fromarray(pixels).save(file, made)
        return content_key(Image.fromarray(pixels), captions, file.getvalue() or None)

    first, same, other = key(0, ["a"]), key(0, ["b", "c"]), key(1, ["a"])
    assert len({first, same, other}) == 3
    assert picture_of(first) == picture_of(same) != picture_of(other)
    assert picture_of("a key of one's own") == "a key of one's own"


def contents(pictures: Sequence[int], pairs: Sequence[int]) -> list[str]:
    return [f"{a:016x}{b:016x}" for a, b in zip(pictures, pairs, strict=True)]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), max_size=20))
@settings(max_examples=60, deadline=None)
def test_pictures_are_those_of_a_literal_loop(pairs: list[tuple[int, int]]) -> None:
    images = np.array([image for image, _ in pairs], dtype=np.int64)
    both = np.array([10 * image + text for image, text in pairs], dtype=np.int64)
    shown = Pictures.of_keys(images, both).among(np.arange(len(pairs)))
    seen: dict[int, int] = {}
    for number, (image, _) in enumerate(pairs):
        assert int(shown.number[number]) == seen.setdefault(image, number)
        assert float(shown.share[number]) == 1 / sum(image == other for other, _ in pairs)
        assert bool(shown.new[number]) == (seen[image] == number)
        assert bool(shown.new_pair[number]) == (pairs[number] not in pairs[:number])


def stored(path: Path, times: int, *, texts: bool = True) -> ActivationStore:
    """The pairs of `make_store`, `times` over, their texts alike or each another pair's."""
    image, text = embeddings(0)
    captions = [[f"the {'red' if row % 2 else 'blue'} one"] for row in range(PAIRS)] * times
    all_texts = torch.cat([text if texts else text.roll(shift, 0) for shift in range(times)])
    return write_store(
        path,
        image.repeat(times, 1),
        all_texts,
        sample_table(
            [str(row) for row in range(times * PAIRS)],
            captions,
            contents=contents(
                [*range(PAIRS)] * times,
                [*range(PAIRS)] * times if texts else range(times * PAIRS),
            ),
        ),
        StoreConfig("tiny", "print of tiny", "squares", "pairs-print", DIM),
    )


def test_the_same_pairs_twice_say_no_more_than_once(tmp_path: Path) -> None:
    once, twice = (
        score(stored(tmp_path / str(times), times), axes(), progress=False) for times in (1, 2)
    )
    for name in once.features.column_names:
        ours, theirs = (space.features[name].to_pylist() for space in (twice, once))
        if name in ("active_pairs", "left_out"):
            assert ours == [2 * count for count in theirs]
        elif name.startswith(("embsim", "winrate", "agreement_floor", "name", "shared")):
            continue  # beside what chance gives, which is drawn anew
        elif isinstance(theirs[0], float):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6, err_msg=name)
        else:
            assert ours == theirs, name
    assert twice.exemplars["sample_id"].to_pylist() == once.exemplars["sample_id"].to_pylist()


@pytest.mark.parametrize("times", [2, 5])
def test_a_picture_with_several_captions_counts_once(tmp_path: Path, times: int) -> None:
    once = score(stored(tmp_path / "1", 1), axes(), progress=False)
    several = score(stored(tmp_path / "n", times, texts=False), axes(), progress=False)
    ours, theirs = (space.features["ms_image"].to_numpy() for space in (several, once))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    for rows in several.exemplars.to_pylist():
        if rows["modality"] == "image":
            assert int(rows["sample_id"]) < PAIRS


def test_few_pictures_are_few_pairs_however_many_captions_they_have() -> None:
    image = torch.rand(4, 3, generator=torch.Generator().manual_seed(0)).repeat(5, 1) + 0.1
    text = torch.rand(20, 3, generator=torch.Generator().manual_seed(1)) + 0.1
    keys = np.arange(20, dtype=np.int64)
    shown = Pictures.of_keys(keys % 4, keys).among(np.arange(20))
    active = ActivePairs.of(image, text)
    dominance = DominanceStatistics(3)
    dominance.add(active, shown)
    agreement = AgreementStatistics(dominance.means)
    agreement.add(active, agreement.weights_of(shown.number), shown)
    for found in (dominance.scores(5).mds, agreement.scores(5).agreement):
        assert np.isnan(found).all()
    for found in (dominance.scores(4).mds, agreement.scores(4).agreement):
        assert np.isfinite(found).all()


def test_intervals_hold_the_truth_where_pictures_have_five_captions() -> None:
    rng = np.random.default_rng(0)
    pictures, held = 20, []
    keys = np.arange(5 * pictures, dtype=np.int64)
    shown = Pictures.of_keys(keys % pictures, keys).among(np.arange(5 * pictures))
    for seed in range(60):
        lean = rng.beta(0.5, 0.5, size=(pictures, 8)).astype(np.float32)  # the image's share
        ratio = np.tile(lean, (5, 1))
        found = DominanceStatistics(8, seed=seed)
        found.add(ActivePairs.of(torch.from_numpy(ratio), torch.from_numpy(1 - ratio)), shown)
        scores = found.scores()
        held.append((scores.ci_low <= 0.5) & (scores.ci_high >= 0.5))
    assert np.mean(held) >= 0.92


def test_an_auroc_is_no_surer_of_samples_that_stand_there_five_times() -> None:
    rng = np.random.default_rng(1)
    truth = rng.random(60) < 0.5
    scores = rng.normal(size=60) + truth
    once = auroc_interval(truth, scores)
    groups = np.repeat(np.arange(60), 5)
    five = auroc_interval(truth.repeat(5), scores.repeat(5), groups=groups)
    assert five == pytest.approx(once, abs=1e-9)
    assert auroc_interval(truth.repeat(5), scores.repeat(5))[0] > once[0] + 0.03


def test_a_picture_that_is_in_every_fold_supports_nothing(tmp_path: Path) -> None:
    """An attribute without meaning, of pictures that have five captions each."""
    generator = torch.Generator().manual_seed(0)
    image = F.normalize(torch.rand(50, DIM, generator=generator), dim=1).repeat(5, 1)
    text = F.normalize(torch.rand(250, DIM, generator=generator), dim=1)
    lucky = np.random.default_rng(0).random((50, 6)) < 0.5
    attributes = [
        {f"lucky {n}": "yes" if lucky[row % 50, n] else None for n in range(6)}
        for row in range(250)
    ]
    store = write_store(
        tmp_path / "store",
        image,
        text,
        sample_table(
            [str(row) for row in range(250)],
            [["a cat"]] * 250,
            attributes=attributes,
            contents=contents([*range(50)] * 5, range(250)),
        ),
        StoreConfig("tiny", "print of tiny", "squares", "pairs-print", DIM),
    )
    assert len(np.unique(pictures_shown(store, np.arange(250)))) == 50
    space = score(store, axes(), progress=False)
    concepts = [f"lucky {n}: yes" for n in range(6)]
    found = concept_support(space, store, concepts, progress=False)
    supports = [concept.support["image"] for concept in found if concept.support]
    assert 0.35 < np.mean([support.auroc for support in supports]) < 0.65
    assert np.mean([support.high - support.low for support in supports]) > 0.25
    assert {concept.verdict for concept in found} <= {"both", "too few pairs to say"}


def chance_pairs(per: int, seed: int) -> tuple[Pictures, torch.Tensor, np.ndarray, np.ndarray]:
    """100 pictures of so many pairs each, in a random order: their numbers, and activations of
    images and of texts `[pairs, 200]` that go with the picture and not with each other."""
    rng = np.random.default_rng(seed)
    keys = np.repeat(np.arange(100), per)
    image, text = (np.maximum(rng.normal(size=(100, 200)) - 0.5, 0)[keys] for _ in range(2))
    order = rng.permutation(len(keys))
    return Pictures.of_keys(keys, np.arange(len(keys))), torch.from_numpy(order), image, text


@pytest.mark.parametrize("per", [1, 2, 5])
def test_images_and_texts_agree_by_chance_no_more_often_where_pictures_repeat(per: int) -> None:
    shared = []
    for seed in range(3):
        pictures, order, image, text = chance_pairs(per, seed)
        active = ActivePairs.of(torch.from_numpy(image)[order], torch.from_numpy(text)[order])
        found = AgreementStatistics(torch.from_numpy(np.stack([image.mean(0), text.mean(0)])))
        shown = pictures.among(order)
        found.add(active, found.weights_of(shown.number), shown)
        found.add_chance(active, shown)
        shared.append(found.scores().shared)
    assert np.mean(shared) < 0.08


@pytest.mark.parametrize("per", [1, 2, 5])
def test_names_come_by_chance_no_more_often_where_pictures_repeat(per: int) -> None:
    pictures, order, image, _ = chance_pairs(per, 0)
    rng = np.random.default_rng(1)
    words = [" ".join(f"w{n}" for n in rng.integers(60, size=4)) for _ in range(100)]
    samples = sample_table(
        [str(row) for row in range(100 * per)], [[words[row // per]] for row in range(100 * per)]
    )
    terms = [f"w{n}" for n in range(60)]
    activations, share = torch.from_numpy(image), np.full(200, 0.9)
    real, chance = (NamingStatistics(200, terms) for _ in range(2))
    real.update(activations, activations, samples)
    chance.update(activations[order], activations[order], samples)
    effect = pictures.design_effect(100 * per)
    assert effect == per
    floor = naming_floor(chance, share, effect)
    named = [name != "" for name in name_features(real, share, ["ImgD"] * 200, floor).names]
    assert np.mean(named) < 0.1
