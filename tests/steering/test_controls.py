"""A page's controls as a steering, and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.errors import UserError
from features.space.score import score
from features.space.space import FeatureSpace
from mms_apps.steering.controls import SLOTS, Controls, Sliders
from mms_apps.steering.edits import MAX_DRIFT, Blend, Edit, Steering
from tests.test_space import axes, make_store

EDITS = st.builds(
    Edit, st.integers(0, 15), st.floats(-3, 3, allow_nan=False).filter(lambda strength: strength)
)


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> FeatureSpace:
    return score(make_store(tmp_path_factory.mktemp("stores") / "store"), axes(), progress=False)


@given(
    st.lists(EDITS, max_size=SLOTS),
    st.none() | st.builds(Blend, st.sampled_from(["ImgD", "TextD", "CrossD"]), st.just(0.5)),
    st.floats(0.1, 1),
    st.floats(5, 90),
)
def test_controls_show_a_steering_and_mean_it(
    edits: list[Edit], blend: Blend | None, end: float, max_drift: float
) -> None:
    blends = () if blend is None else (blend,)
    steering = Steering(tuple(edits), blends, "a cat", end=end, max_drift=max_drift)
    assert Controls.of(steering).steering() == steering


def test_controls_as_they_are_mean_nothing() -> None:
    assert Controls().steering() == Steering()
    assert Controls(towards="  ", blended="ImgD", alpha=0.0).steering() == Steering()
    assert Controls.of(Steering()).max_drift == MAX_DRIFT


def test_a_slider_at_0_or_without_a_feature_is_no_edit() -> None:
    sliders = Sliders((7, None, 3, None), (0.0, 2.0, -1.5, 0.0))
    assert sliders.edits() == (Edit(3, -1.5),)


def test_more_edits_than_sliders_keep_the_first() -> None:
    edits = tuple(Edit(number, 2.0) for number in range(SLOTS + 2))
    assert Sliders.of(edits).edits() == edits[:SLOTS]


def test_a_feature_goes_on_the_first_free_slider_and_none_is_moved() -> None:
    sliders = Sliders((7, 8, None, 9), (1.0, 0.0, 0.0, 2.0))
    one = sliders.put(5)
    assert (one.features, one.strengths) == ((7, 5, None, 9), (1.0, 1.0, 0.0, 2.0))
    full = one.put(6)
    assert full.features == (7, 5, 6, 9)
    with pytest.raises(UserError, match="All 4 sliders are taken"):
        full.put(4)


def test_a_blend_without_a_prompt_is_refused() -> None:
    with pytest.raises(UserError, match="needs a prompt"):
        Controls(blended="CrossD", alpha=0.5).steering()


def test_saved_edits_are_read_as_controls(space: FeatureSpace, tmp_path: Path) -> None:
    steering = Steering((Edit(3, 2.0), Edit(4, -1.0)), (Blend("CrossD", 0.3),), "a cat", end=0.5)
    steering.save(tmp_path / "edits.json", space)
    text = (tmp_path / "edits.json").read_text()
    assert Controls.read(text, space).steering() == steering
    other = json.dumps(json.loads(text) | {"space": "0"})
    for bad, message in (
        ("{", "the edits are not JSON"),
        ("", "no saved edits"),
        ("[]", "no saved edits"),
        (other, "another FeatureSpace"),
        (json.dumps({**json.loads(text), "edits": [{"number": 1}]}), "not saved edits"),
    ):
        with pytest.raises(UserError, match=message):
            Controls.read(bad, space)
