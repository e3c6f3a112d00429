"""`mms attributes` as a user types it."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import one_error_line
from tests.conftest import Mms, draw_imagefolder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Pairs to fit on and to test on, without common ids; the test pairs have a group of one."""
    work = tmp_path_factory.mktemp("pairs")
    train = draw_imagefolder(work / "train", count=150, seed=1)
    test = draw_imagefolder(work / "test", count=60, seed=2)
    for folder, prefix in ((train, "a"), (test, "b")):
        lines = (folder / "metadata.jsonl").read_text().splitlines()
        rows = [json.loads(line) | {"id": f"{prefix}{n}"} for n, line in enumerate(lines)]
        for number, row in enumerate(rows):
            row["place"] = "alone" if prefix == "b" and number == 1 else ("x", "y")[number % 2]
            row["only"] = "one"
            row["size"] = "small" if number % 8 == 0 else "large"
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return train, test


def assert_needs_no_network(page: Path) -> None:
    text = page.read_text()
    assert text.strip().startswith("<!doctype html>")
    assert not re.search(r"(src|href)=\"(?!data:)", text)


def test_predict_audit_and_edit(
    folders: tuple[Path, Path], tmp_path: Path, attributes: Mms
) -> None:
    train, test = folders
    shape = ("--attribute", "shape", "--pairs", test)
    code, out, _ = attributes("predict", *shape, "--train", train, "--out", tmp_path / "p")
    assert code == 0
    assert "60 predictions" in out
    with (tmp_path / "p" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60
    assert {"id", "label", "prediction", "p_circle", "p_line", "p_square"} == set(rows[0])
    summary = json.loads((tmp_path / "p" / "summary.json").read_text())
    assert summary["pairs"] == 60
    assert summary["labelled"] == 45
    assert_needs_no_network(tmp_path / "p" / "predictions.html")
    page = (tmp_path / "p" / "predictions.html").read_text()
    assert "say nothing about who a person is" in page
    assert page.count('class="layer"') == page.count("; the prediction rests most on") == 12
    assert page.count('class="layers-switch"') == 1

    saved = ("--model", tmp_path / "p" / "model")
    code, out, err = attributes(
        "audit", *shape, *saved, "--group", "place", "--out", tmp_path / "a"
    )
    assert code == 0
    assert "without --train it is not known which pairs the model was fitted on" in err
    said = " ".join(out.split())
    assert "worst group n/a; gap n/a" in said and "smallest group alone (1 sample)" in said
    assert "fewer than two groups have 30 samples" in said
    record = json.loads((tmp_path / "a" / "audit.json").read_text())
    assert record["measures"]["smallest_group"] == "alone"
    assert {g["group"] for g in record["measures"]["groups"]} == {"alone", "x", "y"}
    assert "NaN" not in (tmp_path / "a" / "audit.json").read_text()
    with (tmp_path / "a" / "groups.csv").open() as file:
        assert "accuracy.low" in next(csv.reader(file))
    assert_needs_no_network(tmp_path / "a" / "audit.html")


def test_an_audit_by_several_attributes_tests_differences_and_marks_small_groups(
    folders: tuple[Path, Path], tmp_path: Path, attributes: Mms
) -> None:
    train, test = folders
    fit = ("--train", test, "--pairs", train, "--method", "linear_probe", "--attribute", "colour")
    groups = ("--group", "place", "--group", "size")
    code, out, err = attributes("audit", *fit, *groups, "--out", tmp_path / "a")
    assert code == 0, err
    line = out.replace("\n", " ")
    assert re.search(r"gap [\d.]+% \(by chance [\d.]+%, p = [\d.]+\)", line)
    record = json.loads((tmp_path / "a" / "audit.json").read_text())
    assert record["group"] == "place x size"
    measures = record["measures"]
    rows = {row["group"]: row for row in measures["groups"]}
    counted = {name: row["counted"] for name, row in rows.items()}
    assert counted == {"x, large": True, "x, small": False, "y, large": True}
    for row in rows.values():
        assert row["counted"] == (row["samples"] >= 30)
    assert rows[measures["worst_group"]]["counted"]
    for name in ("gap", "parity_difference", "tpr_difference", "fpr_difference"):
        assert 0 < measures[name]["p"] <= 1
        assert measures[name]["chance"] >= 0
        assert measures[name]["low"] >= 0
    page = (tmp_path / "a" / "audit.html").read_text()
    small = next(row for row in rows.values() if not row["counted"])
    assert f"(only {small['samples']})" in page
    assert page.count("<br>by chance") == 4


def test_debias_leaves_an_edit_that_predict_takes(
    folders: tuple[Path, Path], tmp_path: Path, attributes: Mms
) -> None:
    train, test = folders
    names = ("--attribute", "shape", "--value", "circle", "--value", "square")
    factor = ("--factor", "place", "--factor-value", "x", "--factor-value", "y")
    unrelated = ("--unrelated", "colour", "--out", tmp_path / "d")
    code, out, _ = attributes(
        "debias", "--train", train, "--pairs", test, *names, *factor, *unrelated
    )
    assert code == 0
    methods = ["none", "features", "mean_difference", "debias_vl", "leace"]
    methods += ["reweighting", "last_layer", "random"]
    assert re.findall(r"(\w+): accuracy", out) == methods
    assert len(re.findall(r"by chance [\d.]+%, p = [\d.]+", out.replace("\n", " "))) == len(methods)
    record = json.loads((tmp_path / "d" / "debias.json").read_text())
    page = (tmp_path / "d" / "debias.html").read_text()
    for row in record["methods"]:
        assert 0 < row["gap"]["p"] <= 1
        assert f"{row['worst_group_name']} (only {row['worst_group_samples']})" in page
        assert row["worst_group"]["low"] <= row["worst_group"]["value"]
    assert "was chosen by one rule on one validation split" in page
    assert "LEACE" in page
    assert [row["method"] for row in record["methods"]][:2] == ["none", "features"]
    assert_needs_no_network(tmp_path / "d" / "debias.html")
    edited = ("--model", tmp_path / "d" / "model", "--edit", tmp_path / "d" / "edit")
    shape = ("--attribute", "shape", "--pairs", test)
    assert attributes("predict", *shape, *edited, "--out", tmp_path / "p", "--explain", "1")[0] == 0
    assert (tmp_path / "p" / "predictions.html").read_text().count('class="layer"') == 1


def test_texts_and_zero_shot_prompts(
    folders: tuple[Path, Path], tmp_path: Path, attributes: Mms
) -> None:
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps({"circle": ["a circle"], "square": ["a square", "a drawing"]}))
    common = ("--pairs", folders[1], "--attribute", "shape", "--method", "zero_shot")
    options = ("--prompts", prompts, "--modality", "text", "--explain", "2")
    assert attributes("predict", *common, *options, "--out", tmp_path / "out")[0] == 0
    config = json.loads((tmp_path / "out" / "model" / "config.json").read_text())
    assert config["prompts"]["square"] == ["a square", "a drawing"]
    assert config["modality"] == "text"
    page = (tmp_path / "out" / "predictions.html").read_text()
    assert page.count('class="marked"') == page.count("The prediction rests most on") == 2
    assert "<mark class=" in page and 'class="layer"' not in page
    prompts.write_text('{"circle": "a circle", "square": []}')
    code, _, err = attributes("predict", *common, *options, "--out", tmp_path / "again")
    assert code == 2
    assert "not prompts by value" in one_error_line(err)


def test_mistakes_are_one_line(folders: tuple[Path, Path], tmp_path: Path, attributes: Mms) -> None:
    train, test = folders
    out = ("--out", tmp_path / "out")
    fit = ("--method", "linear_probe", "--pairs", test, "--train", train, *out)
    for command, arguments, expected in (
        ("audit", ("--attribute", "shape", "--group", "age", *fit), "age: .*no such attribute"),
        ("audit", ("--attribute", "shape", "--group", "only", *fit), "only: 1 group"),
        (
            "audit",
            ("--attribute", "shape", "--group", "shape", *fit),
            "shape: is what is predicted",
        ),
        (
            "debias",
            ("--attribute", "shape", "--factor", "shape", "--unrelated", "only", *fit),
            "factor shape: is what is predicted",
        ),
        ("predict", ("--attribute", "only", *fit), "only: 1 value to tell apart"),
        ("predict", ("--attribute", "weight", *fit), "weight: .*no such attribute"),
        ("predict", ("--attribute", "shape", "--pairs", test, *out), "needs --train"),
        ("predict", ("--attribute", "shape", *fit, "--method", "tree"), "tree: unknown"),
        ("predict", ("--attribute", "shape", "--modality", "sound", *fit), "sound: unknown"),
        ("predict", ("--attribute", "shape", "--model", test, "--pairs", test, *out), "no attrib"),
    ):
        code, _, err = attributes(command, *arguments)
        assert code == 2
        assert re.search(expected, one_error_line(err)), err


def test_an_unknown_attribute_is_said_before_anything_is_encoded(
    folders: tuple[Path, Path], tmp_path: Path, attributes: Mms
) -> None:
    train, test = folders
    common = ("--attribute", "shape", "--train", train, "--pairs", test)
    for command, options, store in (
        ("predict", ("--attribute", "weight"), "train-store"),
        ("debias", ("--factor", "weight", "--unrelated", "colour"), "train-store"),
        ("audit", ("--group", "weight"), "store"),
        ("correct", ("--group", "weight"), "store"),
    ):
        out = tmp_path / command
        code, _, err = attributes(command, *common, *options, "--out", out)
        assert code == 2
        assert re.search("weight: .*no such attribute; they have .*shape", one_error_line(err)), err
        assert not (out / store).exists(), command


def test_an_image_that_cannot_be_read_is_skipped_and_counted(
    folders: tuple[Path, Path], tmp_path: Path, attributes: Mms
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folders[1], broken)
    (broken / "images" / "0003.png").write_bytes(b"not an image")
    options = ("--pairs", broken, "--attribute", "shape", "--method", "zero_shot")
    code, out, err = attributes("predict", *options, "--out", tmp_path / "out", "--explain", "3")
    assert code == 0
    assert "59 predictions" in out
    assert "1 pairs skipped" in err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert sum(summary["skipped"].values()) == 1


def test_fitted_pairs_are_left_out_of_an_audit(
    folders: tuple[Path, Path], tmp_path: Path, attributes: Mms
) -> None:
    both = ("--pairs", folders[0], "--train", folders[0], "--method", "linear_probe")
    audited = ("--attribute", "colour", "--group", "place", "--out", tmp_path / "out")
    code, _, err = attributes("audit", *both, *audited)
    assert code == 2
    assert "none of the 150 pairs is left, since the model was fitted on" in one_error_line(err)


def test_predictions_of_fitted_pairs_are_said_to_be(
    folders: tuple[Path, Path], tmp_path: Path, attributes: Mms
) -> None:
    train, test = folders
    fit = ("--attribute", "colour", "--train", train, "--method", "linear_probe")
    counts = []
    for pairs in (train, test):
        out = tmp_path / pairs.name
        code, said, _ = attributes("predict", *fit, "--pairs", pairs, "--out", out)
        counts.append(json.loads((out / "summary.json").read_text())["fitted_on"])
        assert code == 0 and f"fitted on {counts[-1]} of them" in said
        assert f"the model was fitted on {counts[-1]}." in (out / "predictions.html").read_text()
    assert counts[0] == 150 and 0 < counts[1] < 60  # a few drawings are in both
    saved = ("--attribute", "colour", "--model", out, "--pairs", test, "--out", tmp_path / "again")
    code, _, err = attributes("predict", *saved)
    assert code == 2 and f"give {out / 'model'}" in one_error_line(err)


def test_labels_that_are_numbers(
    folders: tuple[Path, Path], tmp_path: Path, attributes: Mms
) -> None:
    """Whole numbers become floats where one is missing; what was measured makes no classes."""
    tables = []
    for folder, form in zip(folders, ("{}", "{}.0"), strict=True):
        rows = [json.loads(line) for line in (folder / "metadata.jsonl").open()]
        lines = [
            f"{row['file_name']},{form.format(number % 2)},{number % 120 * 0.37:.2f}"
            for number, row in enumerate(rows)
        ]
        tables.append(folder / "numbers.csv")
        tables[-1].write_text("\n".join(["image,smiling,weight", *lines]))
    train, test = tables
    fit = ("--train", train, "--pairs", test, "--method", "linear_probe")
    values = ("--value", "1.0", "--value", "0")
    code, out, _ = attributes(
        "predict", "--attribute", "smiling", *fit, *values, "--out", tmp_path / "a"
    )
    assert code == 0 and "of 60 labelled pairs are right" in out
    code, _, err = attributes("predict", "--attribute", "weight", *fit, "--out", tmp_path / "b")
    assert code == 2 and "120 values, most of them in fewer than 2 samples" in one_error_line(err)


def renamed(folder: Path, start: int) -> Path:
    """The pairs from `start` on under the file names of the first ones."""
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").open()]
    for number, row in enumerate(rows[start:]):
        old, row["file_name"] = row["file_name"], f"images/x{number:04d}.png"
        (folder / old).rename(folder / row["file_name"])
    lines = [json.dumps(row) + "\n" for row in rows[start:]]
    (folder / "metadata.jsonl").write_text("".join(lines))
    return folder


def with_places(folder: Path) -> Path:
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").open()]
    rows = [row | {"place": ("x", "y")[number % 2]} for number, row in enumerate(rows)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_pairs_are_told_apart_by_what_they_hold(tmp_path: Path, attributes: Mms) -> None:
    train = with_places(draw_imagefolder(tmp_path / "train", count=120, seed=1))
    other = with_places(draw_imagefolder(tmp_path / "test", count=80, seed=2))  # the same names
    for number, line in enumerate((other / "metadata.jsonl").open()):  # another picture each
        path = other / json.loads(line)["file_name"]
        Image.open(path).convert("RGB").resize((33, 33 + number)).save(path)
    fit = ("--train", train, "--method", "linear_probe", "--attribute", "colour")
    factors = ("--factor", "place", "--unrelated", "shape")
    code, _, err = attributes(
        "audit", "--pairs", other, *fit, "--group", "place", "--out", tmp_path / "a"
    )
    assert code == 0, err
    assert "left out" not in err
    code, _, err = attributes("debias", "--pairs", other, *fit, *factors, "--out", tmp_path / "d")
    assert code == 0 and "left out" not in err, err
    shutil.copytree(train, tmp_path / "again")
    again = renamed(tmp_path / "again", start=50)  # 70 of the training pairs
    code, _, err = attributes(
        "audit", "--pairs", again, *fit, "--group", "place", "--out", tmp_path / "b"
    )
    assert code == 2 and "none of the 70 pairs is left" in one_error_line(err)
    code, _, err = attributes("debias", "--pairs", again, *fit, *factors, "--out", tmp_path / "e")
    assert code == 2 and "none of the 70 pairs is left" in one_error_line(err)
