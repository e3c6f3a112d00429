"""The report: what it says, and that it works in a browser without a network."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from features.dictionary import TrainConfig, fit_dictionary
from features.pairs import open_pairs
from features.report import BINS, histogram, write_report
from features.space import FeatureSpace, score
from features.store import StoreConfig, sample_table, write_store


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


def test_nothing_is_fetched(page: Path) -> None:
    html = page.read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", html)
    assert "url(" not in html and "@import" not in html


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
        scored = sum(c != "unscored" for c in space.features["class"].to_pylist())
        tab.select_option("#class", "CrossD")
        cross = space.config.classes["relative"]["counts"]["CrossD"]
        assert tab.inner_text("#found") == f"{cross} features"
        assert tab.locator(".feature:visible").count() == cross
        tab.select_option("#class", "")
        tab.fill("#words", "no such words")
        assert tab.inner_text("#found") == "0 features"
        tab.fill("#words", "a ")
        assert 0 < tab.locator(".feature:visible").count() <= scored
        assert errors == []
        browser.close()
