"""The front door over spaces of one's own: what opens, what says what it needs, what is refused."""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from demos.common import launch
from demos.front_door import CSS, own_page
from features.errors import UserError
from features.pairs.base import Described
from features.space.space import FeatureSpace
from mms_apps.front_door import FrontDoor, labelled_attributes, open_front_door
from tests.browser import assert_accessible, keep_picture, needs_chromium, opened
from tests.cli.conftest import one_error_line
from tests.conftest import Mms, draw_imagefolder

APPS = ("workbench", "drawer", "session")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shapes enough to fit a model on one half of them."""
    return draw_imagefolder(tmp_path_factory.mktemp("own") / "pairs", count=240, seed=5)


@pytest.fixture(scope="module")
def door(
    space_folder: Path, clip_folder: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory
) -> FrontDoor:
    """The tiny space with pairs, without a generator."""
    work = tmp_path_factory.mktemp("work")
    given = {"pairs": str(pairs), "encoder": f"local-dir:{clip_folder}", "device": "cpu"}
    return open_front_door([str(space_folder)], work, **given)


@pytest.fixture(scope="module")
def address(door: FrontDoor) -> Iterator[str]:
    demo = own_page(door)
    _, url, _ = launch(demo, css=CSS, prevent_thread_lock=True, quiet=True)
    yield url
    demo.close()


def test_a_space_alone_opens_the_explorer_and_the_others_say_what_they_need(
    space_folder: Path, tmp_path: Path
) -> None:
    found = open_front_door([str(space_folder)], tmp_path, device="cpu")
    assert list(found.spaces) == [str(space_folder)]
    for app, option in zip(APPS, ("--pairs", "--generator", "--pairs"), strict=True):
        assert f"`{option}`" in getattr(found, app)
    own_page(found)


def test_a_generator_of_the_spaces_encoder_opens_steering(tmp_path: Path) -> None:
    found = open_front_door(["embedded-ssl"], tmp_path, generator="embedded", device="cpu")
    assert not isinstance(found.drawer, str)
    own_page(found, "embedded")


def test_spaces_of_one_encoder_open_together_and_of_different_ones_do_not(tmp_path: Path) -> None:
    found = open_front_door(["photos", "garments", "photos"], tmp_path, device="cpu")
    assert list(found.spaces) == ["photos", "garments"]
    with pytest.raises(UserError, match=r"photos and embedded: .*mms compare"):
        open_front_door(["photos", "embedded"], tmp_path, device="cpu")


def described(attributes: dict[str, list[Any]]) -> list[Described]:
    count = len(next(iter(attributes.values())))
    return [
        Described(str(n), ("",), {name: values[n] for name, values in attributes.items()}, str(n))
        for n in range(count)
    ]


def test_attributes_that_are_labels_are_found_among_others() -> None:
    columns = {
        "number": [str(n) for n in range(40)],
        "split": ["train", "test"] * 20,
        "always": ["one"] * 40,
        "tags": ["cat|small", "dog"] * 20,
        "rarely": ["one"] * 31 + ["two"] * 9,
        "size": ["small"] * 10 + [None] * 20 + ["large"] * 10,
        "kind": ["cat"] * 12 + ["dog"] * 27 + ["emu"],
    }
    found = labelled_attributes(described(columns), "pairs")
    assert found == {"size": ["small", "large"], "kind": ["dog", "cat"]}
    del columns["size"], columns["kind"]
    with pytest.raises(
        UserError, match="pairs has number, split, always, tags, rarely; give pairs"
    ):
        labelled_attributes(described(columns), "pairs")
    with pytest.raises(UserError, match="has no attribute at all"):
        labelled_attributes([Described("0", ("",), {}, "0")], "pairs")


@pytest.mark.parametrize("labels", ["none", "one value", "few"])
def test_pairs_without_labels_open_robustness_and_attributes_says_why(
    space_folder: Path, clip_folder: Path, tmp_path: Path, labels: str
) -> None:
    folder = draw_imagefolder(tmp_path / "pairs", count=8 if labels == "few" else 40)
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").open()]
    kept = {"none": (), "one value": ("only",), "few": ("shape", "colour")}[labels]
    for row in lines:
        row["only"] = "one"
    names = ("file_name", "text", *kept)
    text = "".join(json.dumps({name: row[name] for name in names}) + "\n" for row in lines)
    (folder / "metadata.jsonl").write_text(text)
    found = open_front_door(
        [str(space_folder)],
        tmp_path / "work",
        pairs=str(folder),
        encoder=f"local-dir:{clip_folder}",
        device="cpu",
    )
    assert isinstance(found.workbench, str)
    assert "at least two of which 10 pairs have" in found.workbench
    assert not isinstance(found.session, str)


def test_the_apps_answer_through_the_api(address: str, pairs: Path) -> None:
    from gradio_client import Client, handle_file

    client = Client(address, verbose=False)
    image = handle_file(str(pairs / "images" / "0001.png"))
    before, *_ = client.predict(image, "shape", "linear_probe", [], api_name="/predict")
    assert {row["label"] for row in before["confidences"]} == {"circle", "line", "square"}
    said, *_ = client.predict(image, "red, green", "fgsm", "Linf", "4/255", api_name="/attack")
    assert re.search("Fooled|Withstood|Not to be relied on", said)


@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), [(375, "dark"), (1600, "light")])
def test_every_tab_in_a_browser(address: str, width: int, scheme: Any) -> None:
    from playwright.sync_api import expect

    with opened(address, width=width, height=900, scheme=scheme) as page:
        page.locator("#explorer-cards [data-feature]").first.wait_for()
        for tab in ("Explorer", "Attributes", "Steering", "Robustness"):
            page.get_by_role("tab", name=tab).click()
            page.get_by_role("heading", name=f"{tab}:").wait_for()
            if tab == "Attributes":
                page.wait_for_selector(".js-plotly-plot", timeout=60_000)
            if tab == "Steering":
                expect(page.get_by_text("for which it needs a generator")).to_be_visible()
            assert page.evaluate("document.body.scrollWidth") <= width, tab
            assert_accessible(page)
        keep_picture(page, f"own-space-{width}")


@pytest.mark.parametrize("program", ["mms explore", "python -m demos"])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("{pairs}",), "no FeatureSpace here"),
        (("nowhere",), "no FeatureSpace here.*embedded-ssl, photos, garments"),
        (("embedded", "{space}"), "embedded and .*: spaces of different encoders"),
        (("{space}", "--pairs", "nowhere"), "nowhere: no such file"),
        (("{space}", "--pairs", "{broken}", "--encoder", "{encoder}"), "no picture could be read"),
        (("{space}", "--generator", "embedded", "--encoder", "{encoder}"), "give the space of the"),
        (("embedded", "--generator", "embedded"), "give the space of the pipeline's encoder"),
        (("embedded", "--encoder", "embedded-ssl"), "embedded-ssl: its weights"),
        (("--pairs", "{pairs}"), "--pairs: name the FeatureSpace"),
        (("--generator", "embedded"), "--generator: name the FeatureSpace"),
        (("embedded", "--port", "70000"), "--port 70000: cannot be taken"),
    ],
)
def test_mistakes_are_one_line(
    space_folder: Path,
    clip_folder: Path,
    pairs: Path,
    tmp_path: Path,
    mms: Mms,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    program: str,
    arguments: tuple[str, ...],
    expected: str,
) -> None:
    broken = shutil.copytree(pairs, tmp_path / "broken")
    for image in (broken / "images").iterdir():
        image.write_bytes(b"no picture")
    places = {
        "pairs": pairs,
        "space": space_folder,
        "encoder": f"local-dir:{clip_folder}",
        "broken": broken,
    }
    words = [word.format(**places) for word in arguments]
    if program == "mms explore":
        code, _, err = mms("explore", *words, "--device", "cpu")
    else:
        monkeypatch.setattr("sys.argv", ["demos", *words, "--device", "cpu"])
        common, main = import_module("demos.common"), import_module("demos.__main__").main
        with pytest.raises(SystemExit) as stopped:
            common.run_in_words(main)
        code, err = stopped.value.code, capsys.readouterr().err
    assert code == 2
    assert re.search(expected, one_error_line(err)), err


def test_no_free_port_at_all_is_one_line(
    space_folder: Path, mms: Mms, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        # Where Gradio looks for one; it reads GRADIO_SERVER_PORT when it is imported.
        monkeypatch.setattr("gradio.http_server.INITIAL_PORT_VALUE", taken.getsockname()[1])
        monkeypatch.setattr("gradio.http_server.TRY_NUM_PORTS", 1)
        code, _, err = mms("explore", space_folder, "--device", "cpu")
    assert code == 2 and "no port for the page; name a free one" in one_error_line(err)


def test_mms_explore_serves_what_is_asked_for(
    space_folder: Path, mms: Mms, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = []
    monkeypatch.setattr("demos.front_door.launch", lambda demo, **given: served.append(given))
    assert mms("explore", space_folder, "--port", "7999", "--device", "cpu")[0] == 0
    assert mms("explore", "--device", "cpu")[0] == 0
    assert [given["port"] for given in served] == [7999, None]


def test_large_photographs_are_held_small(tmp_path: Path) -> None:
    from features.pairs.drawn import draw_pairs
    from features.pairs.open import open_pairs
    from mms_apps.robustness.session import LARGEST, Session

    (tmp_path / "cat").mkdir()
    Image.new("RGB", (3000, 1500), "red").save(tmp_path / "cat" / "a.png")
    Image.new("RGB", (30, 20), "red").save(tmp_path / "cat" / "b.png")
    pairs = draw_pairs(open_pairs(str(tmp_path), captions_needed=False), 10)
    space = FeatureSpace.load("embedded", device="cpu")
    sizes = sorted(image.size for image, _ in Session.of_pairs(space, pairs).pictures)
    assert sizes == [(30, 20), (LARGEST, LARGEST // 2)]
