"""Matching features, comparing spaces, and what drifted."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from features.analysis import matching
from features.analysis.compare import FIGURES, ONE_SEED, compare
from features.analysis.drift import Drift, find_drift
from features.analysis.matching import CorrelationStatistics, Matching, match_features
from features.bootstrap import difference_interval
from features.errors import UserError
from features.reports.comparison import markdown_table, write_comparison
from features.space.score import score
from features.space.space import FeatureSpace
from features.store.store import ActivationStore, StoreConfig
from features.store.write import sample_table, write_store
from tests.test_space import ColouredSquares, axes, make_store

DIM = 16


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return make_store(tmp_path_factory.mktemp("stores") / "store")


@pytest.fixture(scope="module")
def space(store: ActivationStore) -> FeatureSpace:
    return score(store, axes(), source=ColouredSquares(), progress=False)


def permuted(store: ActivationStore, order: list[int]) -> FeatureSpace:
    """The same features in another order."""
    dictionary = axes()
    with torch.no_grad():
        dictionary.decoder.copy_(dictionary.decoder[order].clone())  # type: ignore[index, operator]
        dictionary.encoder.copy_(dictionary.encoder[order].clone())  # type: ignore[index, operator]
    return score(store, dictionary, source=ColouredSquares(), progress=False)


def with_columns(space: FeatureSpace, rows: dict[int, dict[str, object]]) -> FeatureSpace:
    """The space with some features' values changed."""
    table = space.features.to_pylist()
    for feature, changes in rows.items():
        table[feature].update(changes)
    changed = pa.Table.from_pylist(table, schema=space.features.schema)
    return FeatureSpace(space.config, space.dictionary, changed, space.exemplars)


def test_correlations_are_numpys() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(50, 4, generator=generator), torch.rand(50, 3, generator=generator)
    second[:, 2] = 1.0
    found = CorrelationStatistics(4, 3)
    for rows in (slice(0, 20), slice(20, 50)):
        found.update(first[rows], second[rows])
    expected = np.zeros((4, 3))
    for i in range(4):
        for j in range(2):
            expected[i, j] = np.corrcoef(first[:, i], second[:, j])[0, 1]
    np.testing.assert_allclose(found.correlations(), expected, atol=1e-6)


@given(cut=st.integers(0, 30), seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_merged_correlations_are_those_of_one_pass(cut: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(-4, 5, (30, 3), generator=generator).float()
    second = torch.randint(-4, 5, (30, 2), generator=generator).float()
    whole, merged, other = (CorrelationStatistics(3, 2) for _ in range(3))
    whole.update(first, second)
    merged.update(first[:cut], second[:cut])
    other.update(first[cut:], second[cut:])
    merged.merge(other)
    assert np.array_equal(whole.correlations(), merged.correlations())


def test_features_in_another_order_are_found_again(
    store: ActivationStore, space: FeatureSpace
) -> None:
    order = torch.randperm(DIM, generator=torch.Generator().manual_seed(1)).tolist()
    matching = match_features(space, store, permuted(store, order), store, progress=False)
    matched = np.flatnonzero(matching.matched)
    assert set(range(6)) <= set(matched.tolist())
    for feature in matched.tolist():
        assert order[matching.partner[feature]] == feature
    np.testing.assert_allclose(matching.correlation[matched], 1, atol=1e-6)
    assert 0 < matching.floor < 0.9


@pytest.mark.parametrize("held", [1, 3 * DIM, 5 * DIM + 1])
def test_blocks_match_as_the_whole_matrix(
    held: int, store: ActivationStore, space: FeatureSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = permuted(
        store, torch.randperm(DIM, generator=torch.Generator().manual_seed(2)).tolist()
    )
    whole = match_features(space, store, other, store, progress=False)
    sizes = []

    class Watched(CorrelationStatistics):
        def __init__(self, first: int, second: int) -> None:
            super().__init__(first, second)
            sizes.append(self.product.numel())

    monkeypatch.setattr(matching, "CORRELATIONS_HELD", held)
    monkeypatch.setattr(matching, "CorrelationStatistics", Watched)
    blocks = match_features(space, store, other, store, progress=False)
    assert max(sizes) <= max(held, DIM)  # a block is one feature with all of the other space's
    assert sum(sizes) == 2 * DIM * DIM
    assert whole.matched.any()
    np.testing.assert_array_equal(blocks.partner, whole.partner)
    np.testing.assert_allclose(blocks.correlation, whole.correlation, rtol=1e-12)
    assert blocks.floor == pytest.approx(whole.floor, rel=1e-12)


@given(
    first=st.integers(1, 9),
    second=st.integers(1, 9),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_the_assignment_is_that_of_the_whole_matrix(
    first: int, second: int, share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    correlations = rng.uniform(0.5, 1, (first, second)) * (rng.random((first, second)) < share)
    row, column = np.nonzero(correlations)
    found = matching._assigned(row, column, correlations[row, column], first, second, 0.1)
    rows, columns = linear_sum_assignment(correlations, maximize=True)
    expected = np.full(first, matching.NO_PARTNER)
    partners = correlations[rows, columns] > 0
    expected[rows[partners]] = columns[partners]
    np.testing.assert_array_equal(found.partner, expected)
    known = found.matched
    np.testing.assert_array_equal(
        found.correlation[known], correlations[np.flatnonzero(known), expected[known]]
    )
    assert np.isnan(found.correlation[~known]).all()


def sorted_by_class(path: Path, order: np.ndarray) -> ActivationStore:
    """4,000 pairs of eight classes, in an order: dimension c is the class."""
    generator = torch.Generator().manual_seed(0)
    pairs = 4000
    vectors = 0.02 * torch.randn(2, pairs, DIM, generator=generator)
    vectors[:, torch.arange(pairs), torch.arange(pairs) * 8 // pairs] += 1
    image, text = F.normalize(vectors[:, torch.from_numpy(order)], dim=2)
    samples = sample_table([str(n) for n in order], [["x"]] * pairs)
    config = StoreConfig("tiny", "print of tiny", "sorted", f"print of {path.name}", DIM)
    return write_store(path, image, text, samples, config, shard_rows=1500)


def test_pairs_in_any_order_have_one_floor(space: FeatureSpace, tmp_path: Path) -> None:
    shuffled = np.random.default_rng(0).permutation(4000)
    orders = {
        "shuffled": shuffled,
        "sorted": np.arange(4000),
        "backwards": np.arange(4000)[::-1].copy(),
        "in turns": np.arange(4000).reshape(8, 500).T.ravel(),
        "runs": np.arange(4000).reshape(40, 100)[np.argsort(shuffled[:40])].ravel(),
    }
    floors = {}
    for name, order in orders.items():
        store = sorted_by_class(tmp_path / name, order)
        matching = match_features(space, store, space, store, progress=False)
        assert matching.matched[:8].all()
        floors[name] = matching.floor
    assert 0 < floors["shuffled"] < 0.1
    for name, floor in floors.items():
        assert floor == pytest.approx(floors["shuffled"], abs=0.02), name


def test_a_single_pair_has_no_other_to_compare_with(space: FeatureSpace, tmp_path: Path) -> None:
    vectors = F.normalize(torch.rand(1, DIM), dim=1)
    config = StoreConfig("tiny", "print of tiny", "one", "one-print", DIM)
    store = write_store(tmp_path / "s", vectors, vectors, sample_table(["0"], [["x"]]), config)
    matching = match_features(space, store, space, store, progress=False)
    assert not matching.matched.any()


def test_other_pairs_or_another_encoder_are_refused(
    store: ActivationStore, space: FeatureSpace, tmp_path: Path
) -> None:
    other_pairs = make_store(tmp_path / "pairs", first_id=7)
    with pytest.raises(UserError, match="row by row"):
        match_features(space, store, space, other_pairs, progress=False)
    other_encoder = make_store(tmp_path / "encoder", encoder="other")
    with pytest.raises(UserError, match="embeddings of other"):
        match_features(space, store, space, other_encoder, progress=False)


def test_difference_interval_holds_the_difference() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 1, 200), rng.normal(1, 1, 300)
    low, high = difference_interval(first, second)
    assert low < second.mean() - first.mean() < high
    assert low > 0.5 and high < 1.5
    assert np.isnan(difference_interval(first, second[:0])[0])


def test_a_space_does_not_differ_from_itself(space: FeatureSpace) -> None:
    comparison = compare([space, space], ["a", "b"])
    assert comparison.differences == [["No figure of b differs from a's.", ONE_SEED]]
    with pytest.raises(UserError, match="two labels"):
        compare([space, space], ["a", "a"])
    assert comparison.matches == []


def test_the_comparison_says_what_differs_and_has_an_interval_for_each_figure(
    store: ActivationStore, space: FeatureSpace, tmp_path: Path
) -> None:
    features = space.features.to_pylist()
    image_driven = {
        f["feature"]: {"mds": 0.99, "class_fixed": "ImgD"}
        for f in features
        if f["class_fixed"] != "unscored"
    }
    other = with_columns(space, image_driven)
    identity = match_features(space, store, other, store, progress=False)
    comparison = compare([space, other], ["before", "after <b>"], [identity])
    text = " ".join(comparison.differences[0])
    assert "after <b> has more image-dominant features than before" in text
    assert "before has more cross-modal features than after <b>" in text
    for summary in comparison.spaces:
        for figure in FIGURES:
            # An unfitted dictionary has no held-out pairs, and one space no cross-modal features.
            if figure.key not in ("fvu", "l0", "shared_share"):
                estimate = summary.estimates[figure.key]
                assert estimate.value is not None
                assert estimate.low <= estimate.value <= estimate.high  # type: ignore[operator]
    page = write_comparison(comparison, [space, other], tmp_path).read_text()
    assert "after &lt;b&gt;" in page and "<b> has" not in page
    record = json.loads((tmp_path / "comparison.json").read_text())
    assert record["matches"][0]["matched"] == len(comparison.matches[0].pairs) > 0
    assert record["matches"][0]["same_class"]["value"] < 0.5
    table = (tmp_path / "comparison.md").read_text()
    assert table == markdown_table(comparison)
    assert table.count("\n") == 4 and "100% (100% to 100%)" not in table
    assert "| 100% (" in table


def test_a_difference_must_be_greater_than_trainings_vary(
    space: FeatureSpace, tmp_path: Path
) -> None:
    """Three trainings of each: one figure differs by more than they vary, another by less."""

    def training(number: int, agreement: float, cross: int) -> FeatureSpace:
        scored = [
            row["feature"] for row in space.features.to_pylist() if row["class_fixed"] != "unscored"
        ]
        return with_columns(
            space,
            {
                feature: {
                    "agreement": agreement + 0.01 * number,
                    "class_fixed": "CrossD" if place < cross else "TextD",
                }
                for place, feature in enumerate(scored)
            },
        )

    first = [training(n, 0.2, cross) for n, cross in enumerate((2, 5, 8))]
    other = [training(n, 0.7, cross) for n, cross in enumerate((4, 9, 6))]
    comparison = compare([*first, *other], ["old"] * 3 + ["new"] * 3)
    said = " ".join(comparison.differences[0])
    assert "new has features whose images and texts agree more than old" in said
    assert "cross-modal" not in said and "Over 3 training seeds each" in said
    assert [summary.seeds for summary in comparison.spaces] == [3, 3]
    agreement = comparison.spaces[0].estimates["agreement"]
    assert agreement.value == pytest.approx(0.21) and agreement.low < 0.2 < agreement.high
    for summary in comparison.spaces:
        for figure in FIGURES:
            if figure.percent:
                estimate = summary.estimates[figure.key]
                assert not (estimate.low < 0 or estimate.high > 1)
    page = write_comparison(comparison, [first[0], other[0]], tmp_path).read_text()
    assert "first of 3 seeds" in page


def test_the_larger_figure_comes_first(space: FeatureSpace) -> None:
    def with_l0(value: float) -> FeatureSpace:
        overall = {"l0": value, "l0_low": value - 1, "l0_high": value + 1}
        dictionary = {**space.config.dictionary, "held_out": {"within": overall}}
        changed = copy.copy(space)
        changed.config = dataclasses.replace(space.config, dictionary=dictionary)
        return changed

    few, many = with_l0(20.0), with_l0(60.0)
    expected = (
        "many has more features active for a sample (higher L0) than few: "
        "60.0 (59.0 to 61.0) against 20.0 (19.0 to 21.0)."
    )
    assert expected in compare([few, many], ["few", "many"]).differences[0]
    assert expected in compare([many, few], ["many", "few"]).differences[0]


def kinds(drift: Drift) -> dict[str, int]:
    return {kind: count for kind, count in drift.counts.items() if count}


def test_nothing_drifts_where_nothing_changed(space: FeatureSpace) -> None:
    drift = find_drift(space, space)
    assert (drift.share, drift.new_share, drift.changes) == (0, 0, [])
    assert drift.compared_by == "feature number"


def test_each_kind_of_change_is_found(space: FeatureSpace) -> None:
    rows = space.features.to_pylist()
    assert rows[2]["class_fixed"] == rows[3]["class_fixed"] == "CrossD"
    unscored = next(row["feature"] for row in rows if row["class_fixed"] == "unscored")
    scored = {"class_fixed": "ImgD", "mds": 0.9, "mds_low": 0.8, "mds_high": 1.0}
    new = with_columns(
        space,
        {
            0: {"class_fixed": "unscored"},
            2: {"ms_image": rows[2]["ms_image"] - 0.3},
            3: {"class_fixed": "ImgD", "mds": 0.9, "mds_low": 0.85, "mds_high": 0.95},
            4: {"class_fixed": "ImgD", "mds": 0.9, "mds_low": 0.1, "mds_high": 0.95},
            5: {"agreement": 0.02, "agreement_low": 0.0, "agreement_high": 0.05, "shared": False},
            unscored: scored,
        },
    )
    drift = find_drift(space, new)
    assert kinds(drift) == {"gone": 1, "new": 1, "moved": 1, "lost": 1, "parted": 1}
    assert {c.kind: c.old for c in drift.changes if c.old is not None} == {
        "gone": 0,
        "moved": 3,
        "lost": 2,
        "parted": 5,
    }
    assert drift.share == pytest.approx(4 / drift.old_scored)
    assert json.loads(json.dumps(drift.record()))["counts"]["moved"] == 1


def test_features_without_a_counterpart_are_gone_and_new(space: FeatureSpace) -> None:
    partner = np.arange(DIM)
    partner[2] = -1
    drift = find_drift(space, space, Matching(partner, np.ones(DIM), 0.1))
    assert kinds(drift) == {"gone": 1, "new": 1}
    assert [change.name for change in drift.changes] == ["red", "red"]


def test_other_judges_are_not_compared(space: FeatureSpace) -> None:
    config = dataclasses.replace(space.config, judge_fingerprint="another")
    worse = with_columns(space, {2: {"ms_image": -1.0, "ms_text": -1.0}})
    other = FeatureSpace(config, space.dictionary, worse.features, space.exemplars)
    drift = find_drift(space, other)
    assert drift.judges_differ and not drift.changes


def test_another_dictionary_needs_pairs(space: FeatureSpace) -> None:
    config = dataclasses.replace(space.config, dictionary_fingerprint="another")
    other = FeatureSpace(config, space.dictionary, space.features, space.exemplars)
    with pytest.raises(UserError, match="--pairs"):
        find_drift(space, other)
