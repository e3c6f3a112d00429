"""The demo through its API and in a browser."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demos.common import launch
from demos.steering import CSS, build
from mms_apps.steering.controls import SLOTS
from mms_apps.steering.edits import Edit, Steering
from mms_apps.steering.generator import GUIDANCE, STEPS, SteeredGenerator
from mms_apps.steering.saved import Source, steering_record
from tests.browser import assert_accessible, keep_picture, needs_chromium, opened


@pytest.fixture(scope="module")
def address(drawer: SteeredGenerator) -> Iterator[str]:
    demo = build(drawer.space, lambda: drawer)
    _, url, _ = launch(demo, css=CSS, prevent_thread_lock=True, quiet=True)
    yield url
    demo.close()


def controls(*edits: tuple[int, float]) -> list:
    """Towards, class, alpha, begin, end, drift, and the sliders."""
    empty = SLOTS - len(edits)
    features = [feature for feature, _ in edits] + [None] * empty
    strengths = [strength for _, strength in edits] + [0.0] * empty
    return ["", None, 0.0, 0.0, 1.0, 0, *features, *["add"] * SLOTS, *strengths]


def test_draw_strip_find_and_wish_through_the_api(address: str) -> None:
    from gradio_client import Client

    client = Client(address, verbose=False)
    given = ("a woman", None, 0, *controls((400, 2.0)))
    plain, steered, said, edits, bundle = client.predict(*given, api_name="/draw")
    assert Path(plain).is_file() and Path(steered).is_file()
    assert "Drift" in said
    assert json.loads(edits)["edits"][0]["feature"] == 400
    with zipfile.ZipFile(bundle) as archive:
        assert set(archive.namelist()) == {"edits.json", "plain.png", "steered.png"}
        assert json.loads(archive.read("edits.json")) == json.loads(edits)
    _, said, bundle = client.predict(*given, api_name="/strip")
    assert "2 times" in said
    with zipfile.ZipFile(bundle) as archive:
        assert {"strip.png", "-1-times.png", "2-times.png"} < set(archive.namelist())
    assert client.predict("woman", "", api_name="/find")[0]
    taken = client.predict("more woman, less man", api_name="/wish")
    assert "Took" in taken[-1] and taken[0] is not None
    many = client.predict("more woman, more man, more cat", api_name="/wish")
    assert "No slider was left for “cat”" in many[-1]
    restored = client.predict(edits, api_name="/restore")
    assert restored[0] == "a woman" and restored[1] == 0
    assert restored[8] == 400 and restored[8 + 2 * SLOTS] == 2.0
    assert restored[-3:-1] == (STEPS, GUIDANCE)
    for seed, message in ((None, "seed None: must be"), (1e30, "seed 1000.*: must be a whole")):
        with pytest.raises(Exception, match=message):
            client.predict("a woman", None, seed, *controls(), api_name="/draw")
    with pytest.raises(Exception, match="nothing to draw"):
        client.predict("", None, 0, *controls(), api_name="/draw")
    with pytest.raises(Exception, match="another FeatureSpace"):
        client.predict(json.dumps(json.loads(edits) | {"space": "0"}), api_name="/restore")


def test_what_edits_were_drawn_from_comes_back_whole_and_is_drawn_again(
    address: str, drawer: SteeredGenerator
) -> None:
    from gradio_client import Client

    client = Client(address, verbose=False)

    def restored(source: Source | None) -> tuple:
        record = steering_record(Steering((Edit(400, 2.0),)), drawer.space, source)
        return client.predict(json.dumps(record), api_name="/restore")

    source = Source("a cat", seed=3, steps=2, guidance=7.5)
    prompt, seed, *_values, steps, guidance, _ = restored(source)
    assert (prompt, seed, steps, guidance) == ("a cat", 3, 2, 7.5)
    given = (prompt, None, seed, *controls((400, 2.0)), steps, guidance)
    *_, edits, bundle = client.predict(*given, api_name="/draw")
    assert json.loads(edits)["source"] == dataclasses.asdict(source)
    steerings = [Steering(), Steering((Edit(400, 2.0),))]
    made = drawer.generate(steerings, prompt="a cat", seed=3, steps=2, guidance=7.5)
    with zipfile.ZipFile(bundle) as archive, archive.open("steered.png") as file:
        assert np.array_equal(np.asarray(Image.open(file)), np.asarray(made.images[1]))
    assert restored(Source("", "photo.png", "0" * 64))[0] == ""
    assert restored(Source("x", steps=2, guidance=0.0))[-2] == 0.0
    assert restored(Source("x"))[-3:-1] == (STEPS, GUIDANCE)  # of an older version


@needs_chromium
def test_prompt_find_steer_save_reload_and_load_in_a_browser(address: str) -> None:
    from playwright.sync_api import expect

    with opened(address) as page:
        page.get_by_label("Prompt", exact=True).fill("a man")
        page.get_by_label("Prompt", exact=True).press("Enter")
        expect(page.locator("#edits")).to_contain_text('"edits": []', timeout=60_000)
        page.get_by_label("Word or number").fill("400")
        page.get_by_label("Word or number").press("Enter")
        page.locator("#found button").first.wait_for(timeout=60_000)
        page.locator("#found .grid-container button, #found button.thumbnail-item").first.click()
        effect = page.get_by_text("at strength -2, 0 and 2. Top captions")
        effect.wait_for(timeout=60_000)
        page.get_by_role("button", name="Put it on a slider").click()
        expect(page.locator("#edits")).to_contain_text('"feature": 400', timeout=60_000)
        assert_accessible(page)
        keep_picture(page, "steering")
        page.get_by_role("button", name="Save in this browser").click()
        expect(page.locator("#saved")).to_contain_text("Saved", timeout=30_000)
        page.reload()
        page.get_by_role("button", name="Load what was saved").click()
        expect(page.locator("#edits")).to_contain_text('"feature": 400', timeout=60_000)
