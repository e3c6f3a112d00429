"""All demos on one page: each tab's main path, and what the server refuses."""

from __future__ import annotations

import io
import json
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from demos.common import MEGAPIXELS
from tests.browser import assert_accessible, keep_picture, needs_chromium, opened
from tests.demos.conftest import ROOT, Served

TABS = ("Explorer", "Attributes", "Steering", "Robustness")
"""All but Garments, which is Attributes over photographs that take a minute to encode."""


@needs_chromium
def test_every_tab_in_a_browser(served: Served) -> None:
    from playwright.sync_api import expect

    with opened(served.address, height=1500) as page:
        page.locator("#explorer-cards [data-feature]").first.click()
        expect(page.locator("#explorer-picked article")).to_be_visible()
        page.get_by_role("tab", name="Steering").click()
        page.get_by_role("button", name="Draw", exact=True).click()
        expect(page.locator("#edits")).to_contain_text('"edits": []', timeout=60_000)
        page.get_by_role("tab", name="Robustness").click()
        page.get_by_role("button", name="Attack", exact=True).click()
        expect(page.locator("#verdict")).to_contain_text("taken for", timeout=60_000)
        page.get_by_role("tab", name="Attributes").click()
        page.wait_for_selector(".js-plotly-plot", timeout=120_000)
        keep_picture(page, "front-door")


@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), [(375, "dark"), (1600, "light")])
def test_tabs_fit_the_screen_and_are_accessible(served: Served, width: int, scheme: str) -> None:
    with opened(served.address, width=width, height=900, scheme=scheme) as page:  # type: ignore[arg-type]
        page.locator("#explorer-cards [data-feature]").first.wait_for()
        for tab in TABS:
            page.get_by_role("tab", name=tab).click()
            page.get_by_role("heading", name=f"{tab}:").wait_for()
            assert page.evaluate("document.body.scrollWidth") <= width, tab
            assert_accessible(page)


@pytest.mark.parametrize("path", ["/etc/passwd", str(ROOT / "README.md"), "README.md", "../main"])
def test_no_path_of_the_server_is_readable(served: Served, path: str) -> None:
    quoted = urllib.parse.quote(path)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{served.address}gradio_api/file={quoted}")
    assert refused.value.code in (403, 404)


def test_pictures_that_are_too_large_or_none_are_refused_in_words(
    served: Served, tmp_path: Path
) -> None:
    from gradio_client import Client, handle_file

    client = Client(served.address, verbose=False)

    def attack(path: Path) -> None:
        given = handle_file(str(path)), "man, woman", "apgd", "Linf", "4/255"
        client.predict(*given, api_name="/attack")

    many = tmp_path / "many.png"
    Image.new("1", (MEGAPIXELS * 1000, 1001)).save(many)
    with pytest.raises(Exception, match=f"more than {MEGAPIXELS} megapixels"):
        attack(many)
    text = tmp_path / "text.png"
    text.write_text("no picture")
    with pytest.raises(Exception, match="cannot be read as a picture"):
        attack(text)
    heavy = tmp_path / "heavy.png"
    heavy.write_bytes(bytes(11_000_000))
    with pytest.raises(Exception, match=r"413|too large|exceed"):
        attack(heavy)


def test_another_file_of_the_server_is_no_upload(served: Served) -> None:
    picture = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    body = {"data": [picture, "man, woman", "apgd", "Linf", "4/255"]}
    request = urllib.request.Request(
        f"{served.address}gradio_api/call/attack",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    event = json.load(urllib.request.urlopen(request))["event_id"]
    said = io.TextIOWrapper(
        urllib.request.urlopen(f"{served.address}gradio_api/call/attack/{event}")
    ).read()
    assert "event: error" in said
    assert "root:" not in said
