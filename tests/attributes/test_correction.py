"""Groups of mistakes, proposals, checks, advice, and accepted edits as folders."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csc_matrix

from features.dictionary import DictionaryConfig
from features.dictionary.identity import IdentityDictionary
from features.errors import UserError
from features.space.space import FeatureSpace
from mms_apps.attributes.correction.checking import Advice, Check, Counts, advise, count, mcnemar
from mms_apps.attributes.correction.correcting import (
    HELD_OUT,
    OTHER_HALF,
    Correction,
    GroupCorrection,
    correct,
)
from mms_apps.attributes.correction.files import (
    MadeFrom,
    correction_of,
    is_correction,
    load_correction,
    save_correction,
)
from mms_apps.attributes.correction.mistakes import Judged, judge, mistake_groups
from mms_apps.attributes.correction.proposing import (
    COST,
    Corrected,
    Proposal,
    corrected,
    fit_again,
    grown,
    propose,
)
from mms_apps.attributes.correction.standing import HARMS, HOLDS, OPEN, WEAKER, compared, standing
from mms_apps.attributes.explain import feature_contributions
from mms_apps.attributes.labels import Samples
from mms_apps.attributes.model import AttributeModel, Method, fit_model

pytestmark = pytest.mark.usefixtures("few_strengths")

MADE_FROM = MadeFrom("pairs", "0" * 64)


@pytest.fixture(scope="module")
def space(space_folder: Path, clip_folder: Path) -> FeatureSpace:
    """The tiny FeatureSpace with its encoder; no test changes it."""
    return FeatureSpace.load(space_folder, device="cpu", encoder=f"local-dir:{clip_folder}")


@pytest.fixture(scope="module")
def axes(space: FeatureSpace) -> FeatureSpace:
    """A FeatureSpace whose 16 features are the axes of the embedding."""
    config = DictionaryConfig(kind="identity", dim=16, features=16, k=16, modality_bias=False)
    dictionary = IdentityDictionary(config)
    return FeatureSpace(
        space.config, dictionary, space.features[:16], space.exemplars, encoder=space.encoder
    )


def drawn(count: int, tied: float, seed: int, kinds: tuple[str, ...] = ("cat", "dog")) -> Samples:
    """`kind` on the first axes, and on axis 5 a strong `place`, which goes with the first two kinds
    in a share `tied` of the samples."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(len(kinds), size=count)
    place = np.where(rng.random(count) < tied, kind, 1 - kind) % 2
    x = rng.normal(size=(count, 16)) * 0.3
    x[np.arange(count), kind] += 0.8
    x[:, 5] += 1.2 * (2 * place - 1)
    columns = {
        "kind": np.array(kinds, dtype=object)[kind],
        "place": np.array(["lawn", "sofa"], dtype=object)[place],
    }
    ids = np.array([f"{seed}-{n}" for n in range(count)], dtype=object)
    unit = torch.nn.functional.normalize(torch.from_numpy(x).float(), dim=-1)
    return Samples(unit, ids, columns)


@pytest.fixture(scope="module")
def biased(axes: FeatureSpace) -> AttributeModel:
    """A probe for which the place stands for the kind."""
    return fit_model(axes, drawn(800, 0.95, 0), "kind", ["cat", "dog"], "linear_probe")


@pytest.fixture(scope="module")
def correction(biased: AttributeModel) -> Correction:
    return correct(biased, drawn(1400, 0.5, 1), drawn(1400, 0.5, 2), group="place", seed=0)


@given(mended=st.integers(0, 40), broken=st.integers(0, 40))
def test_mcnemar_is_the_exact_binomial_test(mended: int, broken: int) -> None:
    n = mended + broken
    tail = sum(math.comb(n, k) for k in range(min(mended, broken) + 1)) / 2**n
    assert mcnemar(mended, broken) == pytest.approx(min(1.0, 2 * tail))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_counts_are_those_of_a_loop(pairs: list[tuple[bool, bool]]) -> None:
    mended = broken = right = 0
    for was, now in pairs:
        mended += now and not was
        broken += was and not now
        right += was
    before, after = (np.array(column) for column in zip(*pairs, strict=True))
    found = count(before, after)
    assert (found.samples, found.right) == (len(pairs), right)
    assert (found.mended, found.broken) == (mended, broken)
    assert found.p == mcnemar(mended, broken)
    assert found.after.value == pytest.approx(after.mean())
    assert found.before.low <= found.before.value <= found.before.high
    each = found.each
    if mended + broken == 0:
        assert math.isnan(each.value)
    else:
        assert each.value == (math.inf if not broken else pytest.approx(mended / broken))
        assert each.low <= each.value <= each.high


@pytest.mark.parametrize("captions", [1, 2, 5])
def test_the_p_of_an_edit_counts_a_picture_once(captions: int) -> None:
    before, after = np.arange(40) < 30, np.arange(40) < 34
    after[:1] = False
    once = count(before, after)
    rows = np.repeat(np.arange(40), captions)
    found = count(before[rows], after[rows], np.arange(40)[rows])
    assert (found.mended, found.broken) == (4 * captions, captions)
    assert found.p == once.p == mcnemar(4, 1)
    mixed = np.array([True, False, False, False])  # a picture with as many mended as broken
    assert count(mixed, ~mixed, np.array(["a", "a", "b", "c"])).p == mcnemar(2, 0)


def judged_of(seed: int, classes: int = 3) -> Judged:
    rng = np.random.default_rng(seed)
    activations = np.maximum(rng.normal(size=(60, 9)), 0) * (rng.random((60, 9)) < 0.6)
    weights = rng.normal(size=(classes, 9))
    logits = activations @ weights.T + rng.normal(size=(60, classes)) * 0.3
    others = rng.integers(classes, size=60)
    truth = np.where(rng.random(60) < 0.6, logits.argmax(axis=1), others)
    return Judged(truth, logits, csc_matrix(activations), weights)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_groups_are_those_of_a_double_loop(seed: int, classes: int) -> None:
    judged = judged_of(seed, classes)
    z, w, truth = judged.activations.toarray(), judged.weights, judged.truth
    rival, right = np.zeros(60, dtype=int), np.zeros(60, dtype=bool)
    for n in range(60):
        others = [c for c in range(classes) if c != truth[n]]
        rival[n] = max(others, key=lambda c: judged.logits[n, c])
        right[n] = judged.logits[n, truth[n]] > judged.logits[n, rival[n]]
    pushed = np.array(
        [[z[n, f] * (w[rival[n], f] - w[truth[n], f]) for f in range(9)] for n in range(60)]
    )
    assert (judged.right == right).all()
    expected: dict[int, dict[int, float]] = {}
    for n in np.flatnonzero(~right):
        alike = pushed[right & (truth == truth[n])]
        usual = alike.mean(axis=0) if len(alike) else np.zeros(9)
        beyond = {f: pushed[n, f] - usual[f] for f in range(9) if pushed[n, f] > 0}
        best = max(beyond, key=lambda f: beyond[f], default=None)
        if best is not None and beyond[best] > 0:
            expected.setdefault(best, {})[int(n)] = beyond[best]
    groups = mistake_groups(judged, least=1)
    assert {g.feature: set(g.rows.tolist()) for g in groups} == {
        f: set(rows) for f, rows in expected.items()
    }
    for group in groups:
        said = dict(zip(group.rows.tolist(), group.pushed.tolist(), strict=True))
        assert said == pytest.approx(expected[group.feature])
        assert (np.diff(group.pushed) <= 0).all()
        after = [
            int(np.argmax([judged.logits[n, c] - z[n, group.feature] * w[c, group.feature]
                           for c in range(classes)])) == truth[n]
            for n in range(60)
        ]  # fmt: skip
        assert group.mended == sum(a and not r for a, r in zip(after, right, strict=True))
        assert group.broken == sum(r and not a for a, r in zip(after, right, strict=True))
    order = [(g.broken - g.mended, -g.size) for g in groups]
    assert order == sorted(order)
    assert all(g.size >= 3 for g in mistake_groups(judged))


@pytest.mark.parametrize("method", ["linear_probe", "zero_shot", "sparse_probe"])
def test_what_pushes_is_what_explains(axes: FeatureSpace, method: Method) -> None:
    samples = drawn(300, 0.9, 3)
    prompts = {"cat": ["a red circle"], "dog": ["a blue square"]}
    given = prompts if method == "zero_shot" else None
    model = fit_model(axes, samples, "kind", ["cat", "dog"], method, prompts=given)
    judged = judge(model, samples)
    assert (judged.right == Corrected(model).right(samples)).all()
    row = int(np.flatnonzero(~judged.right)[0])
    wrong = model.classes[judged.rival[row]]
    explained, _, _ = feature_contributions(model, samples.embeddings[row : row + 1], wrong)
    assert judged.pushes().toarray()[row] == pytest.approx(explained[0], abs=1e-5)


@given(seed=st.integers(0, 5), share=st.sampled_from([0.25, 0.5, 1.0]))
def test_a_grown_edit_counts_what_it_does_and_never_loses_by_a_feature(
    seed: int, share: float
) -> None:
    judged = judged_of(seed)
    found = grown(judged, 0, range(9), share)
    after = judged.right_without(found.features, share)
    assert found.mended == int((after & ~judged.right).sum())
    assert found.broken == int((judged.right & ~after).sum())
    assert found.features[0] == 0 and len(set(found.features)) == len(found.features)
    scores = [grown(judged, 0, found.features[1:n], share).score for n in range(1, 9)]
    assert scores == sorted(scores)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_what_is_counted_in_logits_is_what_the_edit_does(
    biased: AttributeModel, share: float
) -> None:
    samples = drawn(300, 0.5, 4)
    edited = corrected(biased, Proposal((5, 0), share, False, 0, 0))
    expected = judge(biased, samples).right_without((5, 0), share)
    assert (edited.right(samples) == expected).mean() > 0.995  # float32 beside float64


def test_the_planted_feature_is_found_first_and_its_edit_mends(correction: Correction) -> None:
    first = correction.groups[0]
    assert first.mistakes.feature == 5
    mistakes = correction.half.take(first.mistakes.rows)
    assert all(
        (k == "cat") == (p == "sofa") for k, p in zip(*mistakes.columns.values(), strict=True)
    )
    assert first.advice.accept
    assert set(first.checks) == {OTHER_HALF, HELD_OUT}
    for check in first.checks.values():
        assert check.counts.mended >= 3 * check.counts.broken
        assert check.gain.low > 0
        assert sum(row.counts.samples for row in check.groups) == check.counts.samples
        assert sum(row.counts.mended for row in check.groups) == check.counts.mended
        assert check.worst_after.counts.after.value > check.worst_before.counts.before.value
    assert not set(correction.half.ids) & set(correction.other.ids)
    assert abs(len(correction.half) - len(correction.other)) <= 1


def test_the_same_seed_finds_the_same(biased: AttributeModel, correction: Correction) -> None:
    again = correct(biased, drawn(1400, 0.5, 1), drawn(1400, 0.5, 2), group="place", seed=0)
    assert [g.proposal for g in again.groups] == [g.proposal for g in correction.groups]
    other = correct(biased, drawn(700, 0.5, 1), seed=1)
    assert set(other.half.ids) != set(correction.half.ids)
    assert set(other.groups[0].checks) == {OTHER_HALF}
    assert {row.group for row in other.groups[0].checks[OTHER_HALF].groups} == {"cat", "dog"}


@pytest.mark.parametrize("kinds", [("cat", "dog"), ("cat", "dog", "emu")])
@pytest.mark.parametrize("method", ["linear_probe", "sparse_probe", "zero_shot"])
def test_every_kind_of_model_can_be_corrected(
    axes: FeatureSpace, method: Method, kinds: tuple[str, ...]
) -> None:
    names = dict(zip(kinds, ("red", "blue", "green"), strict=False))
    prompts = {kind: [f"a {name} circle"] for kind, name in names.items()}
    given = prompts if method == "zero_shot" else None
    model = fit_model(axes, drawn(300, 0.95, 0, kinds), "kind", kinds, method, prompts=given)
    found = correct(model, drawn(300, 0.5, 1, kinds), seed=0)
    assert found.groups
    for one in found.groups:
        if one.proposal is not None and one.edited is not None and not one.proposal.refitted:
            counts = one.checks[OTHER_HALF].counts
            edited = one.edited.right(found.other)
            assert counts == count(Corrected(model).right(found.other), edited)


@pytest.mark.parametrize("method", ["linear_probe", "sparse_probe"])
def test_a_model_is_fitted_again_only_where_weakening_does_not_help(
    axes: FeatureSpace, monkeypatch: pytest.MonkeyPatch, method: Method
) -> None:
    fitted = drawn(400, 0.5, 0)
    flipped = fitted.columns["kind"].copy()
    flipped[:120] = np.where(flipped[:120] == "cat", "dog", "cat")
    noisy = replace(fitted, columns=fitted.columns | {"kind": flipped})
    model = fit_model(axes, noisy, "kind", ["cat", "dog"], method)
    half = drawn(400, 0.5, 1)
    judged = judge(model, half)
    groups = mistake_groups(judged)
    module = "mms_apps.attributes.correction.proposing"
    nothing = Proposal((groups[0].feature,), 1.0, False, 0, 1)
    monkeypatch.setattr(f"{module}.grown", lambda *_: nothing)
    found = propose(model, half, judged, groups[0], groups)
    if found is not None:
        proposal, edited = found
        assert proposal.refitted and proposal.mended > COST * proposal.broken
        assert "fit the model again" in proposal.in_words()
        assert edited.model.classes == model.classes
    weak = Proposal((groups[0].feature,), 0.5, False, 1, 0)
    monkeypatch.setattr(f"{module}.grown", lambda *_: weak)
    again = propose(model, half, judged, groups[0], groups)
    assert again is not None and again[0] == weak


def test_a_head_fitted_again_over_features_has_no_weight_on_removed_ones(
    axes: FeatureSpace,
) -> None:
    samples = drawn(400, 0.95, 0)
    model = fit_model(axes, samples, "kind", ["cat", "dog"], "sparse_probe", max_features=4)
    assert model.estimator.coef_[:, 5].any()
    truth = samples.columns["kind"].astype(str)
    again = fit_again(model, samples.embeddings, truth, [5], 0)
    assert not again.estimator.coef_[:, 5].any()
    kept = np.flatnonzero(model.estimator.coef_.any(axis=0))
    assert set(np.flatnonzero(again.estimator.coef_.any(axis=0))) <= set(kept.tolist())
    assert (again.predict(samples.embeddings) == truth).mean() > 0.8


def check_of(mended: int, broken: int, groups: tuple = ()) -> Check:
    counts = Counts(100, 60, mended, broken, mcnemar(mended, broken))
    return Check(counts, None, groups)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("checks", "accept", "why"),
    [
        ({"a": (12, 4)}, False, "may be chance"),
        ({"a": (18, 6)}, True, "mends 18 and breaks 6"),
        ({"a": (17, 6)}, False, "fewer than 3"),
        ({"a": (5, 0)}, False, "may be chance (p = 0.062)"),
        ({"a": (6, 0)}, True, "on a it mends 6"),
        ({"a": (0, 0)}, False, "fewer than 3"),
        ({"a": (0, 9)}, False, "mends 0 and breaks 9"),
        ({"a": (18, 2), "b": (9, 8)}, False, "on b it mends 9"),
        ({"a": (18, 2), "b": (19, 2)}, True, "; on b"),
    ],
)
def test_advice(checks: dict[str, tuple[int, int]], accept: bool, why: str) -> None:
    found = advise({name: check_of(*counts) for name, counts in checks.items()})
    assert found.accept is accept
    assert why in found.why


def test_an_edit_that_harms_a_group_is_advised_against() -> None:
    from mms_apps.attributes.correction.checking import GroupCounts

    harmed = GroupCounts("old", True, Counts(40, 30, 1, 9, mcnemar(1, 9)))
    fine = GroupCounts("young", True, Counts(60, 30, 39, 1, mcnemar(39, 1)))
    found = advise({"a": check_of(40, 10, (harmed, fine))})
    assert not found.accept and "in old it mends 1 and breaks 9" in found.why
    assert advise({"a": check_of(40, 10, (fine,))}).accept


def saved(correction: Correction, folder: Path, place: int = 0) -> Path:
    return save_correction(
        correction.groups[place], correction, MADE_FROM, folder, today=date(2026, 1, 1)
    )


def test_a_saved_edit_predicts_as_before_and_says_what_it_was_made_from(
    correction: Correction, tmp_path: Path
) -> None:
    model, first = correction.model, correction.groups[0]
    folder = saved(correction, tmp_path / "edit")
    assert is_correction(folder) and not is_correction(tmp_path)
    accepted = load_correction(folder, model.space)
    samples = drawn(200, 0.5, 9)
    assert first.edited is not None
    for edited in (accepted.edited, correction_of(folder, model)):
        assert (edited.right(samples) == first.edited.right(samples)).all()
    assert (accepted.plain.right(samples) == Corrected(model).right(samples)).all()
    record = json.loads((folder / "config.json").read_text())
    assert record["made_from"]["pairs_fingerprint"] == MADE_FROM.pairs_fingerprint
    assert record["dictionary_fingerprint"] == model.space.config.dictionary_fingerprint
    assert (record["made"], record["look_again"]) == ("2026-01-01", "2026-04-01")
    assert (
        record["figures"][OTHER_HALF]["counts"]["mended"] == first.checks[OTHER_HALF].counts.mended
    )
    assert record["seed"] == 0 and record["schema"] == 1
    assert "NaN" not in (folder / "config.json").read_text()


def refitted(correction: Correction) -> Correction:
    """The same with a model that was fitted again in the first group."""
    first, half = correction.groups[0], correction.half
    proposal = replace(first.proposal, features=(5,), share=1.0, refitted=True)  # type: ignore[type-var]
    edit = corrected(correction.model, replace(proposal, refitted=False)).edit
    truth = half.columns["kind"].astype(str)
    head = fit_again(correction.model, edit.apply(half.embeddings), truth, (5,), 0)
    again = replace(first, proposal=proposal, edited=Corrected(head, edit))
    return replace(correction, groups=(again, *correction.groups[1:]))


def test_a_saved_head_comes_back(correction: Correction, tmp_path: Path) -> None:
    found = refitted(correction)
    folder = saved(found, tmp_path / "edit")
    samples = drawn(200, 0.5, 9)
    accepted = load_correction(folder, found.model.space)
    edited = found.groups[0].edited
    assert edited is not None
    assert (accepted.edited.right(samples) == edited.right(samples)).all()
    assert (accepted.edited.right(samples) != accepted.plain.right(samples)).any()


def test_a_group_without_a_proposal_is_not_saved(correction: Correction, tmp_path: Path) -> None:
    mistakes = correction.groups[0].mistakes
    none = GroupCorrection(mistakes, None, None, {}, Advice(False, "no edit helps"))
    with pytest.raises(ValueError, match="nothing is proposed"):
        save_correction(none, correction, MADE_FROM, tmp_path)


def test_an_edit_for_another_model_or_space_is_refused(
    correction: Correction, space: FeatureSpace, tmp_path: Path
) -> None:
    folder = saved(correction, tmp_path / "edit")
    axes = correction.model.space
    for other in (
        fit_model(axes, drawn(400, 0.5, 8), "kind", ["cat", "dog"], "linear_probe"),
        fit_model(axes, drawn(800, 0.95, 0), "place", ["lawn", "sofa"], "linear_probe"),
    ):
        with pytest.raises(UserError, match="made for another model"):
            correction_of(folder, other)
    config = replace(space.config, dictionary_fingerprint="another")
    elsewhere = FeatureSpace(config, axes.dictionary, axes.features, axes.exemplars)
    with pytest.raises(UserError, match="another dictionary"):
        load_correction(folder, elsewhere)


def damage(folder: Path, how: str) -> None:
    config, weights = folder / "config.json", folder / "edit.safetensors"
    record = json.loads(config.read_text())
    if how == "no weights":
        weights.unlink()
    elif how == "no config":
        config.unlink()
    elif how == "cut config":
        config.write_text(config.read_text()[:100])
    elif how == "cut weights":
        weights.write_bytes(weights.read_bytes()[:20])
    elif how == "newer":
        config.write_text(json.dumps(record | {"schema": 99}))
    elif how == "other features":
        record["proposal"]["features"] = [3]
        config.write_text(json.dumps(record))
    elif how == "no proposal":
        del record["proposal"]
        config.write_text(json.dumps(record))
    elif how == "unknown field":
        config.write_text(json.dumps(record | {"colour": "red"}))
    elif how == "no model":
        (folder / "model" / "config.json").unlink()
    elif how == "no head":
        record["proposal"]["refitted"] = True
        config.write_text(json.dumps(record))


@pytest.mark.parametrize(
    "how",
    [
        "no weights",
        "no config",
        "cut config",
        "cut weights",
        "newer",
        "other features",
        "no proposal",
        "unknown field",
        "no model",
        "no head",
    ],
)
def test_a_damaged_edit_is_refused(correction: Correction, tmp_path: Path, how: str) -> None:
    folder = saved(correction, tmp_path / "edit")
    damage(folder, how)
    with pytest.raises(UserError):
        load_correction(folder, correction.model.space)


def test_standing_says_when_an_edit_no_longer_does_what_it_did(
    correction: Correction, tmp_path: Path
) -> None:
    accepted = load_correction(saved(correction, tmp_path / "edit"), correction.model.space)
    same = standing(accepted, drawn(600, 0.5, 5))
    assert same.verdict == HOLDS and same.holds
    assert same.change.low <= 0 <= same.change.high
    all_tied = standing(accepted, drawn(600, 1.0, 6))
    assert all_tied.verdict == HARMS and not all_tied.holds
    assert all_tied.now.broken >= all_tied.now.mended
    with pytest.raises(UserError, match="none of the pairs has one of the labels"):
        standing(accepted, drawn(50, 0.5, 5, ("emu", "owl")))


@pytest.mark.parametrize(
    ("now", "verdict"),
    [
        ((300, 60, 6), HOLDS),
        ((300, 8, 2), WEAKER),
        ((300, 3, 3), HARMS),
        ((10, 2, 0), OPEN),
        ((300, 2, 1), WEAKER),
        ((300, 90, 2), HOLDS),
    ],
)
def test_verdicts(
    correction: Correction, tmp_path: Path, now: tuple[int, int, int], verdict: str
) -> None:
    record = load_correction(saved(correction, tmp_path / "edit"), correction.model.space).saved
    counts = {"samples": 300, "right": 200, "mended": 60, "broken": 6, "p": 0.0}
    saved_edit = replace(record, figures={OTHER_HALF: {"counts": counts}})
    samples, mended, broken = now
    found = compared(saved_edit, Counts(samples, 5, mended, broken, mcnemar(mended, broken)))
    assert found.verdict == verdict
    assert found.change.value == pytest.approx((mended - broken) / samples - 54 / 300)
    assert f"mends {mended} and breaks {broken} of {samples}" in found.in_words()
    assert found.due is (date.today() >= date(2026, 4, 1))


def test_bad_inputs(biased: AttributeModel) -> None:
    with pytest.raises(UserError, match="12 pairs have one of the labels cat, dog"):
        correct(biased, drawn(12, 0.5, 1))
    with pytest.raises(UserError, match="0 pairs have one of the labels"):
        correct(biased, drawn(100, 0.5, 1, ("emu", "owl")))
    cats = drawn(100, 0.5, 1)
    with pytest.raises(UserError, match="have the one label cat"):
        correct(biased, cats.take(cats.columns["kind"] == "cat"))
    some = drawn(400, 0.5, 1)
    right = some.take(Corrected(biased).right(some))
    with pytest.raises(UserError, match="there is nothing to correct"):
        correct(biased, right)
    with pytest.raises(UserError, match="none of the held-out pairs"):
        correct(biased, some, drawn(100, 0.5, 1, ("emu", "owl")))
    unlabelled = replace(some, columns=some.columns | {"kind": np.full(400, None, dtype=object)})
    with pytest.raises(UserError, match="0 pairs have one of the labels"):
        correct(biased, unlabelled)
