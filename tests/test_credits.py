"""Credits and licences go wherever the images go."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from features.dictionary.base import DictionaryConfig
from features.dictionary.identity import IdentityDictionary
from features.reports.report import write_report
from features.space.illustrate import illustrate
from features.space.score import score
from features.store.credits import credit_line, credits_of
from features.store.store import ActivationStore, StoreConfig
from features.store.write import sample_table, write_store
from tests.test_space import DIM, PAIRS, ColouredSquares, axes, embeddings, make_store


def credited_store(path: Path, spelling: str = "licence") -> ActivationStore:
    """Every pair has a licence, every second one a credit."""
    image, text = embeddings(0)
    captions = [[f"picture {i % 4} of <b>squares</b>"] for i in range(PAIRS)]
    attributes = [
        {"credit": f"credit: “Square” by <i>painter {i}</i>" if i % 2 else None, spelling: "CC BY"}
        for i in range(PAIRS)
    ]
    table = sample_table([str(i) for i in range(PAIRS)], captions, attributes=attributes)
    config = StoreConfig("tiny", "print of tiny", "squares", "pairs-print", DIM)
    return write_store(path, image, text, table, config, shard_rows=50)


@pytest.mark.parametrize(
    ("credit", "licence", "line"),
    [
        ("credit: A. Jones, CC BY 2.0", "CC BY", "A. Jones, CC BY 2.0"),
        ("Credit: A. Jones, Public Domain", "public domain", "A. Jones, Public Domain"),
        ("A. Jones", "CC0", "A. Jones, CC0"),
        (None, "Unlicense", "Unlicense"),
        ("A. Jones", None, "A. Jones"),
        (" ", "", ""),
        (None, None, ""),
    ],
)
def test_credit_and_licence_in_one_line(credit: str | None, licence: str | None, line: str) -> None:
    assert credit_line({"credit": credit, "licence": licence}) == line
    assert credit_line({"credit": credit, "license": licence}) == line


@pytest.mark.parametrize("spelling", ["licence", "license"])
def test_exemplars_have_those_of_their_pairs(tmp_path: Path, spelling: str) -> None:
    store = credited_store(tmp_path / "store", spelling)
    space = score(store, axes(), source=ColouredSquares(), progress=False)
    rows = space.exemplars.to_pylist()
    assert {row["licence"] for row in rows} == {"CC BY"}
    for row in rows:
        number = int(row["sample_id"])
        assert (row["credit"] is not None) == bool(number % 2)
        assert row["credit"] is None or f"painter {number}<" in row["credit"]
    assert credits_of(store, [1, 0]) == ["“Square” by <i>painter 1</i>, CC BY", "CC BY"]


def test_pairs_without_any_have_none(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    assert credits_of(store, [0, 1]) == ["", ""]
    html = write_report(
        score(store, axes(), source=ColouredSquares(), progress=False), tmp_path / "report.html"
    ).read_text()
    assert 'id="credits"' not in html and "(image: " not in html


def test_the_report_says_whose_the_images_are(tmp_path: Path) -> None:
    store = credited_store(tmp_path / "store")
    space = score(store, axes(), source=ColouredSquares(), progress=False)
    html = write_report(space, tmp_path / "report.html").read_text()
    listed = html.split('id="credits"')[1]
    shown = [r for r in space.exemplars.to_pylist() if r["thumbnail"] and r["rank"] < 6]
    for row in shown:
        name = f"painter {row['sample_id']}"
        assert int(row["sample_id"]) % 2 == 0 or name in listed
    assert "<i>painter" not in html and "<b>squares" not in html


def test_other_pairs_name_and_illustrate_but_do_not_score(tmp_path: Path) -> None:
    scored = score(make_store(tmp_path / "scored"), axes(), progress=False)
    other = credited_store(tmp_path / "other")
    space = illustrate(scored, other, ColouredSquares(), progress=False)
    for name in set(scored.features.column_names) - {"name", "name_score"}:
        assert str(space.features[name].to_pylist()) == str(scored.features[name].to_pylist()), name
    assert set(space.exemplars["caption"].to_pylist()) == {
        f"picture {i} of <b>squares</b>" for i in range(4)
    }
    assert (space.config.illustrated, space.config.illustrated_count) == ("squares", PAIRS)
    assert scored.config.illustrated is None
    assert "squares" in (space.save(tmp_path / "space") / "README.md").read_text()


def test_names_are_those_that_scoring_the_same_pairs_gives(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    config = DictionaryConfig("identity", dim=DIM, features=DIM, k=DIM, modality_bias=False)
    scored = score(store, IdentityDictionary(config), source=ColouredSquares(), progress=False)
    again = illustrate(scored, store, ColouredSquares(), progress=False)
    assert str(again.features.to_pylist()) == str(scored.features.to_pylist())
    assert again.exemplars.equals(scored.exemplars)
    assert again.config.floors == scored.config.floors
    assert torch.equal(again.dictionary.directions, scored.dictionary.directions)
