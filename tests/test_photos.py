"""The world of photographs: what is in it, who may see what, and its encoder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from features.embedded.build_photos import garment_text
from features.embedded.photos import HALVES, SPLITS, PhotoPairs
from features.encoders.load import load_encoder
from features.errors import UserError
from features.pairs.base import Pair
from features.pairs.open import open_pairs
from features.space.space import FeatureSpace


@pytest.fixture(scope="module")
def world() -> PhotoPairs:
    return PhotoPairs()


def test_the_splits_share_no_picture_and_are_of_their_kinds(world: PhotoPairs) -> None:
    assert Counter(row["split"] for row in world.rows)["heldout"] == 150
    by_split = {name: PhotoPairs(name).rows for name in SPLITS}
    assert sum(map(len, by_split.values())) == world.total()
    pictures = [row["image"] for row in world.rows if row["kind"] != "garment"]
    assert len(set(pictures)) == len(pictures)
    kinds = {name: {row["kind"] for row in rows} for name, rows in by_split.items()}
    assert kinds == {
        "train": {"textbook"},
        "heldout": {"textbook"},
        "scored": {"textbook", "dish"},
        "garments": {"garment"},
    }


def test_every_picture_keeps_its_licence_and_textbooks_their_credit(world: PhotoPairs) -> None:
    for row in world.rows:
        assert row["licence"] and row["source"] and row["text"]
        if row["kind"] == "textbook":
            assert row["credit"] and row["context"]
        if row["kind"] == "garment":
            assert row["label"] and row["sender"] and row["kids"] in ("adult", "child")


def test_pairs_are_read_found_and_described_alike() -> None:
    source = open_pairs("photos:heldout")
    (part,) = source.parts()
    pairs = [pair for pair in source.read(part) if isinstance(pair, Pair)]
    assert len(pairs) == source.total() == 150
    first = pairs[0]
    assert first.image.mode == "RGB" and min(first.image.size) > 100
    assert first.attributes["credit"] and first.captions != (first.attributes["context"],)
    found = dict(source.images([first.location, "nowhere"]))
    assert list(found) == [first.location]
    assert found[first.location].tobytes() == first.image.tobytes()


def test_the_other_text_is_another_source_of_the_same_pictures() -> None:
    alt, context = PhotoPairs("heldout"), PhotoPairs("heldout", "context")
    assert [row["id"] for row in alt.rows] == [row["id"] for row in context.rows]
    assert context.described(3).captions == (alt.described(3).attributes["context"],)
    assert alt.fingerprint() != context.fingerprint() != PhotoPairs("train").fingerprint()


def test_an_unknown_split_is_refused_and_a_folder_of_that_name_is_read(
    imagefolder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="no such split; use photos, photos:train"):
        open_pairs("photos:validation")
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_pairs("photos"), PhotoPairs)
    (tmp_path / "photos").symlink_to(imagefolder)
    assert not isinstance(open_pairs("photos"), PhotoPairs)


@pytest.mark.parametrize(
    ("label", "kids", "text"),
    [
        ("T-Shirt", "child", "a t-shirt for a child"),
        ("Outwear", "adult", "an outwear for an adult"),
    ],
)
def test_garments_are_called_by_their_label(label: str, kids: str, text: str) -> None:
    assert garment_text(label, kids) == text


def test_the_encoder_finds_pictures_that_it_never_saw() -> None:
    encoder = load_encoder("photos", device="cpu")
    assert encoder.id == "photos" and encoder.dim == 256
    source = PhotoPairs("heldout")
    rows = range(0, 150, 5)
    images = encoder.encode_images([source.image(row) for row in rows])
    texts = encoder.encode_texts([source.described(row).captions[0] for row in rows])
    own = (images @ texts.T).argsort(dim=1, descending=True)[:, :5]
    hits = (own == torch.arange(len(rows))[:, None]).any(dim=1)
    assert hits.float().mean() > 0.6


def test_the_space_is_scored_on_pictures_that_the_heads_never_saw() -> None:
    space = FeatureSpace.load("photos", device="cpu")
    assert space.config.encoder == "photos" and len(space) == 256
    assert space.config.pairs == "photos:scored"
    names = space.features["name"].to_pylist()
    assert not any(word in name for name in names if name for word in ("licence", "credit", ":"))
    source = PhotoPairs("heldout")
    assert space.encode_images([source.image(0)]).shape == (1, 256)
    assert space.config.illustrated == "photos:train+scored"
    held_out = {row["id"] for row in source.rows}
    shown = space.exemplars.to_pylist()
    assert not held_out & {row["sample_id"] for row in shown}
    by_id = {row["id"]: row for row in PhotoPairs().rows}
    for row in shown:
        assert (row["credit"], row["licence"]) == tuple(
            by_id[row["sample_id"]][key] for key in ("credit", "licence")
        )


def test_several_splits_are_one_source() -> None:
    both = open_pairs("photos:train+heldout")
    assert both.total() == sum(len(PhotoPairs(name).rows) for name in ("train", "heldout"))
    with pytest.raises(UserError, match="no such split"):
        open_pairs("photos:train+validation")


def test_no_photographer_is_in_both_halves_of_the_garments() -> None:
    halves = [PhotoPairs(name) for name in HALVES]
    people = [{row["sender"] for row in half.rows} for half in halves]
    assert not people[0] & people[1]
    rows = [row["id"] for half in halves for row in half.rows]
    assert sorted(rows) == sorted(row["id"] for row in PhotoPairs("garments").rows)
    assert open_pairs("photos:garments-test").total() == len(halves[1].rows) > 200
    assert {row["label"] for row in halves[1].rows} == {row["label"] for row in halves[0].rows}


def test_the_space_of_garments_knows_none_of_the_test_photographers() -> None:
    space = FeatureSpace.load("garments", device="cpu")
    assert (space.config.encoder, space.config.pairs) == ("photos", "photos:garments-train")
    tested = {row["id"] for row in PhotoPairs("garments-test").rows}
    assert not tested & set(space.exemplars["sample_id"].to_pylist())
    assert not any(":" in name for name in space.features["name"].to_pylist())
