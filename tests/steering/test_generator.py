"""The generator that takes edits, its prior, and `mms steer`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LinearRegression

from features.errors import UserError
from features.space.space import FeatureSpace
from mms_apps.steering.catalogue import search
from mms_apps.steering.edits import Blend, Edit, Steering
from mms_apps.steering.generator import SteeredGenerator, scaled
from mms_apps.steering.generator_training.prior import fit_prior
from mms_apps.steering.prior import Prior
from tests.conftest import Mms

EDITS = (Edit(400, 2.0), Edit(292, -1.0))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=int)


def test_one_call_for_several_steerings_is_each_alone(drawer: SteeredGenerator) -> None:
    steerings = [Steering(), Steering(EDITS), Steering(EDITS, begin=0.5), Steering(EDITS, end=0.4)]
    together = drawer.generate(steerings, prompt="a woman", seed=3, steps=4)
    assert together.drift[0] == pytest.approx(0, abs=0.1)
    assert (together.drift[1:] > 5).all()
    for steering, picture in zip(steerings, together.images, strict=True):
        [alone] = drawer.generate([steering], prompt="a woman", seed=3, steps=4).images
        assert np.abs(pixels(alone) - pixels(picture)).max() <= 1
    assert not drawer.adapter.denoiser._forward_pre_hooks


def test_the_same_seed_gives_the_same_picture(drawer: SteeredGenerator) -> None:
    first, second, other = (
        drawer.generate([Steering()], prompt="cat", seed=seed, steps=2).images[0]
        for seed in (0, 0, 1)
    )
    assert np.array_equal(pixels(first), pixels(second))
    assert not np.array_equal(pixels(first), pixels(other))


@pytest.mark.parametrize("seeds", [[], [1], [1, 2, 3]])
def test_each_embedding_needs_a_seed(drawer: SteeredGenerator, seeds: list[int]) -> None:
    with pytest.raises(UserError, match=f"{len(seeds)} seeds for 2 embeddings"):
        drawer.draw(torch.ones(2, 128), seeds)


@pytest.mark.parametrize(
    ("steerings", "given", "message"),
    [
        (Steering(), {}, "give a list, one for each picture"),
        ([], {}, "give a list"),
        ([Steering()], {"steps": 0}, "steps 0: must be a whole number, 1 or more"),
        ([Steering()], {"steps": "4"}, "steps '4'"),
        ([Steering()], {"guidance": float("nan")}, "guidance nan: must be a number, 0 or more"),
        ([Steering()], {"guidance": -1.0}, "guidance -1"),
        ([Steering()], {"guidance": "3"}, "guidance '3'"),
        ([Steering()], {"guidance": None}, "guidance None"),
        ([Steering()], {"steps": None}, "steps None"),
        ([Steering()], {"steps": True}, "steps True"),
        ([Steering()], {"seed": 1.5}, "seed 1.5: must be a whole number, from -9"),
        ([Steering()], {"seed": None}, "seed None: must be a whole number"),
        ([Steering()], {"seed": 2**70}, f"seed {2**70}: must be a whole number"),
        ([Steering()], {"prompt": None}, "prompt None: give one text"),
        ([Steering()], {"prompt": ["cat", "dog"]}, r"prompt .*: give one text"),
        ([Steering()], {"embedding": torch.ones(2, 128)}, r"embedding \[2, 128\]: give one"),
        ([Steering()], {"embedding": torch.ones(1, 7)}, r"embeddings \[1, 7\]: the FeatureSpace"),
        ([Steering()], {"embedding": "cat"}, "embeddings are a str"),
        ([Steering((Edit(400, 1e39),))], {}, "too large to be computed"),
    ],
)
def test_what_cannot_be_drawn_is_said(
    drawer: SteeredGenerator, steerings: Any, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        drawer.generate(steerings, **{"prompt": "cat", "steps": 1} | given)


def test_numbers_and_embeddings_of_numpy_are_taken(drawer: SteeredGenerator) -> None:
    embedding = drawer.embed("cat", seed=3)
    [expected] = drawer.generate([Steering(EDITS)], prompt="cat", seed=3, steps=2).images
    for given in (
        {"prompt": "cat", "seed": np.int64(3), "steps": np.int64(2)},
        {"embedding": embedding.numpy(), "seed": 3, "steps": 2},
        {"embedding": embedding.double().numpy(), "seed": torch.tensor(3), "steps": 2},
    ):
        [found] = drawer.generate([Steering(EDITS)], **given).images  # type: ignore[arg-type]
        assert np.abs(pixels(found) - pixels(expected)).max() <= 1


def test_a_reference_is_embedded_and_a_prompt_goes_beside_it(drawer: SteeredGenerator) -> None:
    photo = Image.new("RGB", (100, 80), "red")
    torch.testing.assert_close(drawer.embed(image=photo), drawer.embed("cat", photo))
    plain = drawer.generate([Steering()], image=photo, steps=2).images[0]
    beside = drawer.generate([Steering()], image=photo, prompt="cat", steps=2).images[0]
    assert not np.array_equal(pixels(plain), pixels(beside))


def test_a_strip_multiplies_strengths_and_alphas() -> None:
    steering = Steering((Edit(1, 2.0), Edit(2, mode="remove")), (Blend("CrossD", 0.5),), "cat")
    assert scaled(steering, 0.5).edits[0].strength == 1.0
    assert scaled(steering, 0.5).blends[0].alpha == 0.25
    assert scaled(steering, 0.5).edits[1] == Edit(2, mode="remove", share=0.5)
    assert scaled(steering, 0.0).edits == (Edit(1, 0.0), Edit(2, mode="remove", share=0.0))
    assert scaled(steering, np.float32(0.5)) == scaled(steering, 0.5)  # type: ignore[arg-type]
    for wrong in ("1", None, float("nan")):
        with pytest.raises(UserError, match=rf"strength .*{wrong}.*: must be a finite number"):
            scaled(steering, wrong)  # type: ignore[arg-type]
    assert scaled(steering, -1.0).edits == (Edit(1, -2.0), Edit(2, mode="remove", share=0.0))


def test_nothing_to_draw_and_the_wrong_space_are_refused(
    drawer: SteeredGenerator, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="nothing to draw"):
        drawer.generate([Steering()], prompt="  ")
    with pytest.raises(UserError, match="no prior"):
        SteeredGenerator(drawer.pipe, drawer.space).generate([Steering()], prompt="cat")
    with pytest.raises(UserError, match="another encoder"):
        SteeredGenerator.load(str(folder), "embedded", device="cpu")
    with pytest.raises(UserError, match="no Stable unCLIP pipeline"):
        SteeredGenerator.load(str(tmp_path), device="cpu")


def test_the_prior_is_the_regression_on_the_mean_of_a_drawings_images(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    texts = torch.randn(50, 3, 4, generator=generator)
    images = torch.randn(50, 3, 6, generator=generator)
    prior = fit_prior(texts, images, generator)
    means = images.mean(1, keepdim=True).expand_as(images).flatten(0, 1)
    least = LinearRegression().fit(texts.flatten(0, 1).numpy(), means.numpy())
    found = prior.mean(texts[:, 0])
    assert np.corrcoef(found.flatten(), least.predict(texts[:, 0].numpy()).flatten())[0, 1] > 0.99
    prior.save(tmp_path)
    again = Prior.load(tmp_path)
    torch.testing.assert_close(again.mean(texts[0]), prior.mean(texts[0]), atol=1e-2, rtol=1e-2)
    drawn = prior.sample(texts[0], torch.Generator().manual_seed(1)) - prior.mean(texts[0])
    rows = {tuple(row.tolist()) for row in prior.deviations}
    assert len(drawn) == 3
    for row in drawn:
        assert min(float((row - torch.tensor(other)).abs().max()) for other in rows) < 1e-5
    with pytest.raises(UserError, match="cannot be read as a prior"):
        Prior.load(tmp_path / "none")


def test_search_finds_by_number_word_and_class(drawer: SteeredGenerator) -> None:
    space: FeatureSpace = drawer.space
    [by_number] = search(space, "400")
    assert by_number.feature == 400 and by_number.images and "400" in by_number.title
    by_word = search(space, "woman")
    assert all("woman" in card.name for card in by_word)
    assert {card.modality_class for card in search(space, "woman", "ImgD")} == {"ImgD"}
    assert len(search(space, "", "TextD", limit=5)) == 5
    for nothing in ("9999", "9" * 400, "9" * 5000):
        with pytest.raises(UserError, match="no feature found"):
            search(space, nothing)
    assert search(space, "\N{SUPERSCRIPT TWO}")  # a word, as int() does not read it
    assert search(space, "0400")[0].feature == 400


def test_mms_steer_leaves_pictures_and_edits(folder: Path, tmp_path: Path, mms: Mms) -> None:
    options = ("--generator", folder, "--device", "cpu", "--steps", "2", "--prompt", "a man")
    edits = ("--wish", "more woman", "--edit", "292=remove", "--blend", "CrossD=0.2")
    edits += ("--begin", "0.1", "--end", "0.5", "--seed", "3", "--max-drift", "40")
    out = tmp_path / "out"
    code, said, _ = mms("steer", *options, *edits, "--towards", "a cat", "--out", out)
    assert code == 0 and "woman: feature" in said and "found by its name" in said
    for name in ("plain", "steered", "strip"):
        assert Image.open(out / f"{name}.png").size[1] == 64
    record = json.loads((out / "steered.json").read_text())
    assert 0 < record["drift_degrees"] <= 60.1
    again = tmp_path / "again"
    saved = ("--edits", out / "edits.json", "--device", "cpu")
    assert mms("steer", *saved, "--out", again)[0] == 0
    for name in ("plain", "steered", "strip"):
        drawn = (pixels(Image.open(place / f"{name}.png")) for place in (out, again))
        assert np.array_equal(*drawn)
    written = [json.loads((place / "edits.json").read_text()) for place in (out, again)]
    assert written[0] == written[1]
    assert (written[0]["begin"], written[0]["end"], written[0]["max_drift"]) == (0.1, 0.5, 40)
    other = tmp_path / "other"
    assert mms("steer", *saved, "--seed", "4", "--begin", "0", "--out", other)[0] == 0
    changed = json.loads((other / "edits.json").read_text())
    assert (changed["source"]["seed"], changed["begin"], changed["end"]) == (4, 0, 0.5)


def test_a_word_that_no_name_has_is_said_to_be_a_guess(
    folder: Path, tmp_path: Path, mms: Mms
) -> None:
    options = ("--generator", folder, "--device", "cpu", "--steps", "1", "--prompt", "a man")
    code, said, _ = mms("steer", *options, "--wish", "more zzzz", "--out", tmp_path / "out")
    assert code == 0 and "the nearest by its text, as no feature's name has the word" in said


def test_edits_of_a_reference_ask_for_it(folder: Path, tmp_path: Path, mms: Mms) -> None:
    options = ("--generator", folder, "--device", "cpu", "--steps", "2", "--edit", "292=1")
    for colour in ("red", "blue"):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{colour}.png")
    out = tmp_path / "out"
    assert mms("steer", *options, "--image", tmp_path / "red.png", "--out", out)[0] == 0
    saved = ("--edits", out / "edits.json", "--device", "cpu", "--out", tmp_path / "again")
    code, _, error = mms("steer", *saved)
    assert code == 2 and "was drawn from the reference red.png" in error
    code, _, error = mms("steer", *saved, "--image", tmp_path / "blue.png")
    assert code == 0 and "another picture than the edits were drawn from" in error
    code, _, error = mms("steer", *saved, "--image", tmp_path / "red.png")
    assert code == 0 and "another picture" not in error


def test_the_shipped_generator_draws_in_a_process_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mms_apps.cli", "steer", "--prompt", "cat", "--edit", "19=2"]
    options = ["--steps", "2", "--device", "cpu", "--out", str(tmp_path / "out")]
    done = subprocess.run([*command, *options], check=True, capture_output=True, text=True)
    assert "Expected types" not in done.stderr
    assert Image.open(tmp_path / "out" / "steered.png").size == (64, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "nothing to draw"),
        (("--prompt", "a", "--edit", "x=1"), "--edit x=1"),
        (("--prompt", "a", "--edit", "9999=1"), "features 0 to"),
        (("--prompt", "a", "--blend", "CrossD"), "--blend CrossD"),
        (("--prompt", "a", "--blend", "CrossD=1"), "give --towards"),
        (("--prompt", "a", "--image", "none.png"), "none.png"),
        (("--image", __file__), "--image"),
        (("--prompt", "a", "--edits", __file__), "cannot be read as saved edits"),
    ],
)
def test_mistakes_are_one_line(
    options: tuple[str, ...], message: str, folder: Path, tmp_path: Path, mms: Mms
) -> None:
    given = ("--generator", folder, "--device", "cpu", "--steps", "2", "--out", tmp_path / "out")
    code, _, error = mms("steer", *given, *options)
    assert code == 2
    assert message in error and "Traceback" not in error


def test_a_folder_that_cannot_be_made_is_said_before_anything_is_drawn(
    tmp_path: Path, mms: Mms
) -> None:
    (tmp_path / "taken").write_text("")
    options = ("--generator", "nowhere", "--prompt", "a red circle", "--out", tmp_path / "taken")
    code, _, error = mms("steer", *options)
    assert code == 2 and f"{tmp_path / 'taken'}: File exists" in error
