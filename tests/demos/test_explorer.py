"""The Explorer through its API and in a browser, by mouse and by keyboard."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path

import pytest

from demos.common import launch
from demos.explorer import CSS, build
from demos.features_html import picked_html
from features.space.space import FeatureSpace
from features.store.credits import credit_line
from tests.browser import assert_accessible, keep_picture, needs_chromium, opened


@pytest.fixture(scope="module")
def spaces() -> dict[str, FeatureSpace]:
    names = ("embedded", "embedded-ssl")
    return {name: FeatureSpace.load(name, device="cpu") for name in names}


@pytest.fixture(scope="module")
def address(spaces: dict[str, FeatureSpace]) -> Iterator[str]:
    demo = build(spaces)
    _, url, _ = launch(demo, css=CSS, prevent_thread_lock=True, quiet=True)
    yield url
    demo.close()


def test_search_and_compare_through_the_api(address: str) -> None:
    from gradio_client import Client

    client = Client(address, verbose=False)
    given = ("embedded", "woman", "ImgD", 0, "number", 0, 1)
    chart, said, cards = client.predict(*given, api_name="/search")
    cross, *parts = (
        client.predict("embedded", "", c, 0, "agreement", 0, 1, api_name="/search")[1]
        for c in ("CrossD", "CrossD/shared", "CrossD/not shared")
    )
    counts = [int(words.split("**")[1]) for words in (cross, *parts)]
    assert counts[0] == counts[1] + counts[2] and min(counts) > 0
    assert "features" in said and "data-feature" in cards and "<svg" in chart
    nothing = client.predict("embedded", "woman", "ImgD", 1, "number", 0, 1, api_name="/search")
    assert "No feature is like this" in nothing[2]
    with pytest.raises(Exception, match="the last feature is 511"):
        client.predict("embedded", "512", "", 0, "number", 0, 1, api_name="/search")
    words, charts, table = client.predict("embedded", "embedded-ssl", api_name="/compare")
    assert "embedded-ssl has more" in words and charts.count("<svg") == 2 and "FVU" in table


@needs_chromium
def test_search_click_in_the_histogram_and_compare_in_a_browser(address: str) -> None:
    from playwright.sync_api import expect

    with opened(address) as page:
        cards = page.locator("#explorer-cards [data-feature]")
        picked = page.locator("#explorer-picked")
        page.get_by_label("Words or number").fill("woman")
        page.get_by_label("Words or number").press("Enter")
        expect(cards.first).to_contain_text("woman")
        last = page.get_by_label("MDS 0.9 to 1.0")
        last.focus()
        page.keyboard.press("Enter")
        expect(last).to_have_attribute("aria-pressed", "true")
        expect(cards.first).to_contain_text("image-dominant")
        page.get_by_role("button", name="Reset filters").click()
        expect(page.get_by_text("512 of 512 features")).to_be_visible()

        cards.nth(2).click()
        first = cards.nth(2).locator("strong").inner_text()
        expect(picked.get_by_role("heading", name=first)).to_be_visible()
        expect(picked.locator("mark").first).to_be_attached()  # the card comes in three steps
        described = picked.locator("img.picture").evaluate_all("all => all.map(e => e.alt)")
        assert described and all(described)
        layer = picked.locator(".layer").first
        assert layer.evaluate("e => getComputedStyle(e).opacity") == "0"
        page.get_by_label("Show what each feature rests on").check()
        assert layer.evaluate("e => getComputedStyle(e).opacity") == "1"
        boxes = [picked.locator(f".{name}").first.bounding_box() for name in ("picture", "layer")]
        assert boxes[0] == boxes[1]
        page.get_by_role("button", name="Compare with the next one picked").click()
        expect(picked).to_contain_text("Now pick another feature")
        cards.nth(5).click()
        expect(picked.locator("article")).to_have_count(2)
        expect(picked).to_contain_text("Cosine of the two directions")
        assert_accessible(page)
        keep_picture(page, "explorer")

        page.get_by_label("embedded-ssl").click()
        expect(picked.locator("article")).to_have_count(1)
        page.get_by_role("tab", name="Two spaces").click()
        page.get_by_role("button", name="Compare", exact=True).click()
        expect(page.get_by_text("embedded-ssl has more").first).to_be_visible(timeout=30_000)
        assert_accessible(page)


def test_photographs_are_shown_with_their_credits() -> None:
    space = FeatureSpace.load("photos", device="cpu")
    (feature,) = space.select("CrossD", name="skull", shared=True).tolist()[:1]
    page = picked_html({"photos": space}, ("photos", feature), None)
    shown = [
        row
        for row in space.exemplars.to_pylist()
        if (row["feature"], row["modality"]) == (feature, "image")
    ]
    assert len(shown) == page.count("<figure>") == 8
    for row in shown:
        assert html.escape(credit_line(row)) in page
    assert page.count("data:image/webp;base64,") == 8


def test_what_a_feature_rests_on_is_drawn_and_said(spaces: dict[str, FeatureSpace]) -> None:
    space = spaces["embedded"]
    feature = space.select("CrossD", shared=True).tolist()[0]
    page = picked_html(spaces, ("embedded", feature), None)
    pictures = page.count('class="picture"')
    assert pictures == page.count('class="layer"') == page.count("; the feature rests most on") > 0
    captions = page.count('<li class="marked">')
    assert captions == page.count("The feature rests most on") > 0
    assert "cannot be shown" not in page


def test_layers_come_before_marks(spaces: dict[str, FeatureSpace]) -> None:
    picked = ("embedded", spaces["embedded"].select("CrossD", shared=True).tolist()[0])
    bare, layered, whole = (
        picked_html(spaces, picked, None, layers=layers, marks=marks)
        for layers, marks in ((False, False), (True, False), (True, True))
    )
    for page, layers, marks in ((bare, False, False), (layered, True, False), (whole, True, True)):
        assert ('class="layer"' in page, "<mark" in page) == (layers, marks)
    assert bare.count('class="picture"') == whole.count('class="picture"')


def test_without_its_encoder_a_feature_is_shown_without_layers(space_folder: Path) -> None:
    moved = {"mine": FeatureSpace.load(space_folder, device="cpu")}
    feature = moved["mine"].exemplars["feature"][0].as_py()
    page = picked_html(moved, ("mine", feature), None)
    assert "What it rests on cannot be shown: " in page and "local-dir:tiny" in page
    assert 'class="picture"' in page and 'class="layer"' not in page


@needs_chromium
def test_dark_and_narrow(address: str) -> None:
    with opened(address, width=375, height=800, scheme="dark") as page:
        page.locator("#explorer-cards [data-feature]").first.wait_for()
        assert page.evaluate("document.body.scrollWidth") <= 375
        assert_accessible(page)
        keep_picture(page, "explorer-narrow-dark")
