"""Class names and templates from files, and an encoder that has no FeatureSpace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from features.encoders.load import load_encoder
from features.errors import UserError
from mms_apps.robustness.class_names import (
    class_places,
    listed,
    read_class_names,
    read_templates,
)
from mms_apps.robustness.models import correct
from mms_apps.robustness.tasks import load_task
from tests.cli.conftest import one_error_line
from tests.pairs.reading import png

SYNSETS = ("n01440764", "n01443537", "n01484850")
NAMES = ("tench", "goldfish", "great white shark")
QUICK = (
    "--count", "6", "--attack", "noise", "--attack", "pgd", "--eps", "8/255", "--pgd-steps", "4",
    "--steps", "4", "--queries", "8", "--device", "cpu",
)  # fmt: skip


def write(path: Path, content) -> Path:
    text = json.dumps(content) if path.suffix == ".json" else "\n".join(content)
    path.write_text(text, encoding="utf-8")
    return path


def class_folders(folder: Path, names=SYNSETS) -> Path:
    """A folder of class folders, two images each, of a colour for each class."""
    for place, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(2):
            (folder / name / f"{number}.png").write_bytes(png((90 * place, 40 * number, 0)))
    return folder


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("names.txt", NAMES),
        ("names.json", NAMES),
        ("names.json", dict(zip(SYNSETS, NAMES, strict=True))),
        ("index.json", {str(i): [s, n.replace(" ", "_")]
                        for i, (s, n) in enumerate(zip(SYNSETS, NAMES, strict=True))}),
        ("words.txt", [f"{s} {n}, Latin name" for s, n in zip(SYNSETS, NAMES, strict=True)]),
    ],
)  # fmt: skip
def test_published_forms_are_read(tmp_path: Path, file: str, content) -> None:
    names = read_class_names(write(tmp_path / file, content))
    assert listed(names) == NAMES
    assert class_places(names, set(SYNSETS), "x") == {s: i for i, s in enumerate(SYNSETS)}


def test_names_go_by_themselves_by_number_or_by_order() -> None:
    assert class_places(NAMES, {"goldfish"}, "x") == {"goldfish": 1}
    assert class_places(NAMES, {"2", "0"}, "x") == {"2": 2, "0": 0}
    many = [str(number) for number in range(1, 12)]
    assert class_places([f"c{n}" for n in many], many, "x")["11"] == 10
    assert class_places(("b", "a"), {"y", "x"}, "x") == {"x": 0, "y": 1}
    twice = ("crane", "dog", "crane")
    assert listed(twice) == ("crane", "dog")
    assert class_places(twice, {"0", "1", "2"}, "x") == {"0": 0, "1": 1, "2": 0}
    assert class_places(twice, {"a", "b", "c"}, "x") == {"a": 0, "b": 1, "c": 0}
    assert class_places(twice, {"dog", "crane"}, "x") == {"dog": 1, "crane": 0}
    for names, values in ((NAMES, {"a", "b"}), ({"a": "A"}, {"a", "b"}), (NAMES, {"7"})):
        with pytest.raises(UserError, match="class names"):
            class_places(names, values, "x")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("t.txt", "a photo of {}\na drawing\n", "a drawing.*has no {}"),
        ("t.txt", "\n \n", "holds no list"),
        ("t.json", "[]", "holds no list"),
        ("t.json", '["a {}", 3]', "list of texts"),
        ("t.json", "{", "is no JSON"),
        ("t.json", '{"a": "{}"}', "give a list"),
        ("t.json", '"a {}"', "holds no list"),
    ],
)
def test_templates_that_are_none_are_refused(
    tmp_path: Path, file: str, content: str, message: str
) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=message):
        read_templates(tmp_path / file)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_class_names(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes("Aal\nBär".encode("latin-1"))
    assert read_class_names(tmp_path / "latin.txt") == ["Aal", "Bär"]
    (tmp_path / "japanese.txt").write_bytes("犬\n猫".encode("shift-jis"))
    with pytest.raises(UserError, match=r"japanese\.txt: byte .* UTF-8"):
        read_class_names(tmp_path / "japanese.txt")
    (tmp_path / "names.json").write_text('{"a": 3}')
    with pytest.raises(UserError, match="'a' has no name"):
        read_class_names(tmp_path / "names.json")
    (tmp_path / "windows.txt").write_bytes(b"\xef\xbb\xbfa {}\r\n\r\nb {c} {}\r\n")
    assert read_templates(tmp_path / "windows.txt") == ["a {}", "b {c} {}"]


def test_a_task_by_names(tmp_path: Path, clip_folder: Path) -> None:
    encoder = load_encoder(f"local-dir:{clip_folder}", "cpu")
    folder = str(class_folders(tmp_path / "images"))
    task = load_task(folder, encoder, label="label", templates=["a {c} {}"], class_names=NAMES)
    assert task.classes == NAMES and task.prompts[2] == ("a {c} great white shark",)
    assert sorted(task.labels.tolist()) == [0, 0, 1, 1, 2, 2]
    more = dict(zip(SYNSETS, NAMES, strict=True)) | {"n9": "unseen"}
    wider = load_task(folder, encoder, label="label", class_names=more)
    assert wider.classes == (*NAMES, "unseen") and wider.chance == 0.25
    assert correct(wider.classifier(encoder), wider.pixels, wider.labels).shape == (6,)
    for options in ({"classes": ["tench"]}, {"label": "retrieval"}):
        with pytest.raises(UserError, match="leave"):
            load_task(folder, encoder, **{"label": "label", "class_names": NAMES, **options})


@pytest.mark.parametrize("layout", ["folders", "table"])
def test_an_encoder_alone(mms, tmp_path: Path, clip_folder: Path, layout: str) -> None:
    pairs = class_folders(tmp_path / "images")
    if layout == "table":
        rows = [f"{path.relative_to(pairs)},{SYNSETS.index(path.parent.name)}"
                for path in sorted(pairs.rglob("*.png"))]  # fmt: skip
        pairs = write(pairs / "t.csv", ["image,label", *rows])
    names = write(tmp_path / "names.txt", NAMES)
    templates = write(tmp_path / "templates.json", ["a photo of a {}", "art of the {}"])
    out = tmp_path / "out"
    code, said, err = mms(
        "robustness", "--encoder", f"local-dir:{clip_folder}", "--pairs", pairs, "--class-names",
        names, "--templates", templates, "--defence", "squeeze:3", "--out", out, *QUICK,
    )  # fmt: skip
    assert code in (0, 1), err
    record = json.loads((out / "robustness.json").read_text())
    assert record["classes"] == list(NAMES) and record["groups"] == []
    assert record["surrogate"] is None and "transfer" not in record["accuracy"]
    page = (out / "report.html").read_text()
    for text in (page, said.replace("\n", " ")):
        assert "Feature groups are left out" in text and "Transfer is left out" in text
    assert "Which features does the attack move" not in page
    assert record["defences"][0]["worst"]["value"] <= record["defences"][0]["clean"]["value"]
    code, _, err = mms(
        "robustness", "--encoder", f"local-dir:{clip_folder}", "--pairs", pairs, "--defence",
        "keep:CrossD", "--out", tmp_path / "other", *QUICK,
    )  # fmt: skip
    assert code == 2 and "give a FeatureSpace" in one_error_line(err)
