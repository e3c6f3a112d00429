"""`mms attributes correct`, its edits in `predict` and `audit`, and `mms drift --edit`."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from mms_apps.attributes.correction.checking import Advice
from tests.browser import CHROMIUM, assert_accessible, opened
from tests.cli.conftest import one_error_line
from tests.conftest import Mms, draw_imagefolder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pairs to fit on, to correct by, to hold out, and to watch; no two with the same picture."""
    work = tmp_path_factory.mktemp("pairs")
    counts = {"train": 120, "pairs": 160, "held": 60, "later": 60}
    return [
        with_columns(draw_imagefolder(work / name, count=count, seed=seed), seed)
        for seed, (name, count) in enumerate(counts.items(), start=11)
    ]


def with_columns(folder: Path, seed: int) -> Path:
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").open()]
    for number, row in enumerate(rows):
        with Image.open(folder / row["file_name"]) as image:
            image.putpixel((0, 0), (number, seed, 0, 255)[: len(image.getbands())])
            image.save(folder / row["file_name"])
        row |= {"place": ("x", "y")[number % 2], "only": "one"}
        row["size"] = ("small", "large", "huge")[number % 3] if number < 15 else None
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def accepting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every proposal is accepted: no feature of a random encoder deserves it."""
    module = "mms_apps.attributes.correction.correcting"
    monkeypatch.setattr(f"{module}.advise", lambda checks: Advice(True, "tried"))
    monkeypatch.setattr(f"{module}.propose", any_proposal)


def any_proposal(model, half, judged, group, groups, *, seed=0):  # type: ignore[no-untyped-def]
    """The removal of the group's feature, whatever it does."""
    from mms_apps.attributes.correction.proposing import corrected, grown

    found = grown(judged, group.feature, [], 1.0)
    return found, corrected(model, found)


SHAPE = ("--attribute", "shape", "--method", "linear_probe")


def test_accepted_edits_are_saved_used_watched_and_left_out(
    folders: list[Path], tmp_path: Path, attributes: Mms, mms: Mms, accepting: None,
    space_folder: Path, clip_folder: Path,
) -> None:  # fmt: skip
    train, pairs, held, later = folders
    given = ("--pairs", pairs, "--train", train, "--held-out", held, "--group", "place")
    code, out, err = attributes("correct", *SHAPE, *given, "--out", tmp_path / "c")
    assert code == 0, err
    assert re.search(r"\d+ of \d+ predictions on the half searched are wrong", out)
    record = json.loads((tmp_path / "c" / "correction.json").read_text())
    edits = [group["edit"] for group in record["groups"]]
    assert edits[0] == "edits/1" and f"accept -> {tmp_path / 'c' / 'edits' / '1'}" in out
    assert sum(group["size"] for group in record["groups"]) <= record["wrong"]
    for group in record["groups"]:
        assert set(group["checks"]) == {"the other half", "the held-out pairs"}
        assert len(group["ids"]) == group["size"] == sum(group["mistakes"].values())
    page = (tmp_path / "c" / "correction.html").read_text()
    assert page.startswith("<!doctype html>")
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert page.count('<section class="group"') == len(edits)
    assert page.count('class="layer"') == page.count('class="picture"') > 0
    assert "; the feature rests most on" in page and "layers-switch" in page
    with (tmp_path / "c" / "edits.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(edits) and {"mended", "broken", "p", "gain.low"} <= set(rows[0])

    if CHROMIUM is not None:
        for width in (375, 1280):
            with opened((tmp_path / "c" / "correction.html").as_uri(), width=width) as shown:
                shown.locator(".layers-switch").check()
                assert shown.evaluate("document.body.scrollWidth") <= width
                assert_accessible(shown)

    edit, model = tmp_path / "c" / "edits" / "1", ("--model", tmp_path / "c" / "model")
    config = json.loads((edit / "config.json").read_text())
    store = json.loads((tmp_path / "c" / "store" / "config.json").read_text())
    assert config["made_from"]["pairs_fingerprint"] == store["pairs_fingerprint"]
    assert config["made_from"]["held_out_fingerprint"]
    shape = ("--attribute", "shape", "--pairs", held, *model)
    answers = {}
    for name, more in {"edited": ("--edit", edit), "plain": ()}.items():
        run = ("predict", *shape, *more, "--explain", "2", "--out", tmp_path / name)
        assert attributes(*run)[0] == 0
        answers[name] = json.loads((tmp_path / name / "summary.json").read_text())["correct"]
    counts = record["groups"][0]["checks"]["the held-out pairs"]["counts"]
    assert answers["edited"] - answers["plain"] == counts["mended"] - counts["broken"]
    audited = ("audit", *shape, "--group", "place", "--edit", edit, "--out", tmp_path / "a")
    assert attributes(*audited)[0] == 0

    space = ("drift", space_folder, space_folder, "--encoder", f"local-dir:{clip_folder}")
    watch = (*space, "--edit", edit, "--device", "cpu", "--out", tmp_path / "d")
    code, out, err = mms(*watch, "--pairs", later)
    assert code in (0, 1), err
    (said,) = json.loads((tmp_path / "d" / "drift.json").read_text())["edits"]
    assert (
        said["then"]["mended"]
        == record["groups"][0]["checks"]["the other half"]["counts"]["mended"]
    )
    assert code == (0 if said["verdict"] in ("holds", "open") else 1)
    assert "accuracy gained, now less then" in out
    code, _, err = mms(*watch)
    assert code == 2 and "--edit: needs --pairs" in one_error_line(err)

    attributes("correct", *SHAPE, *given[:4], "--seed", "1", "--out", tmp_path / "c")
    again = json.loads((tmp_path / "c" / "correction.json").read_text())
    left = sorted(path.name for path in (tmp_path / "c" / "edits").iterdir())
    assert left == sorted(group["edit"].removeprefix("edits/") for group in again["groups"])


def test_an_edit_for_another_model_space_or_of_other_files_is_refused(
    folders: list[Path], tmp_path: Path, attributes: Mms, mms: Mms, accepting: None
) -> None:
    train, pairs, held, _ = folders
    made = ("correct", *SHAPE, "--pairs", pairs, "--train", train, "--out", tmp_path / "c")
    assert attributes(*made)[0] == 0
    edit, out = tmp_path / "c" / "edits" / "1", ("--out", tmp_path / "p")
    other = ("--attribute", "colour", "--method", "linear_probe", "--train", train)
    code, _, err = attributes("predict", *other, "--pairs", held, "--edit", edit, *out)
    assert code == 2 and "made for another model" in one_error_line(err)
    elsewhere = ("--attribute", "gender", "--method", "zero_shot", "--value", "man", "--value")
    embedded = (*elsewhere, "woman", "--pairs", "embedded:heldout", "--device", "cpu")
    code, _, err = mms("attributes", "predict", *embedded, "--edit", edit, *out)
    assert code == 2 and "another dictionary" in one_error_line(err)
    code, _, err = mms("drift", "embedded", "embedded", "--edit", edit, "--pairs",
                       "embedded:heldout", "--device", "cpu", *out)  # fmt: skip
    assert code == 2 and "another dictionary" in one_error_line(err)
    model = ("--model", tmp_path / "c" / "model", "--attribute", "shape", "--pairs", held)
    for folder, expected in ((tmp_path / "none", "no edit here"), (train, "no edit here")):
        code, _, err = attributes("predict", *model, "--edit", folder, *out)
        assert code == 2 and expected in one_error_line(err)
    broken = shutil.copytree(edit, tmp_path / "broken")
    (broken / "edit.safetensors").write_bytes(b"no tensors")
    code, _, err = attributes("predict", *model, "--edit", broken, *out)
    assert code == 2 and "damaged" in one_error_line(err)
    (broken / "config.json").write_text("{")
    code, _, err = attributes("predict", *model, "--edit", broken, *out)
    assert code == 2 and "damaged" in one_error_line(err)


def test_mistakes_are_one_line(folders: list[Path], tmp_path: Path, attributes: Mms) -> None:
    train, pairs, *_ = folders
    fit = ("--train", train)
    kinds = ("--attribute", "shape", "--value", "circle", "--value", "square")
    cases = (
        ((*SHAPE, *fit, "--pairs", train), r"0 pairs have one of the labels"),
        ((*SHAPE, *fit, "--pairs", pairs, "--group", "age"), "age: .*no such attribute"),
        (
            (*SHAPE, *fit, "--pairs", pairs, "--held-out", pairs),
            r"none of the 160 pairs is left, since they are among --pairs; .* as --held-out",
        ),
        ((*SHAPE, *fit, "--pairs", "nowhere"), "nowhere: no such file"),
        (("--attribute", "only", *fit, "--pairs", pairs), "only: 1 value to tell apart"),
        (("--attribute", "weight", *fit, "--pairs", pairs), "weight: .*no such attribute"),
        (("--attribute", "size", *fit, "--pairs", pairs), r"size: 15 pairs .*20 are needed"),
        ((*kinds, "--pairs", pairs), "needs --train"),
    )
    for number, (arguments, expected) in enumerate(cases):
        code, _, err = attributes("correct", *arguments, "--out", tmp_path / str(number))
        assert code == 2
        assert re.search(expected, one_error_line(err)), err


def test_predictions_from_texts_are_corrected_as_well(
    folders: list[Path], tmp_path: Path, attributes: Mms
) -> None:
    texts = ("--attribute", "colour", "--modality", "text", "--out", tmp_path / "c")
    code, out, err = attributes("correct", *texts, "--train", folders[0], "--pairs", folders[1])
    assert code == 0, err
    assert "predictions on the half searched are wrong" in out
    assert (tmp_path / "c" / "correction.html").read_text().startswith("<!doctype html>")
