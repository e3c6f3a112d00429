"""A page's controls as a steering, and back."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from features.errors import UserError
from features.space.space import FeatureSpace
from mms_apps.steering.bundle import write_bundle
from mms_apps.steering.controls import SLOTS, Controls, Sliders
from mms_apps.steering.edits import Blend, Edit, Probe, ScoreSet, Steering
from mms_apps.steering.saved import Source

EDITS = st.builds(
    Edit,
    st.integers(0, 15),
    st.floats(-5, 5, allow_nan=False),
    st.sampled_from(["add", "set", "remove"]),
    st.sampled_from([1.0, 0.5]),
)
BLENDS = st.builds(
    Blend,
    st.sampled_from(["ImgD", "TextD", "CrossD"]),
    st.floats(-1, 2),
    st.sampled_from(["relative", "fixed"]),
)
SCORES = st.just(ScoreSet((0.5,) * 16, 0.1, (1, 2), (0.5, -1.0)))


@given(
    st.lists(EDITS, max_size=SLOTS + 3),
    st.lists(BLENDS, max_size=3),
    st.lists(SCORES, max_size=1),
    st.floats(0, 0.4),
    st.floats(0.5, 1),
    st.none() | st.floats(1, 180),
    st.none() | st.just(Probe((0.25,) * 16, 0.5)),
)
def test_a_steering_comes_back_whole(
    edits: list[Edit],
    blends: list[Blend],
    scores: list[ScoreSet],
    begin: float,
    end: float,
    max_drift: float | None,
    stop: Probe | None,
) -> None:
    steering = Steering(
        tuple(edits), tuple(blends), "a cat", begin, end, max_drift, tuple(scores), stop
    )
    assert Controls.of(steering).steering() == steering


def test_what_no_control_shows_is_told(space: FeatureSpace) -> None:
    edits = (Edit(1, 2.0), Edit(2, mode="remove"), Edit(3, 1.0, "set", 0.5), Edit(4, 9.0))
    steering = Steering(edits, (Blend("CrossD", 0.5, "fixed"),), "a cat")
    found = Controls.of(steering)
    assert found.sliders.edits() == edits[:2]
    told = found.told(space)
    assert "set to 1 by 0.5 3: " in told and "add 9 of 4: " in told
    assert "blend CrossD by 0.5" in told
    assert Controls.of(Steering(edits[:2])).told(space) == ""


def test_controls_as_they_are_mean_nothing() -> None:
    assert Controls().steering() == Steering()
    assert Controls(towards="  ", blended="ImgD", alpha=0.0).steering() == Steering()
    assert Controls.of(Steering()).max_drift == 0


def test_a_slider_at_0_or_without_a_feature_is_no_edit() -> None:
    sliders = Sliders((7, None, 3, None), strengths=(0.0, 2.0, -1.5, 0.0))
    assert sliders.edits() == (Edit(3, -1.5),)
    modes = ("set", "remove", "remove", "add")
    sliders = Sliders((7, 8, None, None), modes, (0.0, 0.0, 1.0, 0.0))
    assert sliders.edits() == (Edit(7, 0.0, "set"), Edit(8, 0.0, "remove"))


def test_a_feature_goes_on_the_first_free_slider_and_none_is_moved() -> None:
    sliders = Sliders((7, 8, None, 9), strengths=(1.0, 0.0, 0.0, 2.0))
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
    source = Source("a dog", seed=7)
    steering.save(tmp_path / "edits.json", space, source)
    text = (tmp_path / "edits.json").read_text()
    found, drawn_from = Controls.read(text, space)
    assert (found.steering(), drawn_from) == (steering, source)
    steering.save(tmp_path / "alone.json", space)
    assert Controls.read((tmp_path / "alone.json").read_text(), space)[1] is None
    other = json.dumps(json.loads(text) | {"space": "0"})
    for bad, message in (
        ("{", "the edits are not JSON"),
        ("", "no saved edits"),
        ("[]", "no saved edits"),
        (other, "another FeatureSpace"),
        (json.dumps({**json.loads(text), "edits": [{"number": 1}]}), "not saved edits"),
        (json.dumps({**json.loads(text), "source": {"sed": 1}}), "not saved edits"),
        (json.dumps({**json.loads(text), "source": {"seed": 2**70}}), f"the edits: seed {2**70}"),
    ):
        with pytest.raises(UserError, match=message):
            Controls.read(bad, space)


def test_a_bundle_holds_the_edits_and_the_pictures(space: FeatureSpace, tmp_path: Path) -> None:
    steering = Steering((Edit(3, 2.0), Edit(4, mode="remove")), begin=0.2)
    source, path = Source("a dog", seed=7), tmp_path / "steered.zip"
    picture = Image.new("RGB", (8, 8), "red")
    write_bundle(path, steering, space, source, {"plain": picture, "strip": picture})
    with zipfile.ZipFile(path) as archive:
        assert sorted(archive.namelist()) == ["edits.json", "plain.png", "strip.png"]
        archive.extractall(tmp_path)
    assert Steering.load(tmp_path / "edits.json", space) == steering
    assert Source.read(tmp_path / "edits.json") == source
    assert np.array_equal(np.asarray(Image.open(tmp_path / "strip.png")), np.asarray(picture))
