"""Models: explanations add up, round trips, streamed predictions."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from features.analysis.search import exemplars
from features.errors import UserError
from features.space.space import FeatureSpace
from features.store.store import ActivationStore, StoreConfig
from features.store.write import sample_table, write_store
from mms_apps.attributes import predict
from mms_apps.attributes.audit import audit
from mms_apps.attributes.edits import KeepFeatures
from mms_apps.attributes.explain import (
    explain,
    feature_contributions,
    logit_scores,
    probabilities_without,
)
from mms_apps.attributes.labels import Samples, classes_of, read_samples, split_samples
from mms_apps.attributes.model import METHODS, AttributeModel, Method, fit_model, load_model

pytestmark = pytest.mark.usefixtures("few_strengths")

PROMPTS = {"cat": ["a red circle"], "dog": ["a blue square"]}


def make(space: FeatureSpace, samples: Samples, method: Method) -> AttributeModel:
    return fit_model(space, samples, "kind", ["cat", "dog"], method, prompts=PROMPTS)


def store_of(space: FeatureSpace, samples: Samples, folder: Path) -> ActivationStore:
    config = StoreConfig(
        encoder=space.config.encoder,
        encoder_fingerprint=space.config.encoder_fingerprint,
        pairs="made",
        pairs_fingerprint="made",
        dim=16,
    )
    attributes = [{"kind": kind} for kind in samples.columns["kind"]]
    captions = [[str(name)] for name in samples.ids]
    table = sample_table(samples.ids.tolist(), captions, attributes=attributes)
    return write_store(folder, samples.embeddings, samples.embeddings, table, config, shard_rows=64)


@pytest.mark.parametrize("method", METHODS)
def test_contributions_add_up_to_the_logit(
    method: Method, space: FeatureSpace, samples: Samples
) -> None:
    model = make(space, samples, method)
    for found in explain(model, samples.embeddings):
        assert found.total == pytest.approx(found.logit, abs=1e-4)
        sizes = [abs(c.contribution) for c in found.contributions]
        assert sizes == sorted(sizes, reverse=True)
        odds = found.probability / (1 - found.probability)
        assert np.log(odds) == pytest.approx(found.logit, abs=1e-4)
        everything = {c.modality_class for c in found.contributions}
        assert found.without(everything) == pytest.approx(found.constant + found.unexplained)


@pytest.mark.parametrize("method", METHODS)
def test_the_logit_as_a_function_of_embeddings(
    method: Method, space: FeatureSpace, samples: Samples
) -> None:
    model = make(space, samples, method)
    embeddings = samples.embeddings[:10].clone().requires_grad_()
    for label in model.classes:
        scores = logit_scores(model, label)(embeddings)
        expected = [e.logit for e in explain(model, embeddings.detach(), [label] * 10)]
        assert scores.tolist() == pytest.approx(expected, abs=1e-4)
        (gradient,) = torch.autograd.grad(scores.sum(), embeddings)
        assert gradient.abs().sum() > 0
    keep = KeepFeatures(space, torch.arange(len(space)), "image")
    edited = logit_scores(model, label, keep)(embeddings.detach())
    expected = [e.logit for e in explain(model, embeddings, [label] * 10, keep)]
    assert edited.tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_contributions_of_three_classes_add_up(
    method: Method, space: FeatureSpace, samples: Samples
) -> None:
    both = [f"{k} {p}" for k, p in zip(*samples.columns.values(), strict=True)]
    names = sorted(set(both))[:3]
    columns = {"both": np.array(both, dtype=object)}
    made = Samples(samples.embeddings, samples.ids, columns)
    prompts = {name: [word] for name, word in zip(names, ("a red", "a blue", "a"), strict=True)}
    model = fit_model(space, made, "both", names, method, prompts=prompts)
    parts, constant, unexplained = feature_contributions(model, made.embeddings, names[1])
    logits = model.estimator.logits(model.inputs(made.embeddings))[:, 1]
    assert parts.sum(axis=1) + constant + unexplained == pytest.approx(logits, abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_switching_classes_off_is_the_logit_without_them(
    method: Method, space: FeatureSpace, samples: Samples
) -> None:
    model = make(space, samples, method)
    embeddings = samples.embeddings[:20]
    same = probabilities_without(model, embeddings, [])
    assert same == pytest.approx(model.predict_proba(embeddings), abs=1e-6)
    found = probabilities_without(model, embeddings, ["CrossD"])
    for row, explanation in enumerate(explain(model, embeddings, ["dog"] * 20)):
        expected = 1 / (1 + np.exp(-explanation.without(["CrossD"])))
        assert found[row, 1] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_save_and_load(
    method: Method, space: FeatureSpace, samples: Samples, tmp_path: Path
) -> None:
    model = make(space, samples, method)
    again = load_model(model.save(tmp_path / "model"), space)
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "attribute.safetensors",
        "config.json",
    ]
    assert again.config == model.config
    expected = model.predict_proba(samples.embeddings)
    assert again.predict_proba(samples.embeddings) == pytest.approx(expected)


def test_a_zero_shot_model_saved_in_another_order_of_its_classes_predicts_the_same(
    space: FeatureSpace, samples: Samples, tmp_path: Path
) -> None:
    model = make(space, samples, "zero_shot")
    saved = AttributeModel(
        dataclasses.replace(model.config, classes=model.config.classes[::-1]),
        model.estimator,
        space,
    )
    estimator = saved.estimator
    estimator.coef_, estimator.intercept_ = estimator.coef_[::-1], estimator.intercept_[::-1]
    again = load_model(saved.save(tmp_path / "model"), space)
    assert again.classes == ("cat", "dog")
    expected = make(space, samples, "zero_shot").predict_proba(samples.embeddings)
    assert again.predict_proba(samples.embeddings) == pytest.approx(expected)


def test_a_model_of_another_space_is_refused(
    space: FeatureSpace, samples: Samples, tmp_path: Path
) -> None:
    folder = make(space, samples, "sparse_probe").save(tmp_path / "model")
    config = dataclasses.replace(space.config, dictionary_fingerprint="other")
    other = FeatureSpace(config, space.dictionary, space.features, space.exemplars)
    with pytest.raises(UserError, match="another dictionary"):
        load_model(folder, other)
    with pytest.raises(UserError, match="no attribute model here"):
        load_model(tmp_path, space)


@pytest.mark.parametrize("method", ["zero_shot", "linear_probe", "sparse_probe"])
@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", lambda content: content[: len(content) // 2]),
        ("config.json", lambda content: b""),
        ("config.json", lambda content: content.replace(b'"classes"', b'"kinds"')),
        ("config.json", lambda content: content.replace(b'"cat"', b'"cat", "cow"')),
        ("attribute.safetensors", lambda content: content[: len(content) // 2]),
        ("attribute.safetensors", lambda content: b""),
        ("attribute.safetensors", lambda content: b"version https://git-lfs.github.com/spec/v1\n"),
        ("attribute.safetensors", lambda content: content.replace(b'"coef"', b'"cofe"')),
    ],
)
def test_a_damaged_model_is_said_to_be_so(
    space: FeatureSpace,
    samples: Samples,
    tmp_path: Path,
    method: Method,
    file: str,
    change: Callable[[bytes], bytes],
) -> None:
    folder = make(space, samples, method).save(tmp_path / "model")
    (folder / file).write_bytes(change((folder / file).read_bytes()))
    with pytest.raises(UserError, match=f"{folder}/"):
        load_model(folder, space)


def test_predictions_are_the_models_in_order(
    space: FeatureSpace, samples: Samples, tmp_path: Path
) -> None:
    model = make(space, samples, "linear_probe")
    store = store_of(space, samples, tmp_path / "store")
    summary = predict.write_predictions(model, store, tmp_path / "out.csv", batch_size=37)
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    half = samples.embeddings.half().float()
    expected = model.predict(torch.nn.functional.normalize(half, dim=-1))
    assert [row["id"] for row in rows] == samples.ids.tolist()
    assert [row["prediction"] for row in rows] == expected.tolist()
    assert float(rows[3]["p_cat"]) + float(rows[3]["p_dog"]) == pytest.approx(1, abs=1e-5)
    assert summary.labelled == summary.pairs == 200
    assert summary.correct == int((expected == samples.columns["kind"]).sum())


def test_predictions_hold_one_batch_at_a_time(
    space: FeatureSpace, samples: Samples, tmp_path: Path
) -> None:
    import tracemalloc

    class Endless:
        """A store of many rows that are made when they are read."""

        config = store_of(space, samples, tmp_path / "store").config
        sample_columns = ("id",)

        def __init__(self, batches: int) -> None:
            self.count = batches

        def batches(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for _ in range(self.count):
                x = torch.nn.functional.normalize(torch.randn(size, 16), dim=-1)
                yield x, x

        def sample_batches(self, size: int, columns: list[str]) -> Iterator:
            for _ in range(self.count):
                yield sample_table([str(i) for i in range(size)], [["a"]] * size).select(columns)

    model = make(space, samples, "linear_probe")
    peaks = []
    for batches in (3, 30):
        tracemalloc.start()
        summary = predict.write_predictions(
            model,
            Endless(batches),  # type: ignore[arg-type]
            tmp_path / "out.csv",
            batch_size=2000,
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert summary.pairs == 2000 * batches
    assert peaks[1] < 1.2 * peaks[0]


def test_a_missing_attribute_and_one_value_are_named(
    space: FeatureSpace, samples: Samples, tmp_path: Path
) -> None:
    store = store_of(space, samples, tmp_path / "store")
    with pytest.raises(UserError, match="colour: made has no such attribute; they have kind"):
        store.require_attributes(["colour"])
    read = read_samples(store, ["kind"])
    assert read_samples(store, "kind").columns.keys() == {"kind"}
    with pytest.raises(UserError, match="modality audio: use image or text"):
        read_samples(store, ["kind"], "audio")  # type: ignore[arg-type]
    assert classes_of(read, "kind") == ["cat", "dog"]
    for asked in (
        lambda: classes_of(read, "colour"),
        lambda: fit_model(space, read, "colour", ["cat", "dog"], "linear_probe"),
        lambda: audit(make(space, read, "linear_probe"), read, ["colour"]),
        lambda: audit(make(space, read, "linear_probe"), read, ["kind"], role="colour"),
    ):
        with pytest.raises(UserError, match="colour: the samples have no such attribute; they"):
            asked()
    with pytest.raises(UserError, match="0 samples have the value cow"):
        classes_of(read, "kind", ["cat", "cow"])
    with pytest.raises(UserError, match=r"1 value to tell apart \(cat\)"):
        classes_of(read.having("kind", ["cat"]), "kind")


@pytest.mark.parametrize("method", ["linear_probe", "sparse_probe"])
def test_embeddings_may_be_an_array_and_must_fit(
    space: FeatureSpace, samples: Samples, method: Method
) -> None:
    model = make(space, samples, method)
    x = samples.embeddings[:4]
    assert model.predict(x.numpy()).tolist() == model.predict(x).tolist()  # type: ignore[arg-type]
    ours, theirs = explain(model, x.numpy()), explain(model, x)  # type: ignore[arg-type]
    assert [one.logit for one in ours] == [one.logit for one in theirs]
    for wrong, message in ((x[:, :7], r"embeddings \[4, 7\]"), (x / 0, "not finite")):
        for call in (model.predict, lambda given: explain(model, given)):
            with pytest.raises(UserError, match=message):
                call(wrong)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("length", [0.05, 1.0, 20.0])
def test_embeddings_of_any_length_and_kind_are_read_alike(
    space: FeatureSpace, samples: Samples, method: Method, length: float
) -> None:
    model = make(space, samples, method)
    x = samples.embeddings[:40]
    as_fitted = model.estimator.predict_proba(model.inputs(x))
    keep = KeepFeatures(space, torch.arange(len(space)), "image")
    of_edited = model.estimator.predict_proba(model.inputs(keep.apply(x)))
    shown, off = explain(model, x[:3]), probabilities_without(model, x, ["CrossD"])
    label = model.classes[0]
    for given in (length * x, (length * x).numpy(), (length * x).double().requires_grad_()):
        assert model.predict_proba(given) == pytest.approx(as_fitted, abs=1e-5)
        assert model.predict_proba(given, keep) == pytest.approx(of_edited, abs=1e-4)
        found = [(one.logit, one.total) for one in explain(model, given[:3])]
        expected = [(one.logit, one.total) for one in shown]
        assert np.array(found) == pytest.approx(np.array(expected), abs=1e-4)
        assert probabilities_without(model, given, ["CrossD"]) == pytest.approx(off, abs=1e-5)
    scores = logit_scores(model, label, keep)
    torch.testing.assert_close(scores(length * x), scores(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_tables_lists_half_precision_and_no_embeddings_are_taken(
    space: FeatureSpace, samples: Samples, method: Method
) -> None:
    import pandas as pd

    model = make(space, samples, method)
    x = samples.embeddings[:4]
    expected = model.predict(x).tolist()
    for given in (pd.DataFrame(x.numpy()), x.tolist(), x.half(), x.clone().requires_grad_()):
        assert model.predict(given).tolist() == expected  # type: ignore[arg-type]
    assert model.predict(x.bfloat16()).shape == (4,)
    for none in (x[:0], x[:0].numpy()):
        assert model.predict(none).shape == (0,)
        assert model.predict_proba(none).shape == (0, 2)
    for wrong in ("words", [["a", "b"]], pd.DataFrame({"a": ["b"]}), None, [[1.0], [1.0, 2.0]]):
        with pytest.raises(UserError, match="embeddings"):
            model.predict(wrong)  # type: ignore[arg-type]


def test_what_has_no_value_is_not_the_value_none(samples: Samples) -> None:
    column = np.array(["None", None, "dog", ""] * 50, dtype=object)
    labelled = dataclasses.replace(samples, columns={"kind": column})
    assert classes_of(labelled, "kind") == ["None", "dog"]
    kept = labelled.having("kind", ["None", "dog"])
    assert kept.columns["kind"].tolist() == ["None", "dog"] * 50


def rows_of(space: FeatureSpace, samples: Samples, folder: Path, rows: list[int]) -> Samples:
    """Some of the samples as a store's, in which each picture has a caption of its own row."""
    taken = samples.take(np.array(rows))
    names = [f"{folder.name} {row}" for row in range(len(rows))]
    table = sample_table(
        names,
        names,
        attributes=[{"kind": kind} for kind in taken.columns["kind"]],
        contents=[f"{row:016x}{name:>16}" for row, name in zip(rows, names, strict=True)],
    )
    config = StoreConfig("", space.config.encoder_fingerprint, "made", "made", 16)
    store = write_store(folder, taken.embeddings, taken.embeddings, table, config)
    return read_samples(store, ["kind"])


def test_a_picture_with_another_caption_is_among_the_training_pairs(
    space: FeatureSpace, samples: Samples, tmp_path: Path
) -> None:
    train = rows_of(space, samples, tmp_path / "train", [0, 1, 2, 3])
    test = rows_of(space, samples, tmp_path / "test", [7, 2, 8, 0, 2])
    assert test.shared_with(train).tolist() == [False, True, False, True, True]


def test_rows_of_one_picture_are_drawn_and_split_together(
    space: FeatureSpace, samples: Samples, tmp_path: Path
) -> None:
    read = rows_of(space, samples, tmp_path / "rows", [*range(20), *range(20)])
    assert read.ids.tolist() == [f"rows {row % 20}" for row in range(40)]
    for seed in range(3):
        others, part = split_samples(read, 0.3, seed)
        assert len(part) == 12
        assert not part.shared_with(others).any()
        assert part.pictures is not None and others.pictures is not None
        assert not np.isin(part.pictures, others.pictures).any()


def test_a_large_store_is_sampled(space: FeatureSpace, samples: Samples, tmp_path: Path) -> None:
    store = store_of(space, samples, tmp_path / "store")
    read = read_samples(store, ["kind"], max_samples=50, seed=1)
    again = read_samples(store, ["kind"], max_samples=50, seed=1)
    assert len(read) == 50
    assert read.ids.tolist() == again.ids.tolist()
    place = {name: row for row, name in enumerate(samples.ids)}
    rows = [place[name] for name in read.ids]
    assert torch.allclose(read.embeddings, samples.embeddings[rows], atol=2e-3)


def test_a_probe_without_samples_and_missing_prompts_are_refused(space: FeatureSpace) -> None:
    with pytest.raises(UserError, match="needs labelled pairs"):
        fit_model(space, None, "kind", ["cat", "dog"], "linear_probe")
    with pytest.raises(UserError, match="dog: no prompt"):
        fit_model(space, None, "kind", ["cat", "dog"], "zero_shot", prompts={"cat": ["a"]})


def test_exemplars_are_the_strongest_first(space: FeatureSpace) -> None:
    shown = {row["feature"] for row in space.exemplars.to_pylist() if row["thumbnail"]}
    feature = sorted(shown)[0]
    rows = exemplars(space, [feature], 3)[feature]
    activations = [row["activation"] for row in rows]
    assert 1 <= len(rows) <= 3
    assert activations == sorted(activations, reverse=True)
