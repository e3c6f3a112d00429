"""The embedded world: held-out combinations, planted factors, the pair source."""

import random
from collections import Counter

import numpy as np
import pytest

from features.embedded.build_pairs import role_of
from features.embedded.world import (
    BACKGROUNDS,
    REGISTERS,
    EmbeddedPairs,
    PlantedFactors,
    caption,
    render,
)
from features.errors import UserError
from features.pairs.open import open_pairs


@pytest.fixture(scope="module")
def world() -> EmbeddedPairs:
    return EmbeddedPairs()


def test_counts(world: EmbeddedPairs) -> None:
    splits = Counter(row["split"] for row in world.rows)
    assert splits == {"train": 3467, "heldout": 319}
    assert world.total() == 3786
    assert sum(part.stop - part.start for part in world.parts()) == 3786


def test_no_held_out_combination_is_trained_on() -> None:
    def combinations(split: str) -> set[tuple[str, str, str]]:
        return {(r["role"], r["gender"], r["skin_tone"]) for r in EmbeddedPairs(split).rows}

    assert not combinations("heldout") & combinations("train")


def test_held_out_roles_keep_every_gender_and_tone_in_training() -> None:
    train = EmbeddedPairs("train").rows
    seen = {(r["role"], r["gender"]) for r in train} | {(r["role"], r["skin_tone"]) for r in train}
    for row in EmbeddedPairs("heldout").rows:
        assert (row["role"], row["gender"]) in seen
        assert (row["role"], row["skin_tone"]) in seen


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("woman walking: dark skin tone, facing right", "walking"),
        ("man judge", "judge"),
        ("judge: medium-dark skin tone", "judge"),
        ("person: light skin tone", "adult"),
        ("people holding hands", "holding hands"),
        ("woman: medium skin tone, curly hair", "curly hair"),
    ],
)
def test_role_leaves_out_gender_tone_and_direction(name: str, role: str) -> None:
    assert role_of(name) == role


def test_a_pair_is_the_same_every_time_and_differs_by_draw(world: EmbeddedPairs) -> None:
    again, other = EmbeddedPairs().pair(100), EmbeddedPairs(draw_seed=1).pair(100)
    pair = world.pair(100)
    assert pair.captions == again.captions
    assert np.array_equal(pair.image, again.image)
    assert not np.array_equal(pair.image, other.image)


def test_planted_factors_are_independent_of_each_other(world: EmbeddedPairs) -> None:
    joint = Counter((f.background, f.register) for f in map(world.factors, range(world.total())))
    expected = world.total() / len(BACKGROUNDS) / len(REGISTERS)
    chi_square = sum((count - expected) ** 2 / expected for count in joint.values())
    assert len(joint) == len(BACKGROUNDS) * len(REGISTERS)
    assert chi_square < 75  # the 0.995 quantile with 47 degrees of freedom


def test_planted_factors_show_in_one_modality_only(world: EmbeddedPairs) -> None:
    factors = PlantedFactors.draw(random.Random(0))
    text = caption("judge", factors)
    assert "judge" in text
    assert not any(word in text.split() for word in (*BACKGROUNDS, "stripes", "dots", "checks"))
    image = np.asarray(render(world.drawing(0), factors))
    assert image.shape == (64, 64, 3)
    colour = np.add(BACKGROUNDS[factors.background], factors.tint)
    brightest = image.reshape(-1, 3).astype(int)
    assert (np.abs(brightest - colour).max(axis=1) <= 2).any()


def test_images_by_location(world: EmbeddedPairs) -> None:
    pair = world.pair(5)
    found = dict(world.images([pair.location, "no such emoji"]))
    assert list(found) == [pair.location]
    assert np.array_equal(found[pair.location], pair.image)


def test_bare_names_on_white_without_planting() -> None:
    pair = EmbeddedPairs(planted=False).pair(0)
    assert pair.captions == ("keycap: #",)
    assert "background" not in pair.attributes
    assert pair.image.getpixel((0, 0)) == (255, 255, 255)


def test_splits_by_name() -> None:
    assert open_pairs("embedded:heldout").total() == 319
    with pytest.raises(UserError, match="no such split"):
        open_pairs("embedded:test")


def test_fingerprint_follows_the_settings(world: EmbeddedPairs) -> None:
    prints = {world.fingerprint(), EmbeddedPairs("train").fingerprint()}
    prints |= {EmbeddedPairs(draw_seed=1).fingerprint(), EmbeddedPairs().fingerprint()}
    assert len(prints) == 3
