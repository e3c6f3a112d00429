"""The report: what it says, and that it works in a browser without a network."""

from __future__ import annotations

import dataclasses
import math
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F

from features.dictionary import DICTIONARIES, DictionaryConfig, TrainConfig, fit_dictionary
from features.pairs.open import open_pairs
from features.reports.page import BINS, count_axis, histogram
from features.reports.report import write_report
from features.space.advice import few_pairs
from features.space.score import score
from features.space.space import FeatureSpace
from features.store.store import StoreConfig
from features.store.write import sample_table, write_store


@pytest.fixture(scope="module")
def space(imagefolder: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureSpace:
    folder = tmp_path_factory.mktemp("report")
    source = open_pairs(str(imagefolder))
    pairs = list(source.read(source.parts()[0]))
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(len(pairs), 16, generator=generator)
    image, text = (
        F.normalize(shared + 0.3 * torch.randn(len(pairs), 16, generator=generator), dim=-1)
        for _ in range(2)
    )
    samples = sample_table(
        [p.id for p in pairs],
        [p.captions for p in pairs],  # type: ignore[union-attr]
        [p.location for p in pairs],
        [p.attributes for p in pairs],  # type: ignore[union-attr]
    )
    config = StoreConfig("local-dir:tiny", "e" * 64, "<shapes>", "p" * 64, 16)
    store = write_store(folder / "store", image, text, samples, config)
    train = TrainConfig(features=24, k=4, steps=50)
    dictionary = fit_dictionary(store, train, folder / "d", device="cpu", progress=False)
    return score(store, dictionary, None, source, min_pairs=3, progress=False)


@pytest.fixture(scope="module")
def page(space: FeatureSpace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(space, tmp_path_factory.mktemp("page") / "report.html")


def test_every_scored_feature_stands_in_one_bar(space: FeatureSpace) -> None:
    features = space.features.to_pylist()
    scored = sum(f["class"] != "unscored" for f in features)
    bars = histogram(features)
    assert sum(int(bar.title.split()[0]) for bar in bars) == scored
    for bar in bars:
        assert bar.y >= 0 and bar.y + bar.height <= 1 + 1e-9
        assert bar.width == 1 / BINS


def test_it_names_what_it_was_made_from_and_escapes_it(page: Path) -> None:
    html = page.read_text()
    assert "local-dir:tiny" in html
    assert "&lt;shapes&gt;" in html and "<shapes>" not in html
    assert "not independent" in html


def test_class_counts_stand_in_the_headline(space: FeatureSpace, page: Path) -> None:
    counts = space.config.classes["relative"]["counts"]
    html = page.read_text()
    assert f"{counts['ImgD']} image-dominant" in html
    assert f"{counts['TextD']} text-dominant" in html


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("topk", "at most 4 active for one sample"),
        ("group", "at most 4 active for one sample"),
        ("batchtopk", "about 4 active for one sample on average in training, no bound"),
        ("matryoshka", "about 4 active for one sample on average in training, no bound"),
        ("ncl", "as many active for one sample as the contrast makes, no bound"),
        ("identity", "all active for each sample"),
    ],
)
def test_how_many_features_are_active_is_said_as_it_is(
    space: FeatureSpace, kind: str, words: str, tmp_path: Path
) -> None:
    features, k = (16, 16) if kind == "identity" else (24, 4)
    config = DictionaryConfig(kind, dim=16, features=features, k=k, modality_bias=False)
    dictionary = DICTIONARIES[kind](config).requires_grad_(False)
    figures = {"fvu": 0.1, "l0": 7.25, "dead": 0.0, "samples": 9}
    record = dataclasses.asdict(config) | {"held_out": {"within": figures}}
    held = dataclasses.replace(space.config, dictionary=record)
    other = FeatureSpace(held, dictionary, space.features, space.exemplars)
    html = write_report(other, tmp_path / "report.html").read_text()
    assert f"{words}; 7.2 on average on held-out pairs" in html
    assert ("at most" in html) == (kind in ("topk", "group"))
    x = F.normalize(torch.randn(200, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    most = int((dictionary.encode(x, "image") != 0).sum(1).max())
    if "at most" in words:
        assert most <= 4


def test_agreement_stands_in_the_headline_the_cards_and_the_filter(
    space: FeatureSpace, page: Path
) -> None:
    html = re.sub(r"\s+", " ", page.read_text())
    rows = [row for row in space.features.to_pylist() if row["class"] == "CrossD"]
    shared = sum(row["shared"] for row in rows)
    assert f"{shared} of them <strong>shared</strong>" in html
    assert f"{len(rows) - shared} <strong>balanced, not shared</strong>" in html
    assert html.count('data-shared="1"') == shared
    assert html.count('data-shared="0"') == len(rows) - shared
    row = next(row for row in rows if row["shared"])
    words = f"agreement {row['agreement']:.2f} ({row['agreement_low']:.2f} to"
    assert words in html
    assert "within modality" in html and "about one mean" in html


def test_nothing_is_fetched(page: Path) -> None:
    html = page.read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", html)
    assert "url(" not in html and "@import" not in html


def test_it_says_what_was_skipped(space: FeatureSpace, tmp_path: Path) -> None:
    config = dataclasses.replace(space.config, skipped={"no caption": 3})
    short = FeatureSpace(config, space.dictionary, space.features, space.exemplars)
    html = write_report(short, tmp_path / "a.html").read_text()
    assert "3: no caption (3)" in html


def test_monosemanticity_stands_beside_its_interval_and_floor(
    space: FeatureSpace, page: Path
) -> None:
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.read_text()))
    records = [r for r in space.config.class_means if r["n"] and r["m"] in (None, 10, 20)]
    assert records
    for r in records:
        assert f"{r['mean']:.2f} ({r['ci_low']:.2f} to {r['ci_high']:.2f})" in text
    assert {r["m"] for r in space.config.class_means} == {10, 20, 30, 50, None}


def test_without_a_scored_feature_it_says_so(space: FeatureSpace, tmp_path: Path) -> None:
    size = len(space)
    table = space.features
    for name, value in (("class", "unscored"), ("mds", math.nan), ("uncertain", False)):
        column = pa.array([value] * size, table.schema.field(name).type)
        table = table.set_column(table.column_names.index(name), name, column)
    bounds = dict.fromkeys(("low", "high"))
    classes = space.config.classes | {"relative": space.config.classes["relative"] | bounds}
    config = dataclasses.replace(space.config, classes=classes)
    unscored = FeatureSpace(config, space.dictionary, table, space.exemplars)
    html = write_report(unscored, tmp_path / "report.html").read_text()
    assert "No feature could be scored" in html
    assert "<svg" not in html
    assert not re.search(r"\bnan\b", html)


def test_images_that_are_not_at_hand_are_not_called_inactive(
    space: FeatureSpace, tmp_path: Path
) -> None:
    exemplars = space.exemplars
    bare = exemplars.set_column(
        exemplars.column_names.index("thumbnail"),
        "thumbnail",
        pa.nulls(len(exemplars), pa.binary()),
    )
    pictureless = FeatureSpace(space.config, space.dictionary, space.features, bare)
    html = write_report(pictureless, tmp_path / "report.html").read_text()
    assert "Its images are not at hand." in html
    assert "<img " not in html


def test_the_gallery_is_bounded(
    space: FeatureSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("features.reports.report.GALLERY", 3)
    html = write_report(space, tmp_path / "report.html").read_text()
    assert html.count("<article ") == 3
    assert f"The gallery holds 3 of {len(space)} features" in html


@pytest.mark.parametrize(
    ("most", "top", "ticks"),
    [(0, 1, [0, 1]), (1, 1, [0, 1]), (4, 4, [0, 1, 2, 3, 4]), (14, 15, [0, 5, 10, 15])],
)
def test_thecount_axis_ends_at_a_round_number(most: int, top: int, ticks: list[int]) -> None:
    features = [{"class": "CrossD", "mds": 0.5}] * most
    assert count_axis(features) == (top, ticks)


def test_images_have_captions_as_alternatives(page: Path) -> None:
    html = page.read_text()
    assert html.count("<img ") == len(re.findall(r'<img [^>]*alt="[^"]+"', html)) > 0


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_search_and_filter_in_chromium(page: Path, space: FeatureSpace) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        tab = browser.new_page(viewport={"width": 375, "height": 800})
        errors: list[str] = []
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        tab.goto(page.as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") <= 375
        tab.select_option("#class", "CrossD")
        cross = space.config.classes["relative"]["counts"]["CrossD"]
        assert tab.inner_text("#found") == f"{cross} feature{'s' if cross != 1 else ''}"
        assert tab.locator(".feature:visible").count() == cross
        tab.select_option("#class", "")
        tab.fill("#words", "no such words")
        assert tab.inner_text("#found") == "0 features"
        tab.fill("#words", "a ")
        active = sum(n > 0 for n in space.features["active_pairs"].to_pylist())
        assert 0 < tab.locator(".feature:visible").count() <= active
        assert tab.evaluate(
            "[...document.querySelectorAll('.feature:not([hidden]) img')].every(i => i.src)"
        )
        assert errors == []
        browser.close()


def test_it_says_where_pairs_are_few_and_what_helps(space: FeatureSpace, tmp_path: Path) -> None:
    assert few_pairs(space) is None
    assert "are few for this dictionary" not in write_report(space, tmp_path / "a.html").read_text()

    active = [2, *[0] * 5, *[9] * (len(space) - 6)]  # none on ten pairs
    place = space.features.column_names.index("active_pairs")
    table = space.features.set_column(place, "active_pairs", pa.array(active, pa.int64()))
    config = dataclasses.replace(space.config, pair_count=30, min_pairs=10)
    thin = FeatureSpace(config, space.dictionary, table, space.exemplars)
    said = few_pairs(thin)
    assert said is not None and said.startswith(
        f"30 pairs are few for this dictionary: of {len(space) - 5} features that are ever active, "
        "0 are active on 10 pairs or more"
    )
    assert all(option in said for option in ("--space", "--dictionary", "--features"))
    assert said in write_report(thin, tmp_path / "b.html").read_text()
