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

from benchmarks.photos import _accuracy, probe_hits
from benchmarks.photos_names import said_at_top
from benchmarks.photos_natural import Activated, Pictures, changed_rows, natural_results


def sparse(
    pairs: int, features: int, generator: torch.Generator, share: float = 0.4
) -> torch.Tensor:
    values = torch.rand(pairs, features, generator=generator, dtype=torch.float64)
    return values * (torch.rand(pairs, features, generator=generator) < share)


def planted(image: torch.Tensor, alt: torch.Tensor, context: torch.Tensor) -> Activated:
    """With embeddings that are the activations: what a pair shares, they share."""
    unit = [torch.nn.functional.normalize(a + 1e-6, dim=1) for a in (image, alt, context)]
    texts = {"alt": alt, "context": context}
    return Activated(image, texts, Pictures(unit[0], {"alt": unit[1], "context": unit[2]}))


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 12), st.integers(0, 1000))
def test_figures_of_drawn_pairs_against_literal_loops(pairs: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    image, text = sparse(pairs, 3, generator), sparse(pairs, 3, generator)
    rows = torch.randint(pairs, (pairs,), generator=generator)
    one = planted(image, text, text).taken(rows)
    found, score = one.agreement("alt").agreement, one.mds("alt")
    for k in range(3):
        x = [float(image[m, k]) for m in rows]
        y = [float(text[m, k]) for m in rows]
        u = [a * len(x) / sum(x) if sum(x) else 0.0 for a in x]
        v = [a * len(y) / sum(y) if sum(y) else 0.0 for a in y]
        greatest = sum(map(max, u, v))
        ratios = [a / (a + b) for a, b in zip(x, y, strict=True) if a + b]
        if greatest:
            assert found[k] == pytest.approx(sum(map(min, u, v)) / greatest)
            assert score[k] == pytest.approx(np.mean(ratios))
        else:
            assert np.isnan(found[k]) and np.isnan(score[k])


def test_texts_that_fire_in_other_pairs_have_the_mds_but_not_the_agreement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The alt text drives a feature where its picture does, the context as often, elsewhere."""
    generator = torch.Generator().manual_seed(0)
    dictionaries = []
    for _ in range(3):
        image = sparse(300, 8, generator, 0.2)
        alt = image * (0.5 + torch.rand(300, 8, generator=generator))
        dictionaries.append(planted(image, alt, alt.roll(111, 0)))
    monkeypatch.setattr("benchmarks.photos_natural.REPLICATES", 60)
    rows = {row.name: row for row in natural_results(dictionaries, seed=0)}
    difference = rows["natural/agreement_difference"]
    assert difference.ci_low > 0.3 and difference.ci_low < difference.value < difference.ci_high
    share = rows["natural/cross_share_difference"]
    assert share.ci_low <= 0 <= share.ci_high
    assert rows["natural/above_floor/alt"].value == 1.0
    assert rows["natural/above_floor/context"].value < 0.4
    floor = rows["natural/agreement_floor/alt"].value  # its 97.5 % quantile
    assert floor == pytest.approx(rows["natural/agreement/context"].value, abs=0.06)


def test_the_features_that_change_are_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of eight features, the context drives all but the third as the alt text does."""
    monkeypatch.setattr("benchmarks.photos_natural.REPLICATES", 100)
    generator = torch.Generator().manual_seed(0)
    image = sparse(300, 8, generator, 0.2)
    alt = image * (0.5 + torch.rand(300, 8, generator=generator))
    context = alt.clone()
    context[:, 2] = alt[:, 2].roll(111, 0)
    names = ["skull", "", "car", *["bread"] * 5]
    rows = {row.name: row for row in changed_rows(planted(image, alt, context), names, seed=0)}
    first = rows["changed/agreement/2 car"]
    assert first.ci_low > 0.2 and next(iter(rows)) == first.name
    assert rows["changed/agreement_share"].value == pytest.approx(1 / 7)
    assert not any(name.startswith("changed/agreement/1 ") for name in rows)


def test_the_share_of_top_pictures_whose_text_says_the_name() -> None:
    activations = np.array([[3.0, 0.0, 1.0], [2.0, 0.0, 0.0], [1.0, 5.0, 0.0], [0.0, 0.0, 0.0]])
    said = np.array([[True] * 3, [False] * 3, [True] * 3, [True] * 3])
    found = said_at_top(activations, said)
    assert found[0] == pytest.approx(2 / 3)  # the fourth says it, but does not activate
    assert np.isnan(found[1]) and np.isnan(found[2])  # one picture is too few


def test_only_the_ten_most_activating_pictures_count() -> None:
    activations = np.arange(20.0, 0.0, -1.0)[:, None]
    said = (np.arange(20) < 5)[:, None]
    assert said_at_top(activations, said).tolist() == [0.5]


def test_probes_are_tested_on_photographers_whom_they_never_saw() -> None:
    """What tells labels apart for one photographer's garments alone helps with nobody else's."""
    rng = np.random.default_rng(0)
    senders = np.repeat(np.arange(10), 12)
    labels = np.tile(["hat", "shoes"], 60)
    sign = np.where(labels == "hat", 1.0, -1.0)[:, None]
    own = np.eye(10)[senders] * sign + rng.normal(size=(120, 10)) * 0.01
    (blind,) = probe_hits(own, labels, senders).values()
    shared = np.maximum(sign * [1, -1, 1] + rng.normal(size=(120, 3)) * 0.1, 0)
    sized = probe_hits(shared, labels, senders, (1, 3))
    assert blind.mean() < 0.7
    assert set(sized) == {1, 3} and min(hit.mean() for hit in sized.values()) > 0.9


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
