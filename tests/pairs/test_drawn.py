"""Pairs that are drawn from a source, and their halves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.embedded.world import EmbeddedPairs
from features.encoders.load import load_encoder
from features.pairs.base import Described
from features.pairs.drawn import DrawnPairs, draw_pairs, halves
from features.pairs.open import open_pairs
from features.store.extract import extract


@settings(deadline=None)
@given(count=st.integers(1, 900), seed=st.integers(0, 3))
def test_as_many_as_asked_for_each_once_and_the_same_again(count: int, seed: int) -> None:
    source = EmbeddedPairs("heldout")
    drawn = draw_pairs(source, count, seed)
    ids = [one.id for one in drawn.described]
    assert len(set(ids)) == len(ids) == min(count, source.total())
    assert draw_pairs(source, count, seed).described == drawn.described
    assert {one.id for part in drawn.parts() for one in drawn.describe(part)} == set(ids)


def test_all_records_have_the_same_chance() -> None:
    source = EmbeddedPairs("heldout")
    last = source.rows[-1]["id"]
    half = source.total() // 2
    hits = sum(last in {o.id for o in draw_pairs(source, half, n).described} for n in range(200))
    assert 70 <= hits <= 130  # 100 are expected, of standard deviation 7


def test_another_draw_has_another_fingerprint() -> None:
    source = EmbeddedPairs("heldout")
    prints = {draw_pairs(source, 50, seed).fingerprint() for seed in (0, 1, 1)}
    assert len(prints) == 2
    assert source.fingerprint() not in prints


@settings(deadline=None)
@given(locations=st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=30))
def test_halves_share_no_image(locations: list[str]) -> None:
    described = [Described(str(n), ("",), {}, place) for n, place in enumerate(locations)]
    first, second = halves(DrawnPairs(EmbeddedPairs("heldout"), described))
    assert sorted(first.described + second.described, key=lambda one: int(one.id)) == described
    places = [{one.location for one in half.described} for half in (first, second)]
    assert not places[0] & places[1]
    assert abs(len(places[0]) - len(places[1])) <= 1


@pytest.mark.parametrize("count", [1, 7, 100])
def test_a_store_holds_the_drawn_pairs_alone(
    imagefolder: Path, clip_folder: Path, tmp_path: Path, count: int
) -> None:
    drawn = draw_pairs(open_pairs(str(imagefolder)), count)
    encoder = load_encoder(f"local-dir:{clip_folder}", device="cpu")
    store = extract(drawn, encoder, tmp_path, progress=False, workers=0)
    wanted = {one.id for one in drawn.described}
    assert len(store) == min(count, len((imagefolder / "metadata.jsonl").read_text().splitlines()))
    assert set(store.samples()["id"].to_pylist()) == wanted
    assert store.config.skipped == 0
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["pairs_fingerprint"] == drawn.fingerprint()
