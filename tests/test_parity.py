"""The parity benchmark: what it compares, and the page that shows what it found."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.parity import conversion_rows, mean_over_pairs
from benchmarks.scale import double_loop

ROOT = Path(__file__).parents[1]


def test_the_mean_over_pairs_is_the_literal_double_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    activations = torch.rand(20, 3, generator=generator).double()
    embeddings = F.normalize(torch.randn(20, 5, generator=generator).double(), dim=1)
    found = mean_over_pairs(activations, embeddings)
    loop = [double_loop(values, embeddings.numpy()) for values in activations.T.numpy()]
    np.testing.assert_allclose(found, loop, atol=1e-12)
    still = torch.ones(20, 1).double()
    assert np.isnan(mean_over_pairs(still, embeddings)).all()


def test_conversions_are_measured_again() -> None:
    rows = {row.name: row.value for row in conversion_rows()}
    libraries = ("saelens", "sparsify", "dictionary_learning", "overcomplete", "saev")
    assert set(rows) == {f"conversion/{library}" for library in libraries}
    assert all(0 <= value < 1e-5 for value in rows.values())


def shown(row: dict) -> str:
    """A row as the page writes it."""
    if row["unit"] == "FVU":
        return f"{row['value']:.4f} ({row['ci_low']:.4f} to {row['ci_high']:.4f})"
    return f"{row['value']:.1e}"


def test_the_page_has_the_benchmarks_figures() -> None:
    record = json.loads((ROOT / "docs" / "results" / "parity.json").read_text())
    page = (ROOT / "docs" / "parity.md").read_text()
    cells = dict(re.findall(r"^\| `([\w/-]+)` \| ([^|]+?) \|", page, re.MULTILINE))
    rows = {row["name"]: row for row in record["results"]}
    assert cells == {name: shown(row) for name, row in rows.items()}
    assert rows["ms/greatest_difference"]["value"] < 1e-6
    assert rows["loss/matryoshka"]["value"] < 1e-6
