"""Edits of features: what they do to embeddings, their bounds, and how they are kept."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from features.embedded.world import EmbeddedPairs
from features.errors import UserError
from features.scores.angles import near_angles
from features.space.space import FeatureSpace
from mms_apps.steering.choosing import as_edits, between, choose, features_of
from mms_apps.steering.edits import Blend, Edit, Mode, Probe, ScoreSet, Steering
from mms_apps.steering.generator import scaled
from mms_apps.steering.saved import Source
from tests.test_space import make_store

DIM = 16


def raw(n: int, seed: int = 0) -> torch.Tensor:
    """Embeddings of length 3."""
    generator = torch.Generator().manual_seed(seed)
    return 3 * F.normalize(torch.randn(n, DIM, generator=generator), dim=1)


def test_add_moves_along_the_row_by_the_mean_activation(space: FeatureSpace) -> None:
    x = raw(4)
    steered = Steering((Edit(2, 1.5),), max_drift=60).apply(space, x)
    for before, after in zip(x, steered.embedding, strict=True):
        moved = (before / 3).clone()
        moved[2] += 1.5 * float(space.mean_active("image")[2])
        torch.testing.assert_close(after, 3 * moved / moved.norm())
        angle = math.degrees(math.acos(float(F.cosine_similarity(before, after, dim=0))))
        assert angle <= 60
    assert (steered.scale == 1).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocasting_around_it_rounds_nothing(space: FeatureSpace, dtype: torch.dtype) -> None:
    probe = Probe((1.0,) + (0.1,) * (DIM - 1), 0.0)
    steering = Steering((Edit(2, 1.5), Edit(3, 1e6)), stop=probe)
    wanted = steering.apply(space, raw(4))
    with torch.autocast("cpu", dtype):
        found = steering.apply(space, raw(4))
    assert torch.equal(found.embedding, wanted.embedding)
    assert torch.equal(found.scale, wanted.scale)


def test_set_and_remove_give_the_activation_that_was_asked(space: FeatureSpace) -> None:
    x = torch.zeros(1, DIM)
    x[0, 2], x[0, 3], x[0, 9] = 0.6, 0.5, 0.4
    change = Steering((Edit(2, 2.0, "set"), Edit(3, mode="remove"))).change(
        space, F.normalize(x, dim=1), "image"
    )
    now = space.encode_images(x)
    assert float(now[0, 2] + change[0, 2]) == pytest.approx(
        2 * float(space.mean_active("image")[2])
    )
    assert float(now[0, 3] + change[0, 3]) == pytest.approx(0)
    assert (change[0, [i for i in range(DIM) if i not in (2, 3)]] == 0).all()


def test_what_the_dictionary_misses_is_kept(space: FeatureSpace) -> None:
    x = F.normalize(raw(3), dim=1)
    activations = space.encode_images(x)
    error = x - space.decode(activations, "image")
    steering = Steering((Edit(4, 0.5),), max_drift=60)
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


@pytest.mark.parametrize("strength", [60.0, 1e5, 1e9, 1e12])
def test_a_move_that_is_far_too_large_ends_at_its_bound(
    space: FeatureSpace, strength: float
) -> None:
    x = raw(3)
    steered = Steering((Edit(2, strength),), max_drift=20).apply(space, x)
    torch.testing.assert_close(steered.drift, torch.full((3,), 20.0), atol=0.1, rtol=0)
    weight = torch.zeros(DIM)
    weight[2] = 20.0
    probe = Probe(tuple(weight.tolist()), -4.0, 0.9)
    stopped = Steering((Edit(2, strength),), max_drift=90, stop=probe).apply(space, x)
    odds = F.normalize(stopped.embedding, dim=1) @ weight - 4
    assert (odds < math.log(9) + 0.01).all()


EDIT = st.builds(
    Edit,
    st.integers(0, DIM - 1),
    st.floats(-5, 5),
    st.sampled_from(["add", "set", "remove"]),
    st.floats(0, 3),
)


@given(edits=st.lists(EDIT, max_size=6), alpha=st.floats(-3, 3), seed=st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_no_edit_takes_a_feature_below_absent(
    space: FeatureSpace, edits: list[Edit], alpha: float, seed: int
) -> None:
    x = F.normalize(raw(3, seed), dim=1)
    score = ScoreSet(tuple(x[0].tolist()), 5 * alpha, (1, 2), (-1.0, 1.0))
    steering = Steering(tuple(edits), score_sets=(score,))
    after = space.encode_images(x) + steering.change(space, x, "image")
    assert (after >= -1e-6).all()


def test_an_edit_of_what_is_absent_moves_nothing(space: FeatureSpace) -> None:
    x = torch.zeros(1, DIM)
    x[0, 2] = 1.0
    for edit in (Edit(5, -2.0), Edit(5, mode="remove"), Edit(5, 0.0, "set"), Edit(5, -1.0, "set")):
        assert float(Steering((edit,)).apply(space, x).drift) < 0.1


def test_to_remove_twice_is_to_remove_once(space: FeatureSpace) -> None:
    x = F.normalize(raw(4), dim=1)
    once, twice = (Steering((Edit(2, mode="remove"),) * times) for times in (1, 2))
    torch.testing.assert_close(twice.change(space, x, "image"), once.change(space, x, "image"))
    then = Steering((Edit(2, mode="remove"), Edit(2, 1.0)))
    after = space.encode_images(x) + then.change(space, x, "image")
    mean = space.mean_active("image")[2]
    torch.testing.assert_close(after[:, 2], mean.expand(4))


@pytest.mark.parametrize("mode", ["add", "set", "remove"])
def test_every_edit_is_continuous_in_how_far_it_goes(space: FeatureSpace, mode: Mode) -> None:
    x = raw(8)
    whole = Steering((Edit(2, 2.0, mode), Edit(5, 0.5, mode)))
    steps = [scaled(whole, step / 400).apply(space, x).embedding for step in range(-40, 800)]
    jumps = [float((b - a).norm(dim=1).max()) for a, b in pairwise(steps)]
    assert max(jumps) < 0.1
    torch.testing.assert_close(steps[40], x)  # strength 0
    by_strength = [
        Steering((Edit(2, step / 100, mode),)).apply(space, x).embedding for step in range(200)
    ]
    assert max(float((b - a).norm(dim=1).max()) for a, b in pairwise(by_strength)) < 0.1


def test_the_drift_is_bounded_by_how_near_the_spaces_samples_lie(space: FeatureSpace) -> None:
    store = F.normalize(raw(40), dim=1)
    bound = space.config.angles["image"]
    assert 0 < bound < 90
    steered = Steering((Edit(2, 500.0),)).apply(space, store)
    assert steered.drift.max() == pytest.approx(bound, abs=0.1)
    old = copy.copy(space)
    old.config = replace(space.config, angles={})
    assert Steering((Edit(2, 500.0),)).apply(old, store).drift.max() == pytest.approx(60, abs=0.1)
    assert Steering(max_drift=30).bound(space) == 30


def test_near_angles_are_a_quantile_of_all_pairs(space: FeatureSpace, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    images, _ = store.rows(range(len(store)))
    unit = F.normalize(images.float(), dim=1).double()
    angles = sorted(
        math.degrees(math.acos(min(1.0, max(-1.0, float(unit[a] @ unit[b])))))
        for a in range(len(unit))
        for b in range(a)
    )
    assert near_angles(store)["image"] == pytest.approx(np.quantile(angles, 0.05), abs=0.2)


def test_a_score_is_set_to_its_value(space: FeatureSpace) -> None:
    x = torch.zeros(2, DIM)
    x[0, 3], x[0, 4], x[1, 3], x[1, 4] = 0.8, 0.6, 0.6, 0.8
    weight = torch.zeros(DIM)
    weight[3] = 1.0
    steering = Steering(score_sets=(ScoreSet(tuple(weight.tolist()), 0.7, (3,), (1.0,)),))
    change = steering.change(space, x, "image")
    moved = x + change @ space.dictionary.directions
    torch.testing.assert_close(moved[:, 3], torch.full((2,), 0.7))
    half = scaled(steering, 0.5).change(space, x, "image")
    torch.testing.assert_close(half, change / 2)


def test_moves_stop_where_a_probe_is_sure(space: FeatureSpace) -> None:
    x = raw(20)
    weight = torch.zeros(DIM)
    weight[2] = 20.0
    probe = Probe(tuple(weight.tolist()), -4.0, 0.9)
    edits = (Edit(2, 8.0),)
    whole = Steering(edits, max_drift=90).apply(space, x)
    stopped = Steering(edits, max_drift=90, stop=probe).apply(space, x)
    odds = F.normalize(stopped.embedding, dim=1) @ weight - 4
    before = F.normalize(x, dim=1) @ weight - 4
    wanted = math.log(9)
    assert (stopped.drift <= whole.drift + 1e-3).all()
    moved = before < wanted
    torch.testing.assert_close(odds[moved], torch.full_like(odds[moved], wanted), atol=0.01, rtol=0)
    torch.testing.assert_close(stopped.embedding[~moved], x[~moved])
    never = Steering((Edit(5, 1.0),), max_drift=90)
    torch.testing.assert_close(
        replace(never, stop=probe).apply(space, x).embedding[moved],
        never.apply(space, x).embedding[moved],
    )


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
        (Edit(2, 1.5), Edit(3, mode="remove"), Edit(4, 0.5, "set", 0.2)),
        (Blend("CrossD", 0.3), Blend("ImgD", 0.1, "fixed")),
        "a cat",
        0.1,
        0.8,
        45.0,
        (ScoreSet((0.5,) * DIM, 0.1, (1, 2), (0.5, -1.0), 0.7),),
        Probe((0.25,) * DIM, 0.5, 0.8),
    )
    source = Source("a dog", "dog.png", "abc", "embedded", 7, 10, 2.5)
    steering.save(tmp_path / "edits.json", space, source)
    assert Steering.load(tmp_path / "edits.json", space) == steering
    assert Source.read(tmp_path / "edits.json") == source
    Steering().save(tmp_path / "none.json", space)
    assert Steering.load(tmp_path / "none.json", space) == Steering()
    assert Source.read(tmp_path / "none.json") is None
    record = json.loads((tmp_path / "edits.json").read_text())
    older = {k: v for k, v in record.items() if k not in ("score_sets", "stop", "source")}
    older |= {"schema": 1, "edits": [{"feature": 2, "strength": 1.5, "mode": "add"}]}
    (tmp_path / "older.json").write_text(json.dumps(older))
    assert Steering.load(tmp_path / "older.json", space).edits == (Edit(2, 1.5),)
    with pytest.raises(UserError, match="another FeatureSpace"):
        Steering.load(tmp_path / "edits.json", embedded)
    record = json.loads((tmp_path / "edits.json").read_text())
    for spoilt in ({}, record | {"edits": [{"size": 3}]}, [1]):
        (tmp_path / "spoilt.json").write_text(json.dumps(spoilt))
        with pytest.raises(UserError, match="saved edits"):
            Steering.load(tmp_path / "spoilt.json", space)
    for unreadable in ("{", "[" * 100_000):
        (tmp_path / "spoilt.json").write_text(unreadable)
        with pytest.raises(UserError, match="cannot be read"):
            Steering.load(tmp_path / "spoilt.json", space)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edits": [{"feature": 16}]}, "features 0 to 15"),
        ({"edits": [{"feature": -1}]}, "features 0 to 15"),
        ({"edits": [{"feature": "3"}]}, "feature '3' is of another type"),
        ({"edits": [{"feature": 1.5}]}, "feature 1.5 is of another type"),
        ({"edits": [{"feature": True}]}, "feature True is of another type"),
        ({"edits": [{"feature": 1, "strength": "2"}]}, "strength '2' is of another type"),
        ({"edits": [{"feature": 1, "strength": math.nan}]}, "finite"),
        ({"edits": [{"feature": 1, "mode": "push"}]}, "mode 'push'"),
        ({"edits": {"feature": 1}}, "no JSON object"),
        ({"edits": None}, "not saved edits"),
        ({"begin": "0"}, "begin '0' is of another type"),
        ({"begin": 1.0, "end": 0.5}, "begin must lie before end"),
        ({"max_drift": "wide"}, "max_drift 'wide'"),
        ({"prompt": 3}, "prompt 3 is of another type"),
        ({"blends": [{"modality_class": "ImgD", "rule": "loose"}], "prompt": "x"}, "rule 'loose'"),
        ({"score_sets": [{"weight": [1.0], "value": 0, "features": [1], "per_unit": [1]}]},
         "a weight of 1 numbers"),
        ({"score_sets": [{"weight": [0] * 16, "value": 0, "features": [1], "per_unit": []}]},
         "1 features and 0 changes"),
        ({"score_sets": [{"weight": [0] * 16, "value": 0, "features": [99], "per_unit": [1]}]},
         "features 0 to 15"),
        ({"stop": {"weight": [1.0], "bias": 0.0}}, "a weight of 1 numbers"),
        ({"stop": [1]}, "no JSON object"),
        ({"stop": {"weight": [0] * 16, "bias": 0.0, "probability": 1}}, "probability 1: must lie"),
        ({"score_sets": [{"weight": [0], "value": math.nan, "features": [1], "per_unit": [1]}]},
         "value nan: must be a finite number"),
        ({"edits": [{"feature": 1, "strength": 10**400}]}, "must be a finite number"),
    ],
)  # fmt: skip
def test_edits_written_by_hand_are_checked(
    space: FeatureSpace, tmp_path: Path, change: dict, message: str
) -> None:
    path = tmp_path / "edits.json"
    Steering((Edit(1),)).save(path, space)
    path.write_text(json.dumps(json.loads(path.read_text()) | change), encoding="utf-8-sig")
    with pytest.raises(UserError, match=rf"edits.json: .*{message}"):
        Steering.load(path, space)


def test_edits_may_begin_with_a_byte_order_mark(space: FeatureSpace, tmp_path: Path) -> None:
    path = tmp_path / "edits.json"
    Steering((Edit(1),)).save(path, space)
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert Steering.load(path, space) == Steering((Edit(1),))


@pytest.mark.parametrize(
    "change", [{"steps": "14"}, {"seed": 1.5}, {"prompt": None}, {"guidance": [2]}, {"size": 3}]
)
def test_what_edits_were_drawn_from_is_checked(
    space: FeatureSpace, tmp_path: Path, change: dict
) -> None:
    path = tmp_path / "edits.json"
    Steering((Edit(1),)).save(path, space, Source("a dog"))
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"source": record["source"] | change}))
    with pytest.raises(UserError, match="not saved edits"):
        Source.read(path)
    path.write_text(json.dumps(record | {"source": record["source"] | {"seed": 2**70}}))
    with pytest.raises(UserError, match=f"edits.json: seed {2**70}: must be a whole number"):
        Source.read(path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Edit(1, mode="push"), "unknown mode"),  # type: ignore[arg-type]
        (lambda: Edit(1, math.nan), "strength nan: must be a finite number"),
        (lambda: Edit(1, "2"), "strength '2': must be a finite number"),  # type: ignore[arg-type]
        (lambda: Edit(1, None), "strength None"),  # type: ignore[arg-type]
        (lambda: Edit(1, True), "strength True"),
        (lambda: Edit(1, 10**400), "strength 1000+...0+: must be a finite number"),
        (lambda: Edit(1, torch.ones(2)), "strength tensor"),  # type: ignore[arg-type]
        (lambda: Edit(True, 2.0), "feature True: give its number"),
        (lambda: Edit("dog"), "feature 'dog': give its number"),  # type: ignore[arg-type]
        (lambda: Edit(1.5), "feature 1.5: give its number"),  # type: ignore[arg-type]
        (lambda: Edit(1, share=-0.1), "share -0.1: must be at least 0"),
        (lambda: Edit(1, share=math.inf), "share inf: must be a finite number"),
        (lambda: Blend("ImgD", math.inf), "alpha inf: must be a finite number"),
        (lambda: Blend("Img"), "unknown class"),
        (lambda: Blend("ImgD", rule="loose"), "loose: unknown rule"),  # type: ignore[arg-type]
        (lambda: ScoreSet((1.0, math.nan), 0, (1,), (1,)), "weight nan"),
        (lambda: ScoreSet((1.0,), math.nan, (1,), (1,)), "value nan"),
        (lambda: ScoreSet((1.0,), 0, (1,), (math.inf,)), "per_unit inf"),
        (lambda: ScoreSet((1.0,), 0, (1,), (1,), -1.0), "share -1.0: must be at least 0"),
        (lambda: ScoreSet((1.0,), 0, (1,), (1,), math.inf), "share inf"),
        (lambda: ScoreSet((1.0,), 0, 1, (1,)), "features 1: give"),  # type: ignore[arg-type]
        (lambda: ScoreSet(1.0, 0, (1,), (1,)), "weight 1.0: give a tuple"),  # type: ignore[arg-type]
        (lambda: Probe((math.nan,), 0.0), "weight nan"),
        (lambda: Probe((1.0,), math.inf), "bias inf"),
        (lambda: Probe((1.0,), 0.0, 95), "probability 95: must lie between 0 and 1"),
        (lambda: Probe((1.0,), 0.0, 1.0), "probability 1.0"),
        (lambda: Probe((1.0,), 0.0, 0), "probability 0: must lie"),
        (lambda: Steering(None), "edits None: give a tuple of Edit"),  # type: ignore[arg-type]
        (lambda: Steering(((1, 2.0),)), r"edits \(\(1, 2.0\),\): give"),  # type: ignore[arg-type]
        (lambda: Steering(blends=Blend("ImgD"), prompt="x"), "blends Blend"),  # type: ignore[arg-type]
        (lambda: Steering(score_sets=[1]), r"score_sets \(1,\): give"),  # type: ignore[arg-type]
        (lambda: Steering(stop=0.9), "stop 0.9: give a Probe"),  # type: ignore[arg-type]
        (lambda: Steering(prompt=["x"]), r"prompt \['x'\]: give one text"),  # type: ignore[arg-type]
        (lambda: Steering(blends=(Blend("ImgD"),)), "needs a prompt"),
        (lambda: Steering(begin=0.5, end=0.5), "before end"),
        (lambda: Steering(begin="0.2"), "begin '0.2'"),  # type: ignore[arg-type]
        (lambda: Steering(end=None), "end None"),  # type: ignore[arg-type]
        (lambda: Steering(max_drift=0), "degrees"),
        (lambda: Steering(max_drift="30"), "max_drift '30'"),  # type: ignore[arg-type]
    ],
)
def test_values_out_of_range_are_refused(wrong: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        wrong()


def test_edits_may_come_from_a_list_or_a_generator() -> None:
    edits = tuple(Edit(i, 2.0) for i in range(3))
    for several in (list(edits), iter(edits), (edit for edit in edits)):
        assert Steering(several) == Steering(edits)  # type: ignore[arg-type]
    blends, scores = (Blend("ImgD"),), (ScoreSet((1.0,), 0.0, (1,), (1.0,)),)
    found = Steering((), iter(blends), "x", score_sets=iter(scores))  # type: ignore[arg-type]
    assert found == Steering((), blends, "x", score_sets=scores)


def test_numbers_of_numpy_and_torch_are_kept_as_pythons_own(
    space: FeatureSpace, tmp_path: Path
) -> None:
    weight = torch.full((DIM,), 0.5)
    given = Steering(
        (
            Edit(np.int64(3), np.float32(2)),  # type: ignore[arg-type]
            Edit(torch.tensor(4), torch.tensor(0.5, requires_grad=True), share=np.float64(1)),  # type: ignore[arg-type]
        ),
        begin=np.float32(0.25),  # type: ignore[arg-type]
        max_drift=np.int64(30),
        score_sets=(ScoreSet(weight, np.float32(0.5), np.array([1, 2]), [1, 0.5]),),  # type: ignore[arg-type]
        stop=Probe(weight.numpy(), torch.tensor(0.5), np.float64(0.75)),  # type: ignore[arg-type]
    )
    expected = Steering(
        (Edit(3, 2.0), Edit(4, 0.5)),
        begin=0.25,
        max_drift=30.0,
        score_sets=(ScoreSet((0.5,) * DIM, 0.5, (1, 2), (1.0, 0.5)),),
        stop=Probe((0.5,) * DIM, 0.5, 0.75),
    )
    assert given == expected
    given.save(tmp_path / "edits.json", space)
    assert Steering.load(tmp_path / "edits.json", space) == expected
    with pytest.raises(UserError, match=f"there is no folder {tmp_path / 'none'}; make it first"):
        given.save(tmp_path / "none" / "edits.json", space)


@pytest.mark.parametrize("strength", [1e15, 1e18, 1e25, 1e37])
@pytest.mark.parametrize("mode", ["add", "set"])
def test_a_huge_edit_turns_as_far_as_it_may_towards_its_feature(
    space: FeatureSpace, strength: float, mode: Mode
) -> None:
    x = raw(3)
    for degrees in (20.0, 180.0):
        huge, large = (
            Steering((Edit(2, s, mode),), max_drift=degrees).apply(space, x)
            for s in (strength, 1e5)
        )
        torch.testing.assert_close(huge.embedding, large.embedding, atol=1e-3, rtol=0)
        torch.testing.assert_close(huge.drift, large.drift, atol=0.1, rtol=0)
    weight = torch.zeros(DIM)
    weight[2] = 20.0
    probe = Probe(tuple(weight.tolist()), -4.0, 0.9)
    stopped = Steering((Edit(2, strength, mode),), max_drift=90, stop=probe).apply(space, x)
    odds = F.normalize(stopped.embedding, dim=1) @ weight - 4
    moved = F.normalize(x, dim=1) @ weight - 4 < math.log(9)
    assert moved.any()
    torch.testing.assert_close(
        odds[moved], torch.full_like(odds[moved], math.log(9)), atol=0.01, rtol=0
    )


@pytest.mark.parametrize(
    "steering",
    [
        Steering((Edit(2, 1e39),)),
        Steering((Edit(2, 1.0, "set", 1e300),)),
        Steering((Edit(2, 1e38), Edit(2, 3.3e38), Edit(2, 3.3e38))),
        Steering(score_sets=(ScoreSet((1.0,) * DIM, 1e200, (3,), (1.0,)),)),
        Steering(score_sets=(ScoreSet((1.0,) * DIM, 1e30, (3,), (1e30,)),)),
    ],
)
def test_edits_that_float32_does_not_hold_are_refused(
    space: FeatureSpace, steering: Steering
) -> None:
    with pytest.raises(UserError, match="too large to be computed; give smaller strengths"):
        steering.apply(space, raw(2))


def test_features_and_dimensions_that_the_space_lacks_are_refused(space: FeatureSpace) -> None:
    with pytest.raises(UserError, match="features 0 to 15"):
        Steering((Edit(16),)).apply(space, raw(1))
    with pytest.raises(UserError, match=r"takes \[n, 16\]"):
        Steering((Edit(1),)).apply(space, torch.zeros(1, 8))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_embeddings_that_are_not_finite_are_refused(space: FeatureSpace, bad: float) -> None:
    embedding = raw(2)
    embedding[1, 3] = bad
    with pytest.raises(UserError, match="not finite"):
        Steering((Edit(1),)).apply(space, embedding)


@pytest.mark.parametrize("dtype", [torch.long, torch.uint8, torch.float8_e4m3fn, torch.bfloat16])
def test_embeddings_of_any_real_numbers_are_edited(space: FeatureSpace, dtype: torch.dtype) -> None:
    steering, whole = Steering((Edit(2, 3.0),)), torch.arange(16.0)[None] % 5
    found, wanted = (steering.apply(space, each) for each in (whole.to(dtype), whole))
    torch.testing.assert_close(found.embedding.float(), wanted.embedding, atol=0.05, rtol=0.01)
    with pytest.raises(UserError, match="complex numbers have no features"):
        steering.apply(space, whole.to(torch.complex64))


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


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("no man", "less man"),
        ("without man", "less man"),
        ("fewer man", "less man"),
        ("-man", "less man"),
        ("- man", "less man"),
        ("\N{MINUS SIGN}man", "less man"),
        ("+man, -woman", "more man, less woman"),
        ("MORE man; Less woman", "more man, less woman"),
        ("more man\nless woman\r\n", "more man, less woman"),
        ("more man and less woman", "more man, less woman"),
        ("more man, and no woman", "more man, less woman"),
        ("man and -woman", "man, less woman"),
        (["more man", "less woman"], "more man, less woman"),
        (("man", "no woman; no cat"), "man, less woman, less cat"),
        ("man", "more man"),
        ("not man", "less man"),
        ("more man but less woman", "more man, less woman"),
        ("more man & less woman", "more man, less woman"),
        ("More: man, less: woman", "more man, less woman"),
        ("\N{EN DASH}man", "less man"),
        (
            "\N{FULLWIDTH PLUS SIGN}man\N{FULLWIDTH COMMA}\N{FULLWIDTH HYPHEN-MINUS}woman",
            "man, -woman",
        ),
        ("more man\N{IDEOGRAPHIC COMMA}less woman\N{IDEOGRAPHIC FULL STOP}", "man, -woman"),
        ("More man, less woman.", "more man, less woman"),
        ('"more man", \u201cless woman\u201d', "more man, less woman"),
        ("more 'man'!", "more man"),
        ("more  dark \t skin\u00a0tone", "more dark skin tone"),
    ],
)
def test_wishes_may_be_written_otherwise(
    embedded: FeatureSpace, written: str | list[str], meant: str
) -> None:
    assert choose(embedded, written) == choose(embedded, meant)


@pytest.mark.parametrize(
    "written",
    ["more man less woman", "man - woman", "man +woman", "a bit less man", "more man. Less woman."],
)
def test_a_wish_within_a_wish_is_refused(embedded: FeatureSpace, written: str) -> None:
    with pytest.raises(UserError, match="write commas between wishes"):
        choose(embedded, written)


@pytest.mark.parametrize("choices", ["more man", Edit(2, 1.0), [2], None])
def test_edits_are_made_of_choices(embedded: FeatureSpace, choices: Any) -> None:
    with pytest.raises(UserError, match=r"give a tuple of what choose\(space, words\) gives"):
        as_edits(choices)
    assert as_edits(choice for choice in choose(embedded, "man")) == as_edits(
        choose(embedded, "man")
    )


def test_words_that_look_like_wishes_are_words(embedded: FeatureSpace) -> None:
    for word in ("nose", "moreover", "salt and pepper", "t-shirt", "notebook", "Q&A"):
        [found, *_] = choose(embedded, f"less {word}")
        assert found.word == word and found.strength < 0
        assert choose(embedded, word)[0].word == word


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ("more", "more: lacks its word"),
        ("man, no", "no: lacks its word"),
        ("-", "-: lacks its word"),
        (None, "wishes None: give texts"),
        ([3], r"wishes \[3\]: give texts"),
        ([], "no words"),
    ],
)
def test_what_is_no_wish_is_said(embedded: FeatureSpace, wishes: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose(embedded, wishes)
    with pytest.raises(UserError, match="strength '2': must be a finite number"):
        choose(embedded, "more man", "2")  # type: ignore[arg-type]


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
    assert between(space, 3 * source.numpy(), target.numpy(), taken=2) == edits  # type: ignore[arg-type]
    for taken in (0, -1, 1.5, True):
        with pytest.raises(UserError, match=f"taken {taken}: must be a whole number, 1 or more"):
            between(space, source, target, taken=taken)  # type: ignore[arg-type]
