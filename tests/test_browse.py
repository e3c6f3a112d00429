"""Finding features by words, class and scores, and describing them."""

from __future__ import annotations

import numpy as np
import pytest

from features.analysis.search import (
    Filter,
    describe,
    exemplars,
    find,
    monosemanticity,
    similarities,
)
from features.errors import UserError
from features.space.space import FeatureSpace


@pytest.fixture(scope="module")
def space() -> FeatureSpace:
    return FeatureSpace.load("embedded", device="cpu")


def test_filters_keep_what_they_say(space: FeatureSpace) -> None:
    rows = space.features.to_pylist()
    scores = monosemanticity(space)
    assert sorted(find(space, Filter())) == list(range(len(space)))
    found = find(space, Filter(modality_class="CrossD", min_mds=0.4, max_mds=0.6))
    assert found and set(found) == {
        row["feature"] for row in rows if row["class"] == "CrossD" and 0.4 <= row["mds"] <= 0.6
    }
    found = find(space, Filter(shared=False, min_agreement=0.01))
    assert set(found) == {
        row["feature"] for row in rows if not row["shared"] and row["agreement"] >= 0.01
    }
    found = find(space, Filter(modality_class="CrossD", shared=True))
    assert found and all(rows[n]["shared"] and rows[n]["class"] == "CrossD" for n in found)
    found = find(space, Filter(min_monosemanticity=0.5))
    assert found and set(found) == set(np.flatnonzero(scores >= 0.5).tolist())


def test_orders_put_unscored_features_last(space: FeatureSpace) -> None:
    mds = space.features["mds"].to_numpy()
    scores = monosemanticity(space)
    agreement = space.features["agreement"].to_numpy()
    for order, key in (
        ("image", -mds),
        ("text", mds),
        ("monosemanticity", -scores),
        ("agreement", -agreement),
    ):
        found = find(space, Filter(), order)  # type: ignore[arg-type]
        scored = [n for n in found if np.isfinite(mds[n])]
        assert found[: len(scored)] == scored
        assert list(key[scored]) == sorted(key[scored])
    assert find(space, Filter(), "number") == list(range(len(space)))


def test_words_find_names_before_captions_and_numbers_find_one(space: FeatureSpace) -> None:
    found = find(space, Filter("woman"))
    named = set(space.select(name="woman").tolist())
    assert set(found[: len(named)]) == named
    other = found[len(named)]
    captions = [row["caption"] for row in space.exemplars.to_pylist() if row["feature"] == other]
    assert any("woman" in caption.lower() for caption in captions)
    assert find(space, Filter("42")) == [42]
    assert find(space, Filter("no such word")) == []
    with pytest.raises(UserError, match="the last feature is 511"):
        find(space, Filter("512"))
    with pytest.raises(UserError, match="unknown class"):
        find(space, Filter(modality_class="image"))


def test_a_feature_is_described(space: FeatureSpace) -> None:
    found = describe(space, 42, shown=4, alike=2)
    assert found.row["feature"] == 42
    assert found.monosemanticity == monosemanticity(space)[42]
    for rows in (found.images, found.texts):
        activations = [row["activation"] for row in rows]
        assert 1 <= len(rows) <= 4
        assert activations == sorted(activations, reverse=True)
    assert found.images == exemplars(space, [42], 4)[42]
    cosines = similarities(space, 42)
    assert cosines[42] == pytest.approx(1, abs=1e-5)
    assert [n for n, _ in found.alike] == np.argsort(-cosines)[1:3].tolist()
