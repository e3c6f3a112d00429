"""The photographs' benchmark: its arithmetic by literal loops, and cases whose answer is known."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.photos import Activated, _accuracy, agreement, mds, natural_results
from features.scores.dominance import DominanceStatistics


def sparse(
    pairs: int, features: int, generator: torch.Generator, share: float = 0.4
) -> torch.Tensor:
    values = torch.rand(pairs, features, generator=generator, dtype=torch.float64)
    return values * (torch.rand(pairs, features, generator=generator) < share)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 12), st.integers(0, 1000))
def test_agreement_and_mds_against_literal_loops(pairs: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    image, text = sparse(pairs, 3, generator), sparse(pairs, 3, generator)
    counts = torch.randint(1, 3, (pairs,), generator=generator)
    found = agreement(image, text, counts.double())
    score = mds(image, text, counts.double())
    rows = torch.repeat_interleave(torch.arange(pairs), counts).tolist()
    for k in range(3):
        x = [float(image[m, k]) for m in rows]
        y = [float(text[m, k]) for m in rows]
        u = [a * len(x) / sum(x) if sum(x) else 0.0 for a in x]
        v = [a * len(y) / sum(y) if sum(y) else 0.0 for a in y]
        greatest = sum(map(max, u, v))
        if greatest:
            assert float(found[k]) == pytest.approx(sum(map(min, u, v)) / greatest)
        ratios = [a / (a + b) for a, b in zip(x, y, strict=True) if a + b]
        assert (
            np.isnan(float(score[k]))
            if not ratios
            else float(score[k]) == pytest.approx(np.mean(ratios))
        )


def test_mds_is_the_library_s() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = sparse(40, 6, generator), sparse(40, 6, generator)
    statistics = DominanceStatistics(6, replicates=2)
    statistics.update(image, text)
    ours = mds(image, text, torch.ones(40, dtype=torch.float64))
    assert ours.tolist() == pytest.approx(statistics.scores(1).mds.tolist())


def test_texts_that_fire_in_other_pairs_have_the_mds_but_not_the_agreement() -> None:
    """The alt text drives a feature where its picture does, the context as often, elsewhere."""
    generator = torch.Generator().manual_seed(0)
    dictionaries = []
    for _ in range(3):
        image = sparse(300, 8, generator, 0.2)
        alt = image * (0.5 + torch.rand(300, 8, generator=generator))
        dictionaries.append(Activated(image, {"alt": alt, "context": alt.roll(111, 0)}))
    rows = {row.name: row for row in natural_results(dictionaries, seed=0)}
    difference = rows["natural/agreement_difference"]
    assert difference.ci_low > 0.3 and difference.ci_low < difference.value < difference.ci_high
    share = rows["natural/cross_share_difference"]
    assert share.ci_low <= 0 <= share.ci_high
    assert rows["natural/above_floor/alt"].value == 1.0
    assert rows["natural/above_floor/context"].value < 0.4
    floor = rows["natural/agreement_floor/alt"].value
    assert floor == pytest.approx(rows["natural/agreement/context"].value, abs=0.03)


def test_the_spread_is_over_photographers_with_enough_garments() -> None:
    senders = np.repeat(["a", "b", "c"], [10, 30, 5])
    hits = np.repeat([True, False, True], [10, 30, 5])
    kids = np.tile(["adult", "child", "adult"], 15)
    rows = {row.name: row for row in _accuracy("linear", hits, senders, kids, seed=0)}
    whole = rows["garments/linear"]
    assert whole.value == pytest.approx(15 / 45) and whole.ci_low == 0.0 and whole.ci_high == 1.0
    assert rows["garments/linear/adult"].n == 30 and rows["garments/linear/child"].n == 15
    spread = rows["garments/linear/photographers"]
    assert spread.n == 2 and spread.value == 0.5


def test_the_page_s_tables_are_the_benchmark_s() -> None:
    docs = Path(__file__).parents[1] / "docs"
    results = json.loads((docs / "results" / "photos.json").read_text(encoding="utf-8"))["results"]
    measured = {row["name"]: row for row in results}
    page = (docs / "photographs.md").read_text(encoding="utf-8")
    rows = re.findall(r"\| `(\S+)` \| (\S+) \| (\S+) \| (\S+) \| (\d+) \|", page)
    assert len(rows) > 20
    for name, *figures, count in rows:
        row = measured[name]
        assert figures == [f"{row[key]:.3f}" for key in ("value", "ci_low", "ci_high")]
        assert int(count) == row["n"]
