"""Choosing edits, comparing methods, and the audit."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from features.dictionary import DictionaryConfig
from features.dictionary.identity import IdentityDictionary
from features.errors import UserError
from features.space.space import FeatureSpace
from mms_apps.attributes.audit import audit, class_effects, lean, require_groups
from mms_apps.attributes.debias.choosing import association, choose_edit
from mms_apps.attributes.debias.debiasing import debias
from mms_apps.attributes.debias.files import edit_of, load_edit, save_edit
from mms_apps.attributes.debias.retraining import last_layer_outcomes
from mms_apps.attributes.debias.validation import Validation
from mms_apps.attributes.labels import Samples, cells, split_samples
from mms_apps.attributes.leakage import group_leakage, leakage_hits
from mms_apps.attributes.model import Method, fit_model

pytestmark = pytest.mark.usefixtures("few_strengths")


@pytest.fixture
def axes(space: FeatureSpace) -> FeatureSpace:
    """A FeatureSpace whose 16 features are the axes of the embedding."""
    config = DictionaryConfig(kind="identity", dim=16, features=16, k=16, modality_bias=False)
    return FeatureSpace(
        space.config,
        IdentityDictionary(config),
        space.features[:16],
        space.exemplars,
        encoder=space.encoder,
    )


def tied(count: int, share: float, seed: int) -> Samples:
    """Weak `kind` on axis 0, strong `place` on axis 1, which go together in `share`; `size` on
    axis 2."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(2, size=count)
    place = np.where(rng.random(count) < share, kind, 1 - kind)
    size = rng.integers(2, size=count)
    x = rng.normal(size=(count, 16)) * 0.3
    x[:, 0] += 0.6 * (2 * kind - 1)
    x[:, 1] += 1.2 * (2 * place - 1)
    x[:, 2] += 0.9 * (2 * size - 1)
    columns = {
        "kind": np.array(["cat", "dog"], dtype=object)[kind],
        "place": np.array(["lawn", "sofa"], dtype=object)[place],
        "size": np.array(["big", "small"], dtype=object)[size],
    }
    ids = np.array([f"{seed}-{i}" for i in range(count)], dtype=object)
    unit = torch.nn.functional.normalize(torch.from_numpy(x).float(), dim=-1)
    return Samples(unit, ids, columns)


def test_association_is_the_mean_auroc_within_strata() -> None:
    rng = np.random.default_rng(0)
    z = rng.exponential(size=(60, 4)) * (rng.random((60, 4)) < 0.7)
    factor = np.array(["x", "y"])[rng.integers(2, size=60)]
    strata = np.array(["p", "q"])[rng.integers(2, size=60)]
    found = association(z, factor, strata)
    for feature in range(4):
        total = 0.0
        for stratum in ("p", "q"):
            xs = z[(strata == stratum) & (factor == "x"), feature]
            ys = z[(strata == stratum) & (factor == "y"), feature]
            wins = sum((x > y) + (x == y) / 2 for x in xs for y in ys) / (len(xs) * len(ys))
            total += (strata == stratum).sum() * (wins - 0.5)
        assert abs(found[feature]) == pytest.approx(abs(total / 60))


def test_a_feature_of_the_attribute_has_no_association_with_the_factor() -> None:
    samples = tied(2000, 0.95, 0)
    z = np.maximum(samples.embeddings.numpy(), 0)
    truth, place = (samples.columns[name].astype(str) for name in ("kind", "place"))
    found = np.abs(association(z, place, truth))
    assert found[1] > 0.4
    assert found[0] < 0.15


def test_the_planted_factor_is_found_and_the_gap_halved(axes: FeatureSpace) -> None:
    train, test = tied(1500, 0.95, 0), tied(2000, 0.5, 1)
    found = debias(
        axes,
        train,
        test,
        "kind",
        ["cat", "dog"],
        "place",
        ["lawn", "sofa"],
        "size",
        ["big", "small"],
        "linear_probe",
    )
    assert 1 in found.choice.features
    rows = {row.method: row for row in found.methods}
    assert list(rows) == [
        "none",
        "features",
        "mean_difference",
        "debias_vl",
        "leace",
        "reweighting",
        "last_layer",
        "random",
    ]
    assert rows["features"].gap.value < rows["none"].gap.value / 2
    assert rows["features"].gap_change.high < 0
    assert rows["features"].utility_cost.value < 0.02
    assert rows["none"].gap_change.value == 0
    assert rows["none"].leakage.value > 0.9
    for name in ("mean_difference", "leace", "reweighting", "last_layer"):
        assert rows[name].worst_group.value > rows["none"].worst_group.value
        assert rows[name].setting
    for name in ("reweighting", "last_layer"):  # they leave the embeddings as they are
        assert rows[name].leakage == rows["none"].leakage
        assert rows[name].utility_cost.value == 0
    assert rows["leace"].leakage.value < 0.7
    assert rows["none"].gap.p < 0.01
    assert rows["none"].gap.value > 2 * rows["none"].gap.chance
    for row in rows.values():
        less = row.worst_group.value - rows["features"].worst_group.value
        assert row.worst_less_features.value == pytest.approx(less)


@pytest.mark.parametrize("method", ["zero_shot", "sparse_probe"])
def test_every_method_works_on_other_models_and_a_factor_of_three_values(
    method: Method, axes: FeatureSpace
) -> None:
    train, test = tied(400, 0.9, 0), tied(400, 0.5, 1)
    for samples in (train, test):
        samples.columns["place"][::7] = "tree"
    found = debias(
        axes,
        train,
        test,
        "kind",
        ["cat", "dog"],
        "place",
        ["lawn", "sofa", "tree"],
        "size",
        ["big", "small"],
        method,
        prompts={"cat": ["a red circle"], "dog": ["a blue square"]},
        max_features=4,
    )
    assert len(found.methods) == 8
    for row in found.methods:
        assert 0 < row.gap.p <= 1
        assert 0 <= row.worst_group.value <= row.accuracy.value <= 1


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_ids_are_enough_for_as_many_folds(count: int, axes: FeatureSpace) -> None:
    """Many draws of a few drawings."""
    samples = tied(300, 0.7, 0)
    model = fit_model(axes, samples, "kind", ["cat", "dog"], "linear_probe")
    few = Samples(samples.embeddings, np.arange(300) % count, samples.columns)
    groups = cells(*(few.columns[n].astype(str) for n in ("kind", "place")))
    outcomes = last_layer_outcomes(model, Validation(few, groups), (0.1, 1.0), 0)
    assert [strength for strength, _ in outcomes] == ([0.1, 1.0] if count > 1 else [])
    leakage, chance = group_leakage(few, few.columns["place"].astype(str))
    assert (leakage.value > 0.9) == (chance < 1) == (count > 1)


@pytest.mark.parametrize("known", [("dark", "light"), ("light",)])
def test_a_group_of_one_picture_is_left_out_of_the_leakage(known: tuple[str, ...]) -> None:
    """Five captions of one picture beside pictures of their own."""
    embeddings = torch.randn(45, 6, generator=torch.Generator().manual_seed(0))
    groups = np.array([*np.resize(known, 40), *["grey"] * 5])
    ids = np.array([*map(str, range(40)), *["one"] * 5], dtype=object)
    leakage, chance = group_leakage(Samples(embeddings, ids, {}), groups)
    assert math.isfinite(leakage.value) == math.isfinite(chance) == (len(known) > 1)
    ids[-1] = "another"
    leakage, chance = group_leakage(Samples(embeddings, ids, {}), groups)
    assert math.isfinite(leakage.value)
    assert chance == np.unique(groups, return_counts=True)[1].max() / 45


def test_rare_values_of_the_unrelated_attribute_are_left_out(axes: FeatureSpace) -> None:
    train, test = tied(300, 0.8, 0), tied(200, 0.5, 1)
    train.columns["size"][:2] = "huge", "tiny"
    found = debias(
        axes,
        train,
        test,
        "kind",
        ["cat", "dog"],
        "place",
        ["lawn", "sofa"],
        "size",
        ["big", "huge", "small", "tiny"],
        "linear_probe",
    )
    assert found.methods[0].utility.value > 0.9


def test_one_value_left_to_fit_on_is_refused(axes: FeatureSpace) -> None:
    train, test = tied(100, 0.5, 0), tied(100, 0.5, 1)
    train.columns["kind"][:] = "cat"
    values = ("place", ["lawn", "sofa"], "size", ["big", "small"])
    with pytest.raises(UserError, match="kind: the samples to fit on have the one value cat"):
        debias(axes, train, test, "kind", ["cat", "dog"], *values, "zero_shot")


def test_nothing_is_taken_out_where_nothing_helps(axes: FeatureSpace) -> None:
    samples = tied(1200, 0.5, 0)
    fitted, validation = split_samples(samples, 0.3, 0)
    model = fit_model(axes, fitted, "kind", ["cat", "dog"], "linear_probe")
    validation.columns["place"] = np.random.default_rng(0).permutation(validation.columns["place"])
    groups = cells(*(validation.columns[n].astype(str) for n in ("kind", "place")))
    choice, edit = choose_edit(model, validation, "place", groups, counts=(12,), ways=("mask",))
    assert choice.features == ()
    assert torch.equal(edit.apply(validation.embeddings), validation.embeddings)


def test_split_keeps_an_id_on_one_side() -> None:
    samples = tied(100, 0.5, 0)
    twice = Samples(
        torch.cat([samples.embeddings] * 2),
        np.concatenate([samples.ids] * 2),
        {name: np.concatenate([column] * 2) for name, column in samples.columns.items()},
    )
    fitted, validation = split_samples(twice, 0.3, 0)
    assert len(validation) == 60
    assert len(fitted) == 140
    assert not set(fitted.ids) & set(validation.ids)


def test_an_edit_is_saved_and_loaded(axes: FeatureSpace, tmp_path: Path) -> None:
    samples = tied(600, 0.9, 0)
    model = fit_model(axes, samples, "kind", ["cat", "dog"], "linear_probe")
    groups = cells(*(samples.columns[n].astype(str) for n in ("kind", "place")))
    choice, edit = choose_edit(model, samples, "place", groups)
    folder = save_edit(choice, edit, model, tmp_path / "edit")
    again = edit_of(folder, model)
    assert torch.allclose(again.apply(samples.embeddings), edit.apply(samples.embeddings))
    with pytest.raises(UserError, match="edits images, not texts"):
        load_edit(folder, axes, "text")
    with pytest.raises(UserError, match="no edit here"):
        load_edit(tmp_path, axes, "image")
    other = fit_model(axes, samples, "place", ["lawn", "sofa"], "linear_probe")
    with pytest.raises(UserError, match=r"chosen for another model .* place \(lawn, sofa; linear"):
        edit_of(folder, other)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"model"', '"unknown"'))
    edit_of(folder, other)  # of an earlier version, which did not record it


@pytest.mark.parametrize("file", ["config.json", "edit.safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\x00" * 64, save({"features": torch.tensor([10_000])})]
)
def test_a_damaged_edit_is_said_to_be_so(
    axes: FeatureSpace, tmp_path: Path, file: str, content: bytes
) -> None:
    samples = tied(600, 0.9, 0)
    model = fit_model(axes, samples, "kind", ["cat", "dog"], "linear_probe")
    groups = cells(*(samples.columns[n].astype(str) for n in ("kind", "place")))
    folder = save_edit(*choose_edit(model, samples, "place", groups), model, tmp_path / "edit")
    (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=f"{folder}/"):
        edit_of(folder, model)


def test_leakage_does_not_take_the_attribute_for_the_factor() -> None:
    train, test = tied(1000, 0.95, 0), tied(1000, 0.5, 1)
    kinds = train.columns["kind"].astype(str)
    places, wanted = (s.columns["place"].astype(str) for s in (train, test))
    blind, blind_test = train.embeddings.clone(), test.embeddings.clone()
    blind[:, 1] = blind_test[:, 1] = 0
    assert leakage_hits(train.embeddings, places, kinds, test.embeddings, wanted).mean() > 0.95
    assert leakage_hits(blind, places, kinds, blind_test, wanted).mean() < 0.6


def test_training_pairs_among_the_test_pairs_are_refused(axes: FeatureSpace) -> None:
    samples = tied(200, 0.9, 0)
    arguments = ("kind", ["cat", "dog"], "place", ["lawn", "sofa"], "size", ["big", "small"])
    with pytest.raises(UserError, match="among the training pairs"):
        debias(axes, samples, samples, *arguments, "linear_probe")


def test_a_factor_of_one_value_is_refused(axes: FeatureSpace) -> None:
    samples = tied(200, 0.9, 0)
    model = fit_model(axes, samples, "kind", ["cat", "dog"], "linear_probe")
    lawn = samples.having("place", ["lawn"])
    with pytest.raises(UserError, match="place: the validation samples have the one value lawn"):
        choose_edit(model, lawn, "place", lawn.columns["kind"].astype(str))
    with pytest.raises(UserError, match=r"place: 1 group \(lawn\)"):
        require_groups(lawn, "place")


def test_an_audit_names_the_worst_group_and_counts_what_it_leaves_out(axes: FeatureSpace) -> None:
    train, test = tied(1500, 0.95, 0), tied(1000, 0.5, 1)
    model = fit_model(axes, train, "kind", ["cat", "dog"], "linear_probe")
    test.columns["kind"][:30] = "unspecified"
    test.columns["kind"][30:40] = None
    test.columns["size"][40:45] = None
    found = audit(model, test, "size", role="place", replicates=100)
    assert found.unlabelled == 40
    assert found.ungrouped == 5
    assert found.measures.samples == 955
    assert found.leakage.value > 0.9
    assert found.lean[0].samples == 30
    assert {row.role for row in found.lean} == {"all", "lawn", "sofa"}
    for row in found.lean:
        assert sum(share.value for share in row.shares.values()) == pytest.approx(1)
    ungrouped = test.take(np.arange(38, 45))  # without a label, or without a group
    with pytest.raises(UserError, match="size: no sample has both a group and one of the classes"):
        audit(model, ungrouped, "size")
    for values, said in (("CAT", "CAT"), ("unspecified", "unspecified"), (None, "none")):
        other = test.take(np.arange(30))
        other.columns["kind"][:] = values
        with pytest.raises(UserError, match=rf"kind: .* cat, dog; their values are {said}:"):
            audit(model, other, "size")


def test_groups_that_say_nothing_are_refused(axes: FeatureSpace) -> None:
    samples = tied(200, 0.95, 0)
    model = fit_model(axes, samples, "kind", ["cat", "dog"], "linear_probe")
    for group in ("kind", ["kind", "kind"]):
        with pytest.raises(UserError, match="kind: is what is predicted; group by another"):
            audit(model, samples, group, replicates=10)
    crossed = audit(model, samples, ["size", "kind"], replicates=10).measures
    assert len(crossed.groups) == 4 and np.isfinite(crossed.tpr_difference.value)
    samples.columns["age"] = np.array([f"{20 + 0.37 * i:g}" for i in range(200)], dtype=object)
    with pytest.raises(UserError, match="age: 200 groups of 200 samples, most of them of one"):
        require_groups(samples, "age")
    assert len(require_groups(samples, ["size", "place"])) == 4


@pytest.mark.parametrize(
    ("factor", "unrelated", "message"),
    [
        ("kind", "place", "factor kind: is what is predicted"),
        ("size", "kind", "unrelated kind: is what is predicted"),
        ("size", "size", "unrelated size: is what is taken out"),
    ],
)
def test_debias_needs_three_attributes(
    axes: FeatureSpace, factor: str, unrelated: str, message: str
) -> None:
    train, test = tied(60, 0.9, 0), tied(60, 0.5, 1)
    values = {"kind": ["cat", "dog"], "size": ["big", "small"], "place": ["lawn", "sofa"]}
    with pytest.raises(UserError, match=message):
        debias(
            axes, train, test, "kind", values["kind"], factor, values[factor], unrelated,
            values[unrelated], "linear_probe",
        )  # fmt: skip


def test_keeping_all_features_is_the_models_accuracy(space: FeatureSpace) -> None:
    samples = tied(300, 0.5, 0)
    model = fit_model(space, samples, "kind", ["cat", "dog"], "sparse_probe", max_features=8)
    effects = class_effects(model, samples, random_groups=2, replicates=50)
    assert {effect.what for effect in effects} == {"keep", "remove"}
    for effect in effects:
        expected = effect.accuracy.value - effect.random.value
        assert effect.difference.value == pytest.approx(expected)
    assert sum(effect.energy for effect in effects if effect.what == "keep") <= 1.0 + 1e-6


def test_lean_without_samples_is_empty(axes: FeatureSpace) -> None:
    samples = tied(100, 0.5, 0)
    model = fit_model(axes, samples, "kind", ["cat", "dog"], "linear_probe")
    assert lean(model, samples.take(np.array([], dtype=int)), "place") == []


def test_lean_counts_a_picture_once(axes: FeatureSpace) -> None:
    samples = tied(100, 0.5, 0)
    model = fit_model(axes, samples, "kind", ["cat", "dog"], "linear_probe")
    rows = np.repeat(np.arange(10), 5)
    assert lean(model, samples.take(rows), "place") == lean(model, samples.take(rows[::5]), "place")
