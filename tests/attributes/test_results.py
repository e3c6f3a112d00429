"""The page of attributes: figures of de-biasing are those of the benchmark's JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
METHODS = {
    "no change": "none",
    "features": "features",
    "mean difference": "mean_difference",
    "LEACE": "leace",
    "debias_vl": "debias_vl",
    "reweighting": "reweighting",
    "last layer again (DFR)": "last_layer",
    "random features": "random",
}
COLUMNS = (
    ("accuracy", 1, 3),
    ("worst_group", 1, 3),
    ("worst_less_features", 100, 1),
    ("gap", 1, 3),
    ("utility_cost", 100, 1),
    ("leakage", 1, 2),
)
"""Each column's measure, what it is multiplied by, and its digits."""


@pytest.fixture(scope="module")
def results() -> dict[str, dict]:
    record = json.loads((ROOT / "docs" / "results" / "attributes.json").read_text())
    return {row["name"]: row for row in record["results"]}


def table_rows() -> dict[str, list[str]]:
    """The cells of the table of the planted bias, by method."""
    text = (ROOT / "docs" / "results" / "attributes.md").read_text(encoding="utf-8")
    table = text[text.index("| planted bias |") :].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {row[0]: row[1:] for row in cells}


def test_the_table_of_the_planted_bias_is_the_benchmarks(results: dict[str, dict]) -> None:
    rows = table_rows()
    assert set(rows) == set(METHODS)
    for name, cells in rows.items():
        for cell, (measure, factor, digits) in zip(cells, COLUMNS, strict=True):
            found = results[f"fresh/{measure}/{METHODS[name]}"]
            assert found["n"] == 10
            figures = [factor * found[key] for key in ("value", "ci_low", "ci_high")]
            said = [float(figure) for figure in re.findall(r"-?\d+\.\d+", cell)]
            if not said:
                assert figures == [0, 0, 0]  # compared with itself
            assert figures[: len(said)] == pytest.approx(said, abs=0.51 * 10**-digits)


def test_a_fair_predictor_is_seldom_found_unfair(results: dict[str, dict]) -> None:
    for statistic in ("gap", "parity", "tpr", "fpr"):
        found = results[f"false_alarms/{statistic}"]
        assert found["n"] == 200
        assert found["value"] <= 0.07
