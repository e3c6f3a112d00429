"""Real Chromium on a demo's page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Page

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PICTURES = Path(__file__).parent.parent / "runs" / "screenshots"
SERIOUS = ("serious", "critical")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")


@contextmanager
def opened(
    address: str,
    *,
    width: int = 1280,
    height: int = 1000,
    scheme: Literal["light", "dark"] = "light",
) -> Iterator[Page]:
    """A page on which no script fails, that writes no error to the console and that asks no other
    address for anything."""
    from playwright.sync_api import sync_playwright

    def read_console(message: ConsoleMessage) -> None:
        if message.type == "error":
            errors.append(message.text)

    elsewhere: list[str] = []
    errors: list[str] = []
    allowed = (address.rstrip("/"), "data:", "blob:")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith(allowed) else elsewhere.append(request.url)
            ),
        )
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", read_console)
        page.goto(address)
        yield page
        browser.close()
    assert elsewhere == []
    assert errors == []


def keep_picture(page: Page, name: str) -> None:
    """Leave a picture of the whole page in runs/screenshots."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}.png", full_page=True)


def assert_accessible(page: Page) -> None:
    """axe-core finds nothing serious on what the page shows, once nothing waits or fades."""
    from axe_playwright_python.sync_playwright import Axe

    page.wait_for_function(
        "() => !document.querySelector('.pending')"
        " && !document.getAnimations().some(a => a instanceof CSSTransition)"
    )
    serious = [
        f"{finding['id']}: {node['target']} {node['failureSummary']}"
        for finding in Axe().run(page).response["violations"]
        if finding["impact"] in SERIOUS
        for node in finding["nodes"]
    ]
    assert not serious, "\n".join(serious)
