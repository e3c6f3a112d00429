"""The demo through its API and in a browser, by mouse and by keyboard."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from demos.attributes import CSS, build, said_of
from demos.common import launch
from features.space.space import FeatureSpace
from mms_apps.attributes.correction.checking import Advice, check
from mms_apps.attributes.correction.correcting import OTHER_HALF, GroupCorrection
from mms_apps.attributes.correction.files import MadeFrom, load_correction
from mms_apps.attributes.correction.mistakes import judge
from mms_apps.attributes.correction.proposing import Corrected, corrected, grown
from mms_apps.attributes.workbench import Picture, Workbench
from tests.browser import assert_accessible, keep_picture, needs_chromium, opened
from tests.conftest import draw_imagefolder

pytestmark = pytest.mark.usefixtures("few_strengths")


@pytest.fixture(scope="module")
def workbench(
    space_folder: Path, clip_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Workbench:
    """Over the tiny space."""
    work = tmp_path_factory.mktemp("demo")
    train = draw_imagefolder(work / "train", count=120, seed=1)
    test = draw_imagefolder(work / "test", count=60, seed=2)
    space = FeatureSpace.load(space_folder, device="cpu", encoder=f"local-dir:{clip_folder}")
    return Workbench(
        space,
        str(train),
        str(test),
        ["shape", "colour"],
        ["colour", "shape"],
        work / "embeddings",
        role="colour",
    )


@pytest.fixture(scope="module")
def address(workbench: Workbench) -> Iterator[str]:
    """A running demo."""
    demo = build(workbench)
    _, url, _ = launch(demo, css=CSS, prevent_thread_lock=True, quiet=True)
    yield url
    demo.close()


def test_predict_and_audit_through_the_api(address: str, imagefolder: Path) -> None:
    from gradio_client import Client, handle_file

    client = Client(address, verbose=False)
    image = handle_file(str(imagefolder / "images" / "0001.png"))
    before, after, figure, shown = client.predict(
        image, "shape", "sparse_probe", [], api_name="/predict"
    )
    assert before == after
    assert {row["label"] for row in before["confidences"]} == {"circle", "line", "square"}
    assert sum(row["confidence"] for row in before["confidences"]) == pytest.approx(1, abs=1e-3)
    assert figure["type"] == "plotly"
    assert "data:image/webp;base64," in shown
    off = ["ImgD", "CrossD", "TextD"]
    _, without, _, _ = client.predict(image, "shape", "sparse_probe", off, api_name="/predict")
    assert without != before
    summary, *figures = client.predict("shape", "linear_probe", "colour", api_name="/audit")
    assert "too few to compare" in summary and "nan" not in summary
    assert len(figures) == 3


def test_wrong_predictions_are_grouped_with_layers_through_the_api(address: str) -> None:
    from gradio_client import Client

    said, kept = Client(address, verbose=False).predict(
        "colour", "linear_probe", "shape", api_name="/correct"
    )
    assert "predictions on the half searched are wrong" in said
    assert "wrong by" in said and "taken for" in said
    assert "data:image/webp;base64," in said
    assert said.count('class="layers-switch"') == 1
    assert said.count('class="picture"') == said.count('class="layer"') > 0
    assert said.count("; the feature rests most on") == said.count('class="layer"')
    assert "Accept:" not in said and "Nothing is proposed" in said
    assert kept["value"] is None and "No edit may be accepted" in str(kept["label"])


def test_accepted_edits_are_downloaded_as_the_command_saves_them(
    address: str, workbench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradio_client import Client

    found = workbench.correct("colour", "linear_probe", "shape")
    plain, judged = Corrected(found.model), judge(found.model, found.half)
    groups = []
    for one in found.groups:  # of a random encoder's mistakes, none deserves an edit
        proposal = grown(judged, one.mistakes.feature, [], 1.0)
        edited = corrected(found.model, proposal)
        checks = {OTHER_HALF: check(plain, edited, found.other, "shape", 0)}
        advice = Advice(not groups, "tried")
        groups.append(GroupCorrection(one.mistakes, proposal, edited, checks, advice))
    assert len(groups) > 1
    monkeypatch.setattr(workbench, "correct", lambda *_: replace(found, groups=tuple(groups)))
    said, kept = Client(address, verbose=False, download_files=str(tmp_path)).predict(
        "colour", "linear_probe", "shape", api_name="/correct"
    )
    assert "In the download as edits/1; look at it again by" in said
    assert said.count("Not in the download.") == len(groups) - 1
    assert kept["label"] == "Download the accepted edit"
    with zipfile.ZipFile(kept["value"]) as archive:
        archive.extractall(tmp_path)
    assert [path.name for path in (tmp_path / "edits").iterdir()] == ["1"]
    accepted = load_correction(tmp_path / "edits" / "1", workbench.space)
    saved, store = accepted.saved, workbench._test_store.config
    assert saved.proposal == groups[0].proposal and saved.figures.keys() == {OTHER_HALF}
    assert saved.why == "tried" and saved.look_again > saved.made
    assert saved.made_from == MadeFrom(store.pairs, store.pairs_fingerprint)
    assert groups[0].edited is not None
    right = groups[0].edited.right(found.other)
    assert (accepted.edited.right(found.other) == right).all()


@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), [(375, "dark"), (1600, "light")])
def test_the_tab_of_corrections_in_a_browser(address: str, width: int, scheme: Any) -> None:
    from playwright.sync_api import expect

    with opened(address, width=width, height=900, scheme=scheme) as page:
        page.wait_for_selector(".js-plotly-plot", timeout=60_000)
        page.get_by_label("colour", exact=True).first.check()
        page.get_by_role("tab", name="Correct").focus()
        page.keyboard.press("Enter")
        start = page.get_by_role("button", name="Find what went wrong")
        start.focus()
        page.keyboard.press("Enter")
        expect(page.locator(".corrections article").first).to_be_visible(timeout=60_000)
        layer = page.locator(".corrections .layer").first
        opacity = "element => getComputedStyle(element).opacity"
        assert layer.evaluate(opacity) == "0"
        page.get_by_label("Show what each feature rests on").check()
        assert layer.evaluate(opacity) == "1"
        boxes = [
            page.locator(f".corrections .{name}").first.bounding_box()
            for name in ("picture", "layer")
        ]
        assert boxes[0] == boxes[1]
        expect(page.get_by_role("button", name="No edit may be accepted")).to_be_disabled()
        assert page.evaluate("document.body.scrollWidth") <= width
        assert_accessible(page)
        keep_picture(page, f"correct-{width}")


def test_a_picture_is_shown_with_its_caption_and_whose_it_is() -> None:
    image = Image.new("RGB", (4, 4))
    said = said_of(Picture(image, "a <hat>", "“Hat” by A. Jones, CC BY 2.0"))
    assert "a &lt;hat&gt;" in said and "A. Jones, CC BY 2.0" in said
    assert said_of(Picture(image, "a hat", "")) == "a hat"


@needs_chromium
def test_in_a_browser_by_keyboard_and_without_other_machines(address: str) -> None:
    from playwright.sync_api import expect

    with opened(address) as page:
        page.wait_for_selector(".js-plotly-plot", timeout=60_000)
        expect(page.get_by_text("it does not say who a person is")).to_be_visible()
        labels = page.locator("[data-testid=label-output-value]")
        first = labels.all_inner_texts()
        assert len(first) == 2
        assert first[0] == first[1]

        # A picture is picked, classes switched off and another attribute chosen by keyboard alone.
        pictures = page.get_by_role("button", name="Thumbnail")
        pictures.nth(3).focus()
        page.keyboard.press("Enter")
        for name in ("image-dominant", "cross-modal", "text-dominant"):
            box = page.get_by_label(name)
            box.focus()
            page.keyboard.press("Space")
            expect(box).to_be_checked()
        page.wait_for_function(
            "[...document.querySelectorAll('.legendtext')].some("
            "e => e.textContent.includes('switched off'))",
            timeout=30_000,
        )
        page.get_by_label("colour", exact=True).first.focus()
        page.keyboard.press("Space")
        page.wait_for_function(
            "[...document.querySelectorAll('[data-testid=label-output-value]')].every("
            "e => ['red','green','blue','yellow','purple'].includes(e.textContent.trim()))",
            timeout=60_000,
        )

        assert_accessible(page)
        keep_picture(page, "attributes")

        page.get_by_role("tab", name="Audit").focus()
        page.keyboard.press("Enter")
        page.get_by_label("shape", exact=True).locator("visible=true").last.focus()
        page.keyboard.press("Space")
        start = page.get_by_role("button", name="Audit", exact=True)
        start.focus()
        page.keyboard.press("Enter")
        expect(page.get_by_text("too few to compare")).to_be_visible(timeout=60_000)
        page.wait_for_function(
            "[...document.querySelectorAll('.js-plotly-plot')].filter(e => e.offsetParent)"
            ".length >= 2",
            timeout=30_000,
        )
        assert_accessible(page)
