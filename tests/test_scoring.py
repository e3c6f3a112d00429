"""Scores of two data sets, or of ranks, are those of one pass over both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from features.dictionary import load_dictionary
from features.scores.collect import ScoringStatistics
from features.space.score import score
from features.space.space import FeatureSpace
from features.store.store import ActivationStore
from features.store.write import sample_table
from tests.conftest import launch
from tests.test_space import axes, make_store

PAIRS, FEATURES, DIM = 24, 5, 3
TERMS = ["red", "blue", "one"]


def drawn(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image, text = (
        torch.randint(0, 4, (PAIRS, FEATURES), generator=generator).float() for _ in range(2)
    )
    judges = F.normalize(torch.randn(2, PAIRS, DIM, generator=generator), dim=2)
    return image, text, judges[0], judges[1]


def collected(data: tuple[torch.Tensor, ...], pairs: range, batch: int) -> ScoringStatistics:
    found = ScoringStatistics(
        FEATURES, DIM, TERMS, kept=6, seed=1, start=pairs.start, replicates=30
    )
    captions = [[("a red one", "the blue sky", "nothing")[i % 3]] for i in range(PAIRS)]
    samples = sample_table([str(i) for i in range(PAIRS)], captions)
    for start in range(pairs.start, pairs.stop, batch):
        rows = slice(start, min(start + batch, pairs.stop))
        found.update(*(d[rows] for d in data), samples.slice(rows.start, rows.stop - rows.start))
    return found


@given(cut=st.integers(0, PAIRS), seed=st.integers(0, 1000), batch=st.integers(1, PAIRS))
@settings(max_examples=30, deadline=None)
def test_merged_scores_are_those_of_one_pass(cut: int, seed: int, batch: int) -> None:
    data = drawn(seed)
    whole = collected(data, range(PAIRS), PAIRS)
    merged = collected(data, range(cut), batch)
    merged.merge(collected(data, range(cut, PAIRS), batch))
    for name in ("mds", "ci_low", "ci_high", "energy", "image_mean_active", "text_density"):
        ours, theirs = (getattr(s.dominance.scores(2), name) for s in (merged, whole))
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    ours, theirs = (s.monosemanticity.scores() for s in (merged, whole))
    for name in ("ms_image", "ms_text", "ms_cross", "floor_image", "floor_cross"):
        np.testing.assert_allclose(
            getattr(ours, name), getattr(theirs, name), rtol=1e-9, atol=1e-12
        )
    for modality in ("image", "text"):
        assert torch.equal(merged.best[modality].samples, whole.best[modality].samples)
        assert torch.equal(merged.best[modality].values, whole.best[modality].values)
    for modality in (0, 1):
        torch.testing.assert_close(
            merged.naming.correlations(modality), whole.naming.correlations(modality)
        )


SCRIPT = """
import sys
from features.dictionary import load_dictionary
from features.space.score import score
from features.store import ActivationStore
store, judge, dictionary, out = sys.argv[1:]
space = score(
    ActivationStore.open(store), load_dictionary(dictionary), ActivationStore.open(judge),
    batch_size=16, progress=False,
)
from features.distributed import this_process
assert this_process().num_processes == 2
if this_process().is_main_process:
    space.save(out)
"""


def test_two_processes_score_as_one(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    judge = make_store(tmp_path / "judge", encoder="judge", seed=1)
    axes().save(tmp_path / "dictionary")
    (tmp_path / "score.py").write_text(SCRIPT)
    arguments = (store.path, judge.path, tmp_path / "dictionary", tmp_path / "two")
    launch(2, tmp_path / "score.py", *arguments)
    two = FeatureSpace.load(tmp_path / "two", device="cpu")
    one = score(
        ActivationStore.open(store.path),
        load_dictionary(tmp_path / "dictionary"),
        judge,
        progress=False,
    )
    for name in one.features.column_names:
        ours, theirs = (space.features[name].to_pylist() for space in (one, two))
        if isinstance(ours[0], float):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
        else:
            assert ours == theirs
    assert one.exemplars.drop_columns("activation").equals(two.exemplars.drop_columns("activation"))


@pytest.mark.parametrize(("judge", "readings"), [(None, 2), ("again", 2), ("other", 3)])
def test_a_store_that_judges_itself_is_read_once_a_pass(
    judge: str | None, readings: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path / "store")
    judges = {
        None: lambda: None,
        "again": lambda: ActivationStore.open(store.path),
        "other": lambda: make_store(tmp_path / "judge", encoder="judge", seed=1),
    }
    given = judges[judge]()
    started: list[Path] = []
    for name in ("batches", "numbered_shuffled_batches"):
        read = getattr(ActivationStore, name)

        def counted(self: ActivationStore, *arguments: Any, read: Any = read) -> Any:
            started.append(self.path)
            return read(self, *arguments)

        monkeypatch.setattr(ActivationStore, name, counted)
    space = score(store, axes(), given, progress=False)
    assert len(started) == readings
    assert space.config.judge_independent == (judge == "other")
