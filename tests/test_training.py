"""How long and how a dictionary is trained: settings, history, early stopping, samples."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import LoggerType
from hypothesis import given, settings
from hypothesis import strategies as st

from features.dictionary import TopKDictionary, TrainConfig, fit_dictionary, load_dictionary
from features.dictionary.held_out import evaluated_pairs, is_held_out
from features.dictionary.reconstruction import fvu_within, reconstruction_figures
from features.errors import UserError
from features.space.score import score
from features.space.space import FeatureSpace
from features.store.sample import sampled
from features.store.store import ActivationStore, same_pairs
from tests.test_dictionary import SMALL, make_store

MEASURED = dataclasses.replace(SMALL, evaluate_steps=10)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return make_store(tmp_path_factory.mktemp("stores") / "planted")


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, 3000),
        ({"steps": 7}, 7),
        ({"samples": 1000, "batch_size": 64}, 16),
        ({"samples": 1}, 1),
        ({"epochs": 2, "batch_size": 64}, 20),
        ({"epochs": 0.5, "batch_size": 64}, 5),
        ({"epochs": 0.001}, 1),
    ],
)
def test_how_long(given: dict[str, Any], expected: int) -> None:
    assert TrainConfig(**given).total_steps(600) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 3, "samples": 3}, "steps and samples: give one"),
        ({"epochs": 1.0, "samples": 3}, "samples and epochs: give one"),
        ({"steps": 0}, "steps 0"),
        ({"samples": -5}, "samples -5"),
        ({"epochs": 0.0}, "epochs 0"),
        ({"epochs": -1.0}, "epochs -1"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"dead_samples": 0}, "dead_samples 0"),
        ({"patience": 0}, "patience 0"),
        ({"learning_rate": 0.0}, "learning_rate 0"),
        ({"learning_rate": float("nan")}, "learning_rate nan"),
    ],
)
def test_impossible_settings_are_named(
    store: ActivationStore, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        fit_dictionary(store, TrainConfig(**given), tmp_path / "d", progress=False)
    assert not (tmp_path / "d").exists()


def test_the_rate_rises_stays_and_falls() -> None:
    config = TrainConfig(learning_rate=0.01, warmup_steps=10)
    rates = [config.rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.001) and rates[9] == rates[79] == 0.01
    assert rates[-1] == pytest.approx(0.01 / 20) and sorted(rates[80:], reverse=True) == rates[80:]


@pytest.mark.parametrize("way", [{"samples": 60 * 64}, {"epochs": 6.0}])
def test_samples_and_epochs_train_as_steps_do(
    store: ActivationStore, tmp_path: Path, way: dict[str, Any]
) -> None:
    by_steps = fit_dictionary(store, SMALL, tmp_path / "steps", progress=False)
    other = dataclasses.replace(SMALL, steps=None, **way)
    found = fit_dictionary(store, other, tmp_path / "other", progress=False)
    assert torch.equal(found.directions, by_steps.directions)
    assert found.config.training is not None
    assert found.config.training["steps_taken"] == 60
    assert found.config.training["mixed_precision"] == "no"


def test_the_history_is_whole_after_a_kill(
    store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit_dictionary(store, MEASURED, tmp_path / "whole", progress=False)
    lines = metrics(tmp_path / "whole")
    assert [line["step"] for line in lines if "loss" in line] == [0, 20, 40]
    held_out = [line for line in lines if "held_out_fvu" in line]
    assert [line["step"] for line in held_out] == [9, 19, 29, 39, 49, 59]
    first = lines[0]
    assert first["pairs"] == 64 and first["learning_rate"] == pytest.approx(1e-3 / 50)
    assert {"loss", "fvu", "dead"} <= set(first)
    assert held_out[-1]["held_out_fvu"] < 0.9 * held_out[0]["held_out_fvu"]
    assert whole.config.held_out is not None
    assert held_out[-1]["held_out_fvu"] == pytest.approx(whole.config.held_out["within"]["fvu"])

    forward, calls = TopKDictionary.forward, []

    def killed(self: TopKDictionary, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 48:
            raise KeyboardInterrupt
        return forward(self, *arguments)

    monkeypatch.setattr(TopKDictionary, "forward", killed)
    with pytest.raises(KeyboardInterrupt):
        fit_dictionary(store, MEASURED, tmp_path / "cut", progress=False)
    assert metrics(tmp_path / "cut")[-1]["step"] == 40
    fit_dictionary(store, MEASURED, tmp_path / "cut", progress=False)
    assert metrics(tmp_path / "cut") == lines


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 40))
def test_the_quick_figure_is_the_headlines(seed: int, pairs: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, pairs, 16, generator=generator)
    dictionary = TopKDictionary(dataclasses.replace(dictionary_config(), seed=seed)).requires_grad_(
        False
    )
    figures = reconstruction_figures(dictionary, [(image, text)])
    found = fvu_within(dictionary, image, text)
    assert found == pytest.approx(figures["within"]["fvu"], rel=1e-5)
    assert fvu_within(dictionary, image[:0], text[:0]) is None
    assert fvu_within(dictionary, image[:1], text[:1]) is None


def dictionary_config() -> Any:
    from features.dictionary import DictionaryConfig

    return DictionaryConfig("topk", 16, 48, 4, modality_bias=True)


def test_it_is_measured_on_held_out_pairs(
    store: ActivationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, _ = store.rows(range(len(store)))
    every = image[is_held_out(image)]
    assert torch.equal(evaluated_pairs(store)[0], every)
    monkeypatch.setattr("features.dictionary.held_out.EVALUATED_PAIRS", 5)
    assert torch.equal(evaluated_pairs(store)[0], every[:5])


PATIENT = dataclasses.replace(
    SMALL, steps=400, evaluate_steps=10, patience=3, learning_rate=0.3, warmup_steps=1
)
"""A rate at which the FVU soon gets no better."""


def test_early_stopping_keeps_the_best(store: ActivationStore, tmp_path: Path) -> None:
    fitted = fit_dictionary(store, PATIENT, tmp_path / "d", progress=False)
    found = [line["held_out_fvu"] for line in metrics(tmp_path / "d") if "held_out_fvu" in line]
    best = int(np.argmin(found))
    assert len(found) == best + 1 + 3 and len(found) < 40
    assert fitted.config.training is not None and fitted.config.held_out is not None
    assert fitted.config.training["steps_taken"] == 10 * len(found)
    assert fitted.config.held_out["within"]["fvu"] == pytest.approx(found[best])
    assert found[-1] > found[best]
    patient = dataclasses.replace(PATIENT, patience=10_000, steps=30)
    fit_dictionary(store, patient, tmp_path / "e", progress=False)
    assert len(metrics(tmp_path / "e")) > 0


def test_early_stopping_after_a_kill(
    store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit_dictionary(store, PATIENT, tmp_path / "whole", progress=False)
    assert whole.config.training is not None
    last = whole.config.training["steps_taken"]
    forward, calls = TopKDictionary.forward, []

    def killed(self: TopKDictionary, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == last - 4:
            raise KeyboardInterrupt
        return forward(self, *arguments)

    monkeypatch.setattr(TopKDictionary, "forward", killed)
    with pytest.raises(KeyboardInterrupt):
        fit_dictionary(store, PATIENT, tmp_path / "cut", progress=False)
    resumed = fit_dictionary(store, PATIENT, tmp_path / "cut", progress=False)
    assert resumed.config == whole.config
    assert torch.equal(resumed.directions, whole.directions)


def test_dead_features_are_counted_in_pairs(store: ActivationStore, tmp_path: Path) -> None:
    """Twice the batch, half the steps: dead after as many pairs."""
    seen: dict[int, list[float]] = {}
    for batch in (32, 64):
        config = TrainConfig(features=48, k=1, batch_size=batch, samples=2560, dead_samples=640)
        fit_dictionary(store, config, tmp_path / str(batch), progress=False)
        seen[batch] = [line["dead"] for line in metrics(tmp_path / str(batch)) if "dead" in line]
        first = next(line for line in metrics(tmp_path / str(batch)) if line.get("dead"))
        assert first["pairs"] > 640
    assert seen[32][0] == seen[64][0] == 0


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "trackio"])
def test_a_missing_tracker_is_named(
    store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: str
) -> None:
    monkeypatch.setattr("accelerate.tracking._available_trackers", [])
    with pytest.raises(UserError, match=f"not installed; run: pip install {tracker}"):
        fit_dictionary(store, SMALL, tmp_path / "d", tracker=tracker, progress=False)
    with pytest.raises(UserError, match="unknown; use one of tensorboard"):
        fit_dictionary(store, SMALL, tmp_path / "d", tracker="mlflow", progress=False)
    assert not (tmp_path / "d").exists()


class FakeTracker:
    """What accelerate wants of a tracker."""

    name = "tensorboard"
    requires_logging_directory = True
    made: list[FakeTracker] = []  # noqa: RUF012

    def __init__(self, run_name: str, logging_dir: Path) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.settings: dict[str, Any] = {}
        self.finished = False
        FakeTracker.made.append(self)

    def start(self) -> None:
        if not FakeTracker.made[1:]:
            return
        raise RuntimeError("no server")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log(self, values: dict[str, float], step: int, **_: Any) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


def test_a_tracker_is_told_what_the_history_holds(
    store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.TENSORBOARD])
    for module in ("tracking", "accelerator"):
        classes = f"accelerate.{module}.LOGGER_TYPE_TO_CLASS"
        monkeypatch.setattr(classes, {"tensorboard": FakeTracker})
    monkeypatch.setattr(FakeTracker, "made", [])
    fit_dictionary(store, MEASURED, tmp_path / "d", tracker="tensorboard", progress=False)
    (tracker,) = FakeTracker.made
    assert tracker.settings["k"] == 4 and tracker.finished
    expected = [(line.pop("step"), line) for line in map(dict, metrics(tmp_path / "d"))]
    assert tracker.logged == expected
    with pytest.raises(UserError, match=r"tensorboard: does not start \(no server"):
        fit_dictionary(store, MEASURED, tmp_path / "e", tracker="tensorboard", progress=False)


def test_a_sample_is_read_as_a_store(store: ActivationStore) -> None:
    part = sampled(store, 100, seed=3)
    assert len(part) == 100 and sampled(store, None, 3) is store and sampled(store, 600, 3) is store
    ids = [int(name) for name in part.samples()["id"].to_pylist()]
    assert ids == sorted(set(ids)) and ids != list(range(100))
    image, text = store.rows(ids)
    batches = list(part.batches(7, range(10, 90)))
    assert torch.equal(torch.cat([batch[0] for batch in batches]), image[10:90])
    assert torch.equal(torch.cat([batch[1] for batch in batches]), text[10:90])
    assert torch.equal(part.rows([99, 0])[0], image[[99, 0]])
    tables = list(part.sample_batches(7, range(10, 90)))
    assert [len(table) for table in tables] == [7] * 11 + [3]
    assert [n for table in tables for n in table["id"].to_pylist()] == list(map(str, ids[10:90]))
    assert tables[0].column_names == store.sample_columns
    assert part.sample_rows([5, 2], ["id"])["id"].to_pylist() == [str(ids[5]), str(ids[2])]
    shuffled = list(part.shuffled_batches(16, torch.Generator().manual_seed(0)))
    rows = torch.cat([batch[0] for batch in shuffled])
    assert sorted(rows.tolist()) == sorted(image.tolist()) and not torch.equal(rows, image)
    other = sampled(store, 100, seed=4)
    assert len({store.fingerprint, part.fingerprint, other.fingerprint}) == 3
    assert sampled(store, 100, seed=3).fingerprint == part.fingerprint
    assert same_pairs(part, sampled(store, 100, seed=3)) and not same_pairs(part, other)
    with pytest.raises(UserError, match="sample 1: must be at least 2"):
        sampled(store, 1, 0)
    for wrong in ([-1], [100]):
        with pytest.raises(IndexError):
            part.rows(wrong)


def test_scores_of_a_sample_are_those_of_its_pairs(store: ActivationStore, tmp_path: Path) -> None:
    from features.store.write import write_store

    part = sampled(store, 150, seed=0)
    image, text = part.rows(range(150))
    config = dataclasses.replace(store.config, shards=())
    alone = write_store(tmp_path / "alone", image, text, part.samples(), config)
    dictionary = fit_dictionary(store, SMALL, tmp_path / "d", progress=False)
    one, two = (score(s, dictionary, progress=False, device="cpu") for s in (part, alone))
    for name in one.features.column_names:
        left, right = (space.features[name].to_numpy() for space in (one, two))
        np.testing.assert_array_equal(left, right)
    assert one.config.pair_count == 150


def test_the_command_takes_all_of_it(store: ActivationStore, tmp_path: Path, mms: Callable) -> None:
    options = ("--features", 20, "--k", 3, "--epochs", 2, "--train-batch-size", 50)
    options += ("--learning-rate", 0.01, "--dead-samples", 500, "--patience", 4, "--seed", 5)
    command = ("fit", "--store", store.path, *options, "--sample", 200, "--out", tmp_path / "d")
    code, out, err = mms(*command)
    assert code == 0 and "20 features" in out, err
    training = load_dictionary(tmp_path / "d").config.training
    assert training is not None
    expected = {"k": 3, "epochs": 2.0, "batch_size": 50, "learning_rate": 0.01, "seed": 5}
    assert expected.items() <= training.items()
    assert training["dead_samples"] == 500 and training["patience"] == 4
    assert training["store_fingerprint"] == sampled(store, 200, 5).fingerprint
    assert metrics(tmp_path / "d")[-1]["step"] == 7
    steps = ("--store", store.path, "--dictionary", tmp_path / "d", "--sample", 100)
    code, _, err = mms("score", *steps, "--out", tmp_path / "space")
    assert code == 0, err
    assert FeatureSpace.load(tmp_path / "space", device="cpu").config.pair_count == 100
    code, _, err = mms(*command[:3], "--steps", 3, "--epochs", 2, "--out", tmp_path / "e")
    assert code == 2 and "steps and epochs: give one of them" in err


def test_the_whole_run_takes_them_too(
    clip_folder: Path, imagefolder: Path, tmp_path: Path, mms: Callable
) -> None:
    run = ("run", "--pairs", imagefolder, "--encoder", f"local-dir:{clip_folder}")
    options = ("--features", 20, "--k", 3, "--samples", 600, "--train-batch-size", 30)
    code, _, err = mms(*run, *options, "--out", tmp_path / "r")
    assert code == 0, err
    assert metrics(tmp_path / "r" / "dictionary")[-1]["step"] == 19
    fixed = ("--dictionary", tmp_path / "r" / "dictionary", "--steps", 5)
    code, _, err = mms(*run, *fixed, "--out", tmp_path / "s")
    assert code == 2 and "brings its own dictionary" in err


@pytest.mark.parametrize("patience", [None, 2])
def test_a_training_that_diverges_is_refused(
    store: ActivationStore, tmp_path: Path, patience: int | None
) -> None:
    config = dataclasses.replace(SMALL, learning_rate=1e30, patience=patience)
    with pytest.raises(UserError, match=r"diverged.*lower the learning rate"):
        fit_dictionary(store, config, tmp_path, device="cpu", progress=False)
    assert not (tmp_path / "config.json").exists()
    fit_dictionary(store, SMALL, tmp_path, device="cpu", progress=False)
