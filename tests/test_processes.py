"""Several processes fit a dictionary, and run the whole command, as one does."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from features.dictionary import TrainConfig, fit_dictionary, load_dictionary
from features.dictionary.held_out import evaluated_pairs, held_out_figures, training_means
from features.dictionary.reconstruction import fvu_within
from features.dictionary.trainer import new_dictionary
from features.distributed import from_main_process, this_process
from features.store.sample import sampled
from features.store.store import ActivationStore
from tests.conftest import launch
from tests.served import SHARDS, serving, write_shards
from tests.test_dictionary import make_store
from tests.test_training import metrics

CONFIG = TrainConfig(features=48, k=4, batch_size=128, steps=80, dead_samples=1280)
SCRIPT = """
import sys
from pathlib import Path
import torch
from features.dictionary import fit_dictionary
from features.distributed import broadcast, from_main_process, in_all_processes, this_process
from features.errors import UserError
from features.files import write_json
from features.store import ActivationStore
from tests.test_processes import CONFIG, measured

state = this_process()
assert state.num_processes == 2 and state.device.type == "cpu"
assert broadcast(f"of {state.process_index}", 1) == "of 1"
for failing in (0, 1):  # an error in one reaches all

    def fail():
        if state.process_index == failing:
            raise UserError(f"told by {failing}")

    try:
        in_all_processes(fail)
    except UserError as error:
        assert str(error) == f"told by {failing}"
    else:
        raise AssertionError(failing)
try:
    from_main_process(lambda: 1 / 0)
except ZeroDivisionError:
    assert state.is_main_process
except RuntimeError as error:
    assert "division by zero" in str(error) and not state.is_main_process
store = ActivationStore.open(sys.argv[1])
write_json(Path(sys.argv[3]) / f"{state.process_index}.json", measured(store))
fit_dictionary(store, CONFIG, sys.argv[2], progress=False)
"""
SAMPLES = (600, 40, 9, 3)
"""Pairs of which so few are held out that a process has none."""


def measured(store: ActivationStore) -> list[Any]:
    """What processes measure together, of samples of a store."""
    state, found = this_process(), []
    for pairs in SAMPLES:
        sample = sampled(store, pairs, 0)
        dictionary = new_dictionary(sample, CONFIG).requires_grad_(False)
        means, count = training_means(sample)
        dictionary.set_means(*means.float())
        share = slice(state.process_index, None, state.num_processes)
        image, text = (side[share] for side in evaluated_pairs(sample))
        figures = held_out_figures(dictionary, sample)
        found.append([means.tolist(), count, fvu_within(dictionary, image, text), figures])
    return found


def numbers(found: Any) -> list[float]:
    """All numbers of nested lists and dicts, in order; NaN for None."""
    if isinstance(found, dict):
        return numbers(list(found.values()))
    if isinstance(found, list):
        return [number for each in found for number in numbers(each)]
    return [math.nan if found is None else found]


def test_alone_a_process_is_the_main_one() -> None:
    state = this_process()
    assert state.is_main_process and state.num_processes == 1
    assert from_main_process(lambda: 3) == 3


def test_two_processes_fit_the_dictionary_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training up to what the order of sums and each half batch's own variance make of it;
    means and held-out figures of the same pairs and weights are the same."""
    store = make_store(tmp_path / "store")
    (tmp_path / "fit.py").write_text(SCRIPT)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    launch(2, tmp_path / "fit.py", store.path, tmp_path / "two", tmp_path)
    alone = numbers(measured(store))
    assert len(alone) == 264 and any(map(math.isnan, alone))
    for rank in (0, 1):
        together = numbers(json.loads((tmp_path / f"{rank}.json").read_text()))
        assert together == pytest.approx(alone, rel=1e-5, abs=1e-12, nan_ok=True)
    two = load_dictionary(tmp_path / "two")
    one = fit_dictionary(store, CONFIG, tmp_path / "one", progress=False)
    cosines = torch.cosine_similarity(one.directions, two.directions)
    assert cosines.median() > 0.99
    assert one.config.held_out is not None and two.config.held_out is not None
    ours, theirs = (each.config.held_out["overall"]["fvu"] for each in (two, one))
    assert ours == pytest.approx(theirs, abs=0.02)
    for line, other in zip(*(metrics(tmp_path / name) for name in ("one", "two")), strict=True):
        assert line.keys() == other.keys()
        for name in {"fvu", "held_out_fvu"} & line.keys():
            assert other[name] == pytest.approx(line[name], abs=0.03)


def test_the_command_in_two_processes(imagefolder: Path, clip_folder: Path, tmp_path: Path) -> None:
    """All of `mms run` on shards behind URLs: each process downloads its own, the pass over the
    pairs is shared, and each file is written once."""
    write_shards(tmp_path, imagefolder)
    with serving(tmp_path) as (address, server):
        options = ["--pairs", f"{address}/bucket/pairs-{{0..2}}.tar", "--workers", "0"]
        options += ["--encoder", f"local-dir:{clip_folder}", "--dictionary", "identity"]
        launch(2, "-m", "mms_apps.cli", "run", *options, "--out", tmp_path / "run")
        downloads = [asked for asked in server.asked if " " not in asked]
    shards = [f"/bucket/pairs-{shard}.tar" for shard in range(SHARDS)]
    assert sorted(downloads[:SHARDS]) == shards
    assert sorted(downloads[SHARDS:]) == shards  # the main process, for the thumbnails
    features = pq.read_table(tmp_path / "run" / "space" / "features.parquet")
    counts = (features[name].to_numpy() for name in ("active_pairs", "left_out"))
    assert set(sum(counts).tolist()) == {4 * SHARDS}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["schema"] == 1
    assert (tmp_path / "run" / "report.html").is_file()
    assert not list((tmp_path / "run").rglob("*.tmp"))
