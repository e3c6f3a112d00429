"""The demo through its API and in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demos.common import launch
from demos.robustness import CSS, build
from mms_apps.robustness.session import Session
from tests.browser import assert_accessible, keep_picture, needs_chromium, opened


@pytest.fixture(scope="module")
def session() -> Session:
    return Session.load("embedded", device="cpu")


@pytest.fixture(scope="module")
def address(session: Session) -> Iterator[str]:
    demo = build(session)
    _, url, _ = launch(demo, css=CSS, prevent_thread_lock=True, quiet=True)
    yield url
    demo.close()


def test_attacks_through_the_api(address: str, session: Session, tmp_path: Path) -> None:
    from gradio_client import Client, handle_file

    client = Client(address, verbose=False)
    path = tmp_path / "picture.png"
    session.pictures[0][0].save(path)
    found = client.predict(
        handle_file(str(path)), "man, woman", "apgd", "Linf", "16/255", api_name="/attack"
    )
    assert "Fooled" in found[0]
    assert found[1]["label"] != found[2]["label"]
    assert found[6]["data"] and len(found[7]["data"]) == 3
    assert all(row[1] == "passed" for row in found[8]["data"])
    assert "its mean activation" in found[9] and found[9].count('class="layer"') == 6
    assert found[6]["data"][0][0].split()[0] in found[9]
    tiny = client.predict(
        handle_file(str(path)),
        "man, woman, person, dog",
        "apgd-t",
        "L2",
        "0.25",
        api_name="/attack",
    )
    assert "Withstood" in tiny[0] or "Fooled" in tiny[0]
    for arguments, message in (
        (("man", "apgd", "Linf", "4/255"), "at least two"),
        (("man, woman", "apgd-t", "Linf", "4/255"), "cannot be run on 2 classes"),
    ):
        with pytest.raises(Exception, match=message):
            client.predict(handle_file(str(path)), *arguments, api_name="/attack")
    with pytest.raises(Exception, match="Pick or upload"):
        client.predict(None, "man, woman", "apgd", "Linf", "4/255", api_name="/attack")


@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (375, "dark")])
def test_pick_attack_and_read_in_a_browser(address: str, width: int, scheme: Any) -> None:
    from playwright.sync_api import expect

    with opened(address, width=width, height=1500, scheme=scheme) as page:
        page.locator("#robustness-pictures button.thumbnail-item").nth(2).click()
        page.get_by_label("eps, of a list or your own").fill("16/255")
        page.get_by_label("eps, of a list or your own").press("Enter")
        page.get_by_role("button", name="Attack", exact=True).click()
        expect(page.locator("#verdict")).to_contain_text("Fooled", timeout=60_000)
        expect(page.get_by_role("gridcell", name="cross-modal").first).to_be_visible()
        layer = page.locator(".moved .layer").first
        opacity = "element => getComputedStyle(element).opacity"
        assert layer.evaluate(opacity) == "1"
        page.get_by_label("Show what each feature rests on").uncheck()
        assert layer.evaluate(opacity) == "0"
        page.get_by_label("Show what each feature rests on").check()
        assert page.evaluate("document.body.scrollWidth") <= width
        assert_accessible(page)
        keep_picture(page, f"robustness-{width}")
        page.get_by_label("Labels, by commas").fill("only one")
        page.get_by_role("button", name="Attack", exact=True).click()
        page.get_by_text("give at least two").first.wait_for(timeout=30_000)
