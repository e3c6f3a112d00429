"""What features rest on, as reports draw it and say it."""

from __future__ import annotations

import base64
import html as html_library
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from features.encoders.load import load_encoder
from features.evidence.pictures import PictureEvidence, picture_evidence
from features.evidence.reading import strongest_words, where
from features.evidence.words import WordEvidence
from features.pairs.images import decode_image
from features.reports.layers import AGAINST, FOR, layer_url, marked
from features.reports.report import write_report
from features.space.space import FeatureSpace
from tests.browser import assert_accessible, keep_picture, needs_chromium, opened
from tests.conftest import Mms


def said_of(values: dict[str, float]) -> WordEvidence:
    caption = " ".join(values)
    spans = [match.span() for match in re.finditer(r"\S+", caption)]
    return WordEvidence(
        caption, tuple(spans), torch.tensor([list(values.values())]), torch.zeros(1)
    )


@pytest.mark.parametrize(
    ("row", "column", "words"),
    [
        (0, 0, "the upper left"),
        (0, 5, "the upper right"),
        (2, 0, "the middle left"),
        (3, 3, "the centre"),
        (5, 2, "the lower centre"),
        (5, 5, "the lower right"),
    ],
)
def test_where_the_evidence_lies_is_said(row: int, column: int, words: str) -> None:
    cells = torch.full((6, 6), -1.0)
    cells[row, column] = 0.2
    assert where(cells) == words


def test_evidence_all_over_and_none_are_said() -> None:
    assert where(torch.ones(16, 16)) == "all of it alike"
    assert where(-torch.ones(16, 16)) == where(torch.zeros(16, 16)) == "nothing in it"


def test_the_strongest_words_are_named_the_strongest_first() -> None:
    assert strongest_words(said_of({"a": 0.1, "red": 0.6, "circle": 1.0})) == ["circle", "red"]
    assert strongest_words(said_of({"a": 0.1, "red": 0.4, "circle": 1.0})) == ["circle"]
    assert strongest_words(said_of({"a": -0.1, "red": -2.0})) == []
    assert strongest_words(said_of({"a": 0.0})) == []


def test_a_layer_is_orange_for_purple_against_and_clear_where_nothing_speaks() -> None:
    cells = torch.zeros(1, 4, 4)
    cells[0, :, 0], cells[0, :, 3] = 2.0, -1.0
    found = PictureEvidence(cells, torch.zeros(1), (0.0, 0.25, 1.0, 0.75))
    url = layer_url(found, (60, 120))
    content = base64.b64decode(url.removeprefix("data:image/png;base64,"))
    drawn = np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))
    assert drawn.shape[:2] == (48, 24)
    assert tuple(drawn[24, 0, :3]) == FOR and tuple(drawn[24, -1, :3]) == AGAINST
    assert drawn[24, 0, 3] > 1.8 * drawn[24, -1, 3] > 0
    assert (drawn[:12, :, 3] == 0).all() and (drawn[36:, :, 3] == 0).all(), "beyond what is seen"


def test_words_are_marked_by_their_sign_and_strength_and_escaped() -> None:
    found = marked(said_of({"<b>": -0.5, "red": 1.0, "a": 0.01}))
    assert found.html == (
        '<mark class="against" style="--strength:0.50">&lt;b&gt;</mark> '
        '<mark class="for" style="--strength:1.00">red</mark> a'
    )
    assert found.said == "rests most on “red”"
    assert marked(said_of({"a": -1.0})).said == "rests most on no word of it"


@pytest.fixture(scope="module")
def space(space_folder: Path, clip_folder: Path) -> FeatureSpace:
    encoder = load_encoder(f"local-dir:{clip_folder}", device="cpu")
    return FeatureSpace.load(space_folder, device="cpu", encoder=encoder)


def test_a_report_s_opening_shows_what_its_features_rest_on(
    space: FeatureSpace, tmp_path: Path
) -> None:
    page = write_report(space, tmp_path / "report.html").read_text()
    assert page.count('class="layers-switch"') == 1
    assert page.count('class="layer"') > 0
    alts = re.findall(r'<img class="picture"[^>]* alt="([^"]*)"', page)
    told = [html_library.unescape(alt) for alt in alts if "the feature rests most on" in alt]
    assert len(told) == page.count('class="layer"')
    row = next(
        row
        for row in space.exemplars.to_pylist()
        if any(alt.startswith(row["caption"] + ";") for alt in told) and row["thumbnail"]
    )
    [found] = picture_evidence(space, [decode_image(row["thumbnail"])], [row["feature"]], "fast")
    assert f"{row['caption']}; the feature rests most on {where(found.cells[0])}" in told
    plain = write_report(space, tmp_path / "plain.html", evidence=False).read_text()
    assert 'class="layer"' not in plain and 'class="layers-switch"' not in plain
    assert "is not shown" not in plain


def test_a_report_whose_encoder_is_not_at_hand_says_so(
    space_folder: Path, tmp_path: Path, mms: Mms
) -> None:
    out = tmp_path / "report.html"
    assert mms("report", space_folder, "--out", out)[0] == 0
    page = out.read_text()
    assert "What each feature rests on is not shown" in page and "local-dir:tiny" in page
    assert 'class="layer"' not in page


def test_a_report_takes_the_place_of_a_moved_encoder(
    space_folder: Path, clip_folder: Path, tmp_path: Path, mms: Mms
) -> None:
    out = tmp_path / "report.html"
    moved = ("--encoder", f"local-dir:{clip_folder}")
    assert mms("report", space_folder, "--out", out, *moved)[0] == 0
    assert 'class="layer"' in out.read_text()
    assert mms("report", space_folder, "--out", out, *moved, "--no-evidence")[0] == 0
    assert 'class="layer"' not in out.read_text()


@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (375, "dark")])
def test_the_switch_shows_the_layers_in_a_browser(
    space: FeatureSpace, tmp_path: Path, width: int, scheme: str
) -> None:
    page_file = write_report(space, tmp_path / "report.html")
    with opened(page_file.as_uri(), width=width, scheme=scheme) as page:  # type: ignore[arg-type]
        layer = page.locator(".layer").first
        opacity = "element => getComputedStyle(element).opacity"
        assert layer.evaluate(opacity) == "0"
        switch = page.get_by_label("Show what each feature rests on")
        switch.focus()
        page.keyboard.press("Space")
        assert layer.evaluate(opacity) == "1"
        picture, drawn = (
            page.locator(f".opening .{name}").first.bounding_box() for name in ("picture", "layer")
        )
        assert picture == drawn
        assert page.evaluate("document.body.scrollWidth") <= width
        assert_accessible(page)
        keep_picture(page, f"report-layers-{width}")
