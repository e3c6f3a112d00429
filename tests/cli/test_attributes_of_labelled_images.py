"""`mms attributes` on tables of labelled images without captions, as FairFace's are."""

from __future__ import annotations

import csv
import json
import random
import re
from pathlib import Path

import pytest
from PIL import Image

from features.space.space import FeatureSpace
from mms_apps.attributes.workbench import Workbench
from tests.cli.conftest import one_error_line
from tests.conftest import Mms

SHADES = {"Female": (200, 60, 60), "Male": (60, 60, 200)}
RACES = ("Black", "East Asian", "Indian")
TEST_IMAGES = 150


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FairFace's layout: train/1.jpg ... and val/1.jpg ..., each part with a table beside it. One
    shade stands for each gender."""
    work = tmp_path_factory.mktemp("faces")
    for part, count, seed in (("train", 120, 1), ("val", TEST_IMAGES, 2)):
        (work / part).mkdir()
        draw = random.Random(seed)
        with (work / f"fairface_label_{part}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "age", "gender", "race", "service_test"])
            for number in range(1, count + 1):
                name, gender = f"{part}/{number}.jpg", draw.choice(list(SHADES))
                shade = tuple(value + draw.randrange(-40, 40) for value in SHADES[gender])
                Image.new("RGB", (48, 40), shade).save(work / name)
                service = str(draw.random() < 0.5)
                writer.writerow([name, "20-29", gender, draw.choice(RACES), service])
    return work


def pairs(faces: Path) -> tuple[str | Path, ...]:
    train, val = (faces / f"fairface_label_{part}.csv" for part in ("train", "val"))
    return ("--train", train, "--pairs", val)


def test_predict_audit_and_debias_need_no_captions(
    faces: Path, tmp_path: Path, attributes: Mms
) -> None:
    gender = (*pairs(faces), "--attribute", "gender", "--method", "linear_probe")
    code, out, err = attributes("predict", *gender, "--out", tmp_path / "p", "--explain", "2")
    assert code == 0, err
    assert f"{TEST_IMAGES} predictions" in out
    with (tmp_path / "p" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["label"] for row in rows} == {"Male", "Female"}
    assert sum(row["label"] == row["prediction"] for row in rows) > 0.9 * TEST_IMAGES
    saved = json.loads((tmp_path / "p" / "store" / "config.json").read_text())
    assert saved["uncaptioned"] == TEST_IMAGES
    page = (tmp_path / "p" / "predictions.html").read_text()
    assert page.count('<div class="head"><span class="stack"><img class="picture"') == 2
    assert 'alt=";' not in page
    assert "None" not in re.sub(r"base64,[^\"]*", "", page)

    groups = ("--group", "race", "--group", "service_test")
    code, _, err = attributes("audit", *gender, *groups, "--out", tmp_path / "a")
    assert code == 0, err
    assert "left out" not in err  # train/1.jpg and val/1.jpg are two pictures
    measures = json.loads((tmp_path / "a" / "audit.json").read_text())["measures"]
    assert measures["samples"] == TEST_IMAGES
    assert {row["group"] for row in measures["groups"]} == {
        f"{race}, {service}" for race in RACES for service in (True, False)
    }

    factor = ("--factor", "service_test", "--unrelated", "race", "--out", tmp_path / "d")
    code, out, err = attributes("debias", *gender, *factor)
    assert code == 0, err
    assert "leace: accuracy" in out


def test_texts_need_captions(faces: Path, tmp_path: Path, attributes: Mms) -> None:
    gender = (*pairs(faces), "--attribute", "gender", "--modality", "text")
    code, _, err = attributes("predict", *gender, "--out", tmp_path / "p")
    assert code == 2
    assert "caption" in one_error_line(err)


def test_columns_can_be_named(faces: Path, tmp_path: Path, attributes: Mms) -> None:
    table = tmp_path / "renamed.csv"
    text = (faces / "fairface_label_val.csv").read_text()
    table.write_text(
        text.replace("file,age", "portrait,age").replace("val/", f"{faces.as_posix()}/val/")
    )
    gender = ("--attribute", "gender", "--method", "zero_shot", "--pairs", table)
    code, _, err = attributes("predict", *gender, "--out", tmp_path / "none")
    assert code == 2
    assert "portrait" in one_error_line(err)
    named = ("--image-column", "portrait", "--explain", "0")
    code, out, err = attributes("predict", *gender, *named, "--out", tmp_path / "p")
    assert code == 0, err
    assert f"{TEST_IMAGES} predictions" in out
    texts = ("--modality", "text", "--caption-column", "race")
    code, out, err = attributes("predict", *gender, *named, *texts, "--out", tmp_path / "t")
    assert code == 0, err
    assert f"{TEST_IMAGES} predictions" in out


def test_the_workbench_shows_images_without_captions(
    faces: Path, tmp_path: Path, space_folder: Path, clip_folder: Path
) -> None:
    space = FeatureSpace.load(space_folder, device="cpu", encoder=f"local-dir:{clip_folder}")
    train, val = (str(faces / f"fairface_label_{part}.csv") for part in ("train", "val"))
    workbench = Workbench(space, train, val, ["gender"], ["race", "service_test"], tmp_path)
    assert {picture.caption for picture in workbench.pictures} == {""}
    answer = workbench.answer(workbench.pictures[0].image, "gender", "linear_probe", [])
    assert sum(answer.before.values()) == pytest.approx(1)
    assert list(workbench.groupings) == ["race", "service_test", "race x service_test"]
    found = workbench.audit("gender", "linear_probe", "race x service_test")
    assert found.group == "race x service_test"
    assert found.measures.samples == TEST_IMAGES
