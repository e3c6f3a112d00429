"""Edits of features: what they do to embeddings, their bounds, and how they are kept."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from features.embedded.world import EmbeddedPairs
from features.errors import UserError
from features.space.score import score
from features.space.space import FeatureSpace
from mms_apps.steering.choosing import as_edits, between, choose, features_of
from mms_apps.steering.edits import Blend, Edit, Steering, mean_active
from tests.test_space import axes, make_store

DIM = 16


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> FeatureSpace:
    store = make_store(tmp_path_factory.mktemp("stores") / "store")
    return score(store, axes(), progress=False)


@pytest.fixture(scope="module")
def embedded() -> FeatureSpace:
    return FeatureSpace.load("embedded-ssl", device="cpu")


def raw(n: int, seed: int = 0) -> torch.Tensor:
    """Embeddings of length 3."""
    generator = torch.Generator().manual_seed(seed)
    return 3 * F.normalize(torch.randn(n, DIM, generator=generator), dim=1)


def test_add_moves_along_the_row_by_the_mean_activation(space: FeatureSpace) -> None:
    x = raw(4)
    steered = Steering((Edit(2, 1.5),)).apply(space, x)
    for before, after in zip(x, steered.embedding, strict=True):
        moved = (before / 3).clone()
        moved[2] += 1.5 * float(mean_active(space, "image")[2])
        torch.testing.assert_close(after, 3 * moved / moved.norm())
        angle = math.degrees(math.acos(float(F.cosine_similarity(before, after, dim=0))))
        assert angle <= 60
    assert (steered.scale == 1).all()


def test_set_and_remove_give_the_activation_that_was_asked(space: FeatureSpace) -> None:
    x = torch.zeros(1, DIM)
    x[0, 2], x[0, 3], x[0, 9] = 0.6, 0.5, 0.4
    change = Steering((Edit(2, 2.0, "set"), Edit(3, mode="remove"))).change(
        space, F.normalize(x, dim=1), "image"
    )
    now = space.encode_images(x)
    assert float(now[0, 2] + change[0, 2]) == pytest.approx(
        2 * float(mean_active(space, "image")[2])
    )
    assert float(now[0, 3] + change[0, 3]) == pytest.approx(0)
    assert (change[0, [i for i in range(DIM) if i not in (2, 3)]] == 0).all()


def test_what_the_dictionary_misses_is_kept(space: FeatureSpace) -> None:
    x = F.normalize(raw(3), dim=1)
    activations = space.encode_images(x)
    error = x - space.decode(activations, "image")
    steering = Steering((Edit(4, 0.5),))
    moved = activations + steering.change(space, x, "image")
    expected = F.normalize(space.decode(moved, "image") + error, dim=1)
    torch.testing.assert_close(steering.apply(space, x).embedding, expected)


@given(
    strengths=st.lists(st.floats(-50, 50), min_size=1, max_size=3),
    bound=st.floats(1, 180),
    seed=st.integers(0, 50),
)
@settings(max_examples=40, deadline=None)
def test_length_and_drift_stay_in_their_bounds(
    space: FeatureSpace, strengths: list[float], bound: float, seed: int
) -> None:
    x = raw(3, seed)
    edits = tuple(Edit(2 + place, strength) for place, strength in enumerate(strengths))
    steered = Steering(edits, max_drift=bound).apply(space, x)
    torch.testing.assert_close(steered.embedding.norm(dim=1), torch.full((3,), 3.0))
    assert (steered.drift <= bound + 0.1).all()
    assert ((steered.scale >= 0) & (steered.scale <= 1)).all()


def test_no_edit_changes_nothing(space: FeatureSpace) -> None:
    x = raw(3)
    torch.testing.assert_close(Steering().apply(space, x).embedding, x)
    torch.testing.assert_close(Steering((Edit(2, 0.0),)).apply(space, x).embedding, x)


def test_a_blend_changes_its_class_alone(embedded: FeatureSpace) -> None:
    x = embedded.encoder.encode_texts(["a picture of cat", "a picture of woman"]).clone()
    for modality_class in ("ImgD", "TextD", "CrossD"):
        blend = Blend(modality_class, alpha=0.5, rule="fixed")
        change = Steering(blends=(blend,), prompt="dog face").change(embedded, x, "text")
        chosen = embedded.select(modality_class, rule="fixed")
        others = torch.ones(len(embedded), dtype=torch.bool)
        others[chosen] = False
        assert (change[:, others] == 0).all()
        if modality_class != "ImgD":
            assert (change[:, chosen] != 0).any()
    whole = Steering(blends=(Blend("CrossD", 1.0, "fixed"),), prompt="dog face")
    chosen = embedded.select("CrossD", rule="fixed")
    after = embedded.encode_texts(x) + whole.change(embedded, x, "text")
    towards = embedded.encode_texts(["dog face"])
    torch.testing.assert_close(after[:, chosen], towards[:, chosen].expand(2, -1))


def test_saved_edits_come_back_and_belong_to_their_space(
    space: FeatureSpace, embedded: FeatureSpace, tmp_path: Path
) -> None:
    steering = Steering(
        (Edit(2, 1.5), Edit(3, mode="remove")), (Blend("CrossD", 0.3),), "a cat", 0.1, 0.8, 45.0
    )
    steering.save(tmp_path / "edits.json", space)
    assert Steering.load(tmp_path / "edits.json", space) == steering
    with pytest.raises(UserError, match="another FeatureSpace"):
        Steering.load(tmp_path / "edits.json", embedded)
    record = json.loads((tmp_path / "edits.json").read_text())
    for spoilt in ({}, record | {"edits": [{"size": 3}]}, [1]):
        (tmp_path / "spoilt.json").write_text(json.dumps(spoilt))
        with pytest.raises(UserError, match="saved edits"):
            Steering.load(tmp_path / "spoilt.json", space)
    (tmp_path / "spoilt.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        Steering.load(tmp_path / "spoilt.json", space)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"edits": (Edit(1, mode="push"),)}, "unknown mode"),  # type: ignore[arg-type]
        ({"edits": (Edit(1, math.nan),)}, "finite"),
        ({"blends": (Blend("ImgD"),)}, "needs a prompt"),
        ({"blends": (Blend("Img"),), "prompt": "x"}, "unknown class"),
        ({"begin": 0.5, "end": 0.5}, "before end"),
        ({"max_drift": 0}, "degrees"),
    ],
)
def test_values_out_of_range_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Steering(**wrong)


def test_features_and_dimensions_that_the_space_lacks_are_refused(space: FeatureSpace) -> None:
    with pytest.raises(UserError, match="features 0 to 15"):
        Steering((Edit(16),)).apply(space, raw(1))
    with pytest.raises(UserError, match=r"takes \[n, 16\]"):
        Steering((Edit(1),)).apply(space, torch.zeros(1, 8))


def test_words_choose_features_that_answer_to_them(embedded: FeatureSpace) -> None:
    choices = choose(embedded, "more woman, less dark skin tone", strength=2.0)
    assert [choice.word for choice in choices] == sorted(
        (choice.word for choice in choices), key=["woman", "dark skin tone"].index
    )
    signs = {choice.word: np.sign(choice.strength) for choice in choices}
    assert signs == {"woman": 1, "dark skin tone": -1}
    assert [edit.feature for edit in as_edits(choices)] == [c.feature for c in choices]
    source = EmbeddedPairs("heldout")
    pairs = [source.pair(index) for index in range(len(source.rows))]
    shown = [p for p in pairs if p.attributes["gender"] in ("woman", "man")]
    activations = embedded.encode_images([pair.image for pair in shown])
    women = torch.tensor([pair.attributes["gender"] == "woman" for pair in shown])
    for best, how in features_of(embedded, "woman"):
        assert how == "name"
        assert activations[women, best].mean() > activations[~women, best].mean()
    for feature, how in features_of(embedded, "light skin tone"):
        assert how == "name" and "skin_tone: light" in embedded.features["name"][feature].as_py()
    [first, *_] = features_of(embedded, "zzz unheard of")
    assert first[1] == "text"
    with pytest.raises(UserError, match="no words"):
        choose(embedded, " , ")


def test_examples_choose_the_features_in_which_they_differ(space: FeatureSpace) -> None:
    source, target = torch.zeros(6, DIM), torch.zeros(6, DIM)
    source[:, 3], target[:, 5] = 1.0, 1.0
    source[:, 7] = target[:, 7] = 0.2
    edits = between(space, F.normalize(source, dim=1), F.normalize(target, dim=1), taken=2)
    assert {edit.feature for edit in edits} == {3, 5}
    assert {edit.feature: np.sign(edit.strength) for edit in edits} == {3: -1, 5: 1}
    moved = Steering(edits).apply(space, F.normalize(source, dim=1)).embedding
    assert F.cosine_similarity(moved, target).min() > F.cosine_similarity(source, target).max()
    with pytest.raises(UserError, match="no samples"):
        between(space, source[:0], target)
