"""Tables as people's programs write them: any delimiter, encoding and quoting, or a reason."""

from __future__ import annotations

import base64
import bz2
import csv
import gzip
import json
import lzma
import multiprocessing
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.errors import UserError
from features.pairs.open import open_pairs
from tests.pairs.reading import captions, pairs, png, reasons, records


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "abcdefgh":
        (tmp_path / f"{name}.png").write_bytes(png())
    return tmp_path


def table(folder: Path, text: str | bytes, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def listed(folder: Path, ending: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A table of pictures and captions: .csv, .jsonl or .parquet."""
    path = folder / f"t.{ending}"
    if ending == "csv":
        path.write_text("image,caption\n" + "".join(f"{r['image']},{r['caption']}\n" for r in rows))
    elif ending == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "T.CSV"])
def test_the_delimiter_is_found(folder: Path, delimiter: str, name: str) -> None:
    lines = ["image", "caption", "mood"], ["a.png", "a dog", "good"], ["b.png", '"x, y; z"', "bad"]
    path = table(folder, "\r\n".join(delimiter.join(line) for line in lines), name)
    found = pairs(path)
    assert [pair.captions for pair in found] == [("a dog",), ("x, y; z",)]
    assert [pair.attributes for pair in found] == [{"mood": "good"}, {"mood": "bad"}]


def test_excels_hint_names_the_delimiter(folder: Path) -> None:
    assert captions(table(folder, "sep=;\nImage;Caption\na.png;x, y\n")) == ["x, y"]


@pytest.mark.parametrize("first", ["", "image_id "])
@pytest.mark.parametrize("end", ["\n", " \r\n"])
def test_lists_as_celeba_has_them(folder: Path, first: str, end: str) -> None:
    lines = ["3", f"{first}Male Pale_Skin", "a.png -1  1", "b.png  1 -1", "gone.png 1 1"]
    path = table(folder, end.join(lines) + end, "list_attr_celeba.txt")
    source = open_pairs(str(path), captions_needed=False)
    assert [pair.attributes for pair in pairs(source)] == [
        {"Male": "-1", "Pale_Skin": "1"},
        {"Male": "1", "Pale_Skin": "-1"},
    ]
    assert reasons(source) == ["missing image file: gone.png"]


def test_a_list_with_a_row_too_long_says_so(folder: Path) -> None:
    path = table(folder, '2\nMale Old\na.png 1 -1\nb.png "1" -1 1\n', "list.txt")
    (reason,) = reasons(open_pairs(str(path), captions_needed=False))
    assert "4 fields where the header names 3" in reason


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252"]
)
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_the_encoding_is_told(folder: Path, encoding: str, name: str) -> None:
    texts = ["café au lait", "naïve façade", "plain"]
    if name == "t.csv":
        text = "image,caption\n" + "".join(f"a.png,{caption}\n" for caption in texts)
    else:
        rows = [{"image": "a.png", "caption": caption} for caption in texts]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    assert captions(table(folder, text.encode(encoding), name)) == texts


@pytest.mark.parametrize("end", [b"A", b"\x00", b"\x00\xd8", b"\xff"])
def test_utf_16_that_is_cut_off_is_read_to_there(folder: Path, end: bytes) -> None:
    text = "image,caption\na.png,café\nb.png,x".encode("utf-16")
    assert captions(table(folder, text + end))[0] == "café"


def test_a_copy_in_utf_8_outlives_whoever_read_it_first(folder: Path) -> None:
    source = open_pairs(str(table(folder, "image,caption\na.png,café\n".encode("utf-16"))))
    process = multiprocessing.get_context("fork").Process(target=pairs, args=(source,))
    process.start()
    process.join()
    assert captions(source) == ["café"]
    assert captions(pickle.loads(pickle.dumps(source))) == ["café"]


@pytest.mark.parametrize("encoding", ["shift-jis", "koi8-r", "gb18030", "cp1251"])
def test_an_encoding_that_cannot_be_told_is_refused(folder: Path, encoding: str) -> None:
    word = {"koi8-r": "собака", "cp1251": "собака"}.get(encoding, "犬と猫")
    path = table(folder, f"image,caption\na.png,x\nb.png,{word}\n".encode(encoding))
    with pytest.raises(UserError, match=r"t\.csv: byte 0x.. in line 3 is not UTF-8"):
        open_pairs(str(path))


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        *(("mac-roman", text) for text in ("café", "un niño más", "fünf Bären", "voilà")),
        *(("cp437", text) for text in ("café", "un señor")),
        *(("cp850", text) for text in ("niño", "Bären")),
        *(("cp1250", text) for text in ("złoty kot", "też pies", "mała książka")),
        ("iso8859-2", "złoty kot"),
        ("mac-latin2", "złoty kot"),
    ],
)
def test_signs_amidst_words_are_no_windows_1252(folder: Path, encoding: str, text: str) -> None:
    path = table(folder, f"image,caption\na.png,{text}\n".encode(encoding))
    with pytest.raises(UserError, match="the encoding cannot be told"):
        open_pairs(str(path))


@pytest.mark.parametrize(
    "text",
    [
        "it\u2019s 5 m\xb2 or 10 \u20ac \u201cso\u201d",
        "schön \u2013 ÄRGER",
        "n° 1ª l·l½",
        "a®b\u2122 don\xb4t x…y Œuvre",
        "¿qué?",
        "Šaroška",
    ],
)
def test_signs_of_windows_1252_are_kept(folder: Path, text: str) -> None:
    path = table(folder, f"image,caption\na.png,x {text}\n".encode("cp1252"))
    assert captions(path) == [f"x {text}"]


def test_one_line_in_another_encoding_is_skipped(folder: Path) -> None:
    lines = [f"a.png,été {i}".encode() for i in range(5)] + ["b.png,café".encode("latin-1")]
    path = table(folder, b"image,caption\n" + b"\n".join(lines))
    assert len(captions(path)) == 5
    assert reasons(path) == ["unreadable metadata row: line 7 is not utf-8"]


STRAY = [
    'a.png{d}"quiet\nb.png{d}loud\nc.png{d}soft\n',
    'a.png{d}"quiet\nb.png{d}end"\nc.png{d}soft\n',
    'a.png{d}"quiet\nb.png{d}say "hi"\nc.png{d}soft\n',
    'a.png{d}x\nb.png{d}"quiet" he said\nc.png{d}soft\n',
    'a.png{d}5" tall\nb.png{d}6" tall\nc.png{d}soft\n',
]


@pytest.mark.parametrize("delimiter", [",", "\t"])
@pytest.mark.parametrize("rows", STRAY)
def test_a_stray_quote_swallows_no_row(folder: Path, rows: str, delimiter: str) -> None:
    path = table(folder, f"image{delimiter}caption\n" + rows.format(d=delimiter))
    found = records(path)
    assert len(found) == 3
    assert captions(path)[-1] == "soft"


def test_quotes_as_they_are_meant(folder: Path) -> None:
    text = (
        "image,caption,mood\n"
        'a.png,"first line\nsecond, line",x\n'
        'b.png,"say ""hi"", then go",x\n'
        'c.png, "after a blank, quoted",x\n'
        r'd.png,"escaped \"so\", too",x'
        "\n"
        '"e.png","all","x"\n'
    )
    assert captions(table(folder, text)) == [
        "first line\nsecond, line",
        'say "hi", then go',
        "after a blank, quoted",
        'escaped "so", too',
        "all",
    ]


def test_carriage_returns_anywhere(folder: Path) -> None:
    assert captions(table(folder, "image,caption\r\na.png,a\rb\r\nb.png,c\r\n")) == ["a b", "c"]
    assert captions(table(folder, "image,caption\ra.png,x\rb.png,y\r")) == ["x", "y"]


def test_rows_of_another_length(folder: Path) -> None:
    path = table(folder, "image,caption\na.png,a dog, running\nb.png\nc.png,fine\nd.png,x,,\n")
    assert captions(path) == ["fine", "x"]
    wide, short = reasons(path)
    assert "3 fields where the header names 2" in wide and "double quotes" in wide
    assert short == "missing caption"


def test_a_place_that_a_person_finds(folder: Path) -> None:
    path = table(folder, "image,caption\n\n\na.png,x\n,y\n")
    (skipped,) = [r for r in records(path) if r.id != "a.png"]
    assert skipped.location == "t.csv:5"


@pytest.mark.parametrize(
    "line",
    [
        '{"image": "a.png", "caption": "\\ud800"}',
        '{"image": "a.png", "caption": "x", "mood": "\\udfff"}',
        '{"image": "\\udcff.png", "caption": "x"}',
        '{"image": "a\\u0000.png", "caption": "x"}',
        '{"image": "a.png", "caption": ' + "[" * 100_000,
        '{"image": "a.png", "caption": ' + "9" * 10_000 + "}",
        '{"image": ["a.png"], "caption": "x"}',
        '{"image": "a.png", "caption": {"en": "x"}}',
        '"text"',
        "NaN",
    ],
)
def test_one_bad_record_is_one_skipped(folder: Path, line: str) -> None:
    path = table(folder, f'{line}\n{{"image": "b.png", "caption": "good"}}\n', "t.jsonl")
    assert captions(path)[-1] == "good"
    for record in records(path):
        json.dumps([record.id, record.location]).encode()
        str(record.id).encode("utf-8")


def test_values_of_any_type(folder: Path) -> None:
    rows = [
        {"image": "a.png", "caption": 1984, "n": 3, "x": 2.5, "whole": 4.0, "yes": True},
        {"image": "b.png", "captions": ["p", " ", None, 7], "n": None, "l": ["u", 2, False]},
        {"image": {"path": "c.png"}, "text": "t", "attributes": {"inner": 1}, "d": {"x": 1}},
    ]
    path = table(folder, "\n".join(map(json.dumps, rows)), "t.jsonl")
    first, second, third = pairs(path)
    assert first.captions == ("1984",)
    assert first.attributes == {"n": "3", "x": "2.5", "whole": "4", "yes": "true"}
    assert second.captions == ("p", "7")
    assert second.attributes == {"n": None, "l": "u|2|false"}
    assert third.captions == ("t",)
    assert third.attributes == {"inner": "1"}


def test_columns_can_be_named(folder: Path) -> None:
    path = table(folder, "where,words,caption\na.png,mine,not this\n")
    with pytest.raises(UserError, match="no image column among where, words, caption"):
        open_pairs(str(path))
    source = open_pairs(str(path), image_column="where", caption_column="words")
    (pair,) = pairs(source)
    assert pair.captions == ("mine",) and pair.attributes == {"caption": "not this"}
    with pytest.raises(UserError, match="no column 'wrong' for the caption; there are where"):
        open_pairs(str(path), image_column="where", caption_column="wrong")


def test_captions_may_be_missing_where_images_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train/1.jpg").write_bytes(png())
    path = table(
        tmp_path, "file,age,gender,race,service_test\ntrain/1.jpg,50-59,Male,Indian,True\n"
    )
    with pytest.raises(UserError, match="no caption column"):
        open_pairs(str(path))
    (pair,) = pairs(open_pairs(str(path), captions_needed=False))
    assert pair.captions == () and pair.attributes["gender"] == "Male"
    assert pair.location == "train/1.jpg"


def test_names_of_other_systems(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/caf\u00e9.png").write_bytes(png())
    path = table(tmp_path, "image,caption\nimages\\cafe\u0301.png,x\nimages/cafe\u0301.png,y\n")
    assert captions(path) == ["y"]
    path = table(tmp_path, "image,caption\nimages\\caf\u00e9.png,x\n")
    assert captions(path) == ["x"]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", ["t.json", "t.jsonl"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_arrays_are_read_as_lines_are(
    folder: Path, indent: int | None, name: str, encoding: str
) -> None:
    rows = [
        {"image": "a.png", "caption": "caf\u00e9"},
        "no object",
        {"image": "b.png", "mood": "x"},
    ]
    text = json.dumps(rows, indent=indent, ensure_ascii=False)
    path = table(folder, text.encode(encoding), name)
    assert captions(path) == ["caf\u00e9"]
    assert reasons(path) == ["unreadable metadata row: not an object", "missing caption"]


@pytest.mark.parametrize("text", ['[{"image": "a.png"}', "[1, 2]", "[]", "5", '{"a"\n: 1}'])
def test_json_that_is_no_table_is_explained(folder: Path, text: str) -> None:
    with pytest.raises(
        UserError, match=r"t.json: .*(one JSON object a line|no records|no image column among a;)"
    ):
        open_pairs(str(table(folder, text, "t.json")))


@pytest.mark.parametrize(
    ("image", "caption"),
    [
        ("Image Name", "Caption Text"),
        ("img-path", "sentence"),
        ("image_name", " comment"),
        ("images", "prompt"),
        ("image_id", "caption"),
    ],
)
def test_less_usual_names_of_columns(folder: Path, image: str, caption: str) -> None:
    (pair,) = pairs(table(folder, f"{image},{caption}\na.png,x\n"))
    assert pair.captions == ("x",)


def test_less_usual_names_stand_back(folder: Path) -> None:
    (pair,) = pairs(table(folder, "image,caption,prompt,comment,png\na.png,x,y,z,u\n"))
    assert pair.captions == ("x",) and pair.attributes == {
        "prompt": "y",
        "comment": "z",
        "png": "u",
    }


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("a.png,a dog\nb.png,a cat\n", "seems to be a record"),
        ("a dog\thttp://x.org/a.jpg\n", "seems to be a record"),
        ("a.jpg#0\ta dog\na.jpg#1\tone dog\n", "seems to be a record"),
        ("2\nimage,Male\na.png,1\n", "the first line, 2, .* remove it"),
        ("image  Male\na.png 1\n", "parted by blanks"),
        ("URL,TEXT\nhttp://x.org/a.jpg,a dog\n", "img2dataset"),
    ],
)
def test_tables_without_a_column_say_why(folder: Path, text: str, advice: str) -> None:
    with pytest.raises(UserError, match=f"t.csv: no image column.*{advice}"):
        open_pairs(str(table(folder, text + "b.png,x\n")))


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("['a dog', 'a cat']", ("a dog", "a cat")),
        ('[""a dog"", ""a cat""]', ("a dog", "a cat")),
        ("[' ', 'it\\'s']", ("it's",)),
        ("[music]", ("[music]",)),
        ("['a' 'dog'", ("['a' 'dog'",)),
        ("['a', dog']", ("['a', dog']",)),
        ("['a dog' 'a cat']", ("a dog", "a cat")),
        ("['a dog'\n 'a cat']", ("a dog", "a cat")),
        ('[""it\'s a dog"" \'a cat\']', ("it's a dog", "a cat")),
        ("['a dog' None 'it\\'s']", ("a dog", "it's")),
        ("[['a dog' 'one dog']\n ['a cat' '']]", ("a dog", "one dog", "a cat")),
        ("('a dog', 'a cat')", ("a dog", "a cat")),
        ("{'z dog', 'a cat'}", ("z dog", "a cat")),
        ("[['a dog'], ['a cat']]", ("a dog", "a cat")),
        ("[{'raw': 'a dog', 'n': 3}, {'raw': 'a cat'}]", ("a dog", "a cat")),
        ("[{'raw': 'a dog', 'tokens': array(['a'], dtype=object)}\n {'raw': 'x'}]", ("a dog", "x")),
        ("[np.str_('a dog'), np.str_('a cat')]", ("a dog", "a cat")),
        ('[""a dog"", null]', ("a dog",)),
        ('{""text"": ""a dog"", ""lang"": ""en""}', ("a dog",)),
        ("b'caf\\xc3\\xa9'", ("café",)),
        ("['']", ()),
        ("[]", ()),
        ("[1, 2]", ("[1, 2]",)),
        ("('a dog')", ("('a dog')",)),
        ("(a dog)", ("(a dog)",)),
        ("('dog', 3)", ("('dog', 3)",)),
        ("{dog}", ("{dog}",)),
        ("{'en': 'a dog'}", ("{'en': 'a dog'}",)),
        ("'a dog' 'a cat'", ("'a dog' 'a cat'",)),
        ("(laughs) 'a dog'", ("(laughs) 'a dog'",)),
        ("('open(1)', open(1))", ("('open(1)', open(1))",)),
    ],
)
def test_lists_of_captions_written_out(folder: Path, cell: str, expected: tuple[str, ...]) -> None:
    path = table(folder, f'image,caption\na.png,"{cell}"\n')
    (pair,) = pairs(open_pairs(str(path), captions_needed=False))
    assert pair.captions == expected


def test_a_list_of_one_picture(folder: Path) -> None:
    rows = [{"images": ["a.png"], "text": "x"}, {"images": ["a.png", "b.png"], "text": "y"}]
    path = table(folder, "\n".join(map(json.dumps, rows)), "t.jsonl")
    assert captions(path) == ["x"]
    assert reasons(path) == ["missing image file: a list of 2, where one path or picture is needed"]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("table_in", "pictures_in"),
    [("", "images"), ("tables", ""), ("annotations", "val2017"), ("", "")],
)
def test_pictures_in_a_folder_nearby(
    tmp_path: Path, ending: str, table_in: str, pictures_in: str
) -> None:
    for place in (table_in, pictures_in):
        (tmp_path / "p" / place).mkdir(parents=True, exist_ok=True)
    (tmp_path / "p" / pictures_in / "a.png").write_bytes(png())
    rows = [{"image": "gone.png", "caption": "x"}, {"image": "a.png", "caption": "y"}]
    path = listed(tmp_path / "p" / table_in, ending, rows)
    source = open_pairs(str(path))
    (pair,) = pairs(source)
    assert [name for name, _ in source.images([pair.location])] == [pair.location]
    before = source.fingerprint()
    (tmp_path / "p" / pictures_in / "a.png").write_bytes(png("blue", size=9))
    assert ending == "parquet" or open_pairs(str(path)).fingerprint() != before


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("pictures_in", ["", "images/train", "data/images/train"])
@pytest.mark.parametrize("elsewhere", ["/home/ann/data/images/train", "D:\\data\\images\\train"])
def test_absolute_paths_of_another_computer(
    tmp_path: Path, ending: str, pictures_in: str, elsewhere: str
) -> None:
    (tmp_path / pictures_in).mkdir(parents=True, exist_ok=True)
    (tmp_path / pictures_in / "a.png").write_bytes(png())
    mark = "/" if elsewhere.startswith("/") else "\\"
    rows = [
        {"image": f"{elsewhere}{mark}{name}.png", "caption": name} for name in ("gone", "a", "a b")
    ]
    source = open_pairs(str(listed(tmp_path, ending, rows)))
    (pair,) = pairs(source)
    assert pair.captions == ("a",)
    assert [name for name, _ in source.images([pair.location])] == [pair.location]
    assert all(reason.startswith("missing image file: ") for reason in reasons(source))


def test_absolute_paths_that_only_their_folders_tell_apart_are_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png())
    path = table(tmp_path, "image,caption\n/x/train/1.png,a\n/x/val/1.png,b\n")
    assert pairs(path) == []


def files_at(folder: Path, *places: str) -> None:
    for place in places:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(png())


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("table_in", "name", "picture"),
    [
        ("celeba", "1.png", "celeba/img_align_celeba/img_align_celeba/1.png"),
        ("coco/annotations", "1.png", "coco/images/val2017/1.png"),
        ("data/annotations", "data/img/train/1.png", "data/img/train/1.png"),
        ("data", "data/img/train/1.png", "data/img/train/1.png"),
        ("a/b/c", "img/1.png", "img/1.png"),
        ("elsewhere/a", "work/img/1.png", "cwd/work/img/1.png"),
        ("elsewhere/a", "1.png", "cwd/1.png"),
        ("", "a.jpg", "A.JPG"),
        ("", "img/a b.Png", "IMG/A b.png"),
        ("", "Images\\A.png", "images/a.PNG"),
        ("t", "a", "images/A.JPG"),
    ],
)
def test_pictures_at_usual_places(
    tmp_path: Path,
    ending: str,
    table_in: str,
    name: str,
    picture: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for place in (table_in, "cwd", "others"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
    files_at(tmp_path, picture)
    monkeypatch.chdir(tmp_path / "cwd")
    source = open_pairs(str(listed(tmp_path / table_in, ending, [{"image": name, "caption": "x"}])))
    (pair,) = pairs(source)
    assert [location for location, _ in source.images([pair.location])] == [pair.location]


def test_one_name_in_two_cases_is_not_guessed(tmp_path: Path) -> None:
    files_at(tmp_path, "b.png", "A.png", "a.PNG")
    path = table(tmp_path, "image,caption\nb.png,x\nA.png,y\nA.PNG,z\n")
    assert captions(path) == ["x", "y"]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("table_in", "folders"),
    [
        ("", ("train", "val")),
        ("", ("part_1", "part_2")),
        ("", ("part_1/images", "part_2/images")),
        ("annotations", ("train2017", "val2017")),
        ("annotations", ("images/train", "images/val")),
    ],
)
@pytest.mark.parametrize("apart", [True, False])
def test_pictures_in_several_folders(
    tmp_path: Path, ending: str, table_in: str, folders: tuple[str, str], apart: bool
) -> None:
    tables = tmp_path / "p" / table_in
    tables.mkdir(parents=True)
    names = [f"{number}.png" for number in range(44)]
    for number, name in enumerate(names):
        files_at(tmp_path / "p", f"{folders[number // 22 if apart else number % 2]}/{name}")
    rows = [{"image": name, "caption": name} for name in names]
    assert captions(listed(tables, ending, rows)) == names


def test_pictures_that_lie_in_several_folders_are_not_guessed(tmp_path: Path) -> None:
    files_at(tmp_path, "train/a.png", "test/a.png", "train/b.png")
    path = table(tmp_path, "image,caption\na.png,x\nb.png,y\nc.png,z\n")
    assert captions(path) == ["y"]
    assert reasons(path) == [
        "ambiguous image file: a.png may be test/a.png or train/a.png; put its folder before its "
        "name",
        "missing image file: c.png; looked in test, train",
    ]
    source = open_pairs(str(path))
    assert [name for name, _ in source.images(["a.png", "b.png"])] == ["b.png"]


def test_the_folder_that_a_table_is_called_after_comes_first(tmp_path: Path) -> None:
    files_at(tmp_path, "train/a.png", "val2017/a.png")
    for name in ("train.csv", "captions_val2017.csv"):
        assert captions(table(tmp_path, "image,caption\na.png,x\n", name)) == ["x"]


def test_other_data_sets_pictures_are_not_taken(tmp_path: Path) -> None:
    files_at(tmp_path, "mine/img/0.png", "other/1.png", "other/old/1.png")
    (tmp_path / "mine/tables").mkdir()
    path = table(tmp_path / "mine/tables", "image,caption\n0.png,x\n1.png,y\n")
    assert captions(path) == ["x"]


def test_pictures_beside_a_linked_table(tmp_path: Path) -> None:
    for name in ("real", "links"):
        (tmp_path / name).mkdir()
    (tmp_path / "real" / "a.png").write_bytes(png())
    path = table(tmp_path / "real", "image,caption\na.png,x\n")
    (tmp_path / "links" / "t.csv").symlink_to(path)
    assert captions(tmp_path / "links" / "t.csv") == ["x"]


def test_pictures_in_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    (folder / "tables").mkdir()
    table(folder / "tables", "image,caption\n~/a.png,x\n")
    assert captions("~/tables/t.csv") == ["x"]


@pytest.mark.parametrize("ending", [".jpg", ".jpeg", ".png"])
def test_names_of_pictures_without_their_ending(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"ISIC_0.1{ending}").write_bytes(png())
    assert captions(table(tmp_path, "image,caption\nISIC_0.1,x\n")) == ["x"]


def test_a_table_called_txt_is_read_where_it_is_named(folder: Path) -> None:
    assert captions(table(folder, "image,caption\na.png,x\n", "captions.txt")) == ["x"]


@pytest.mark.parametrize(
    ("name", "advice"), [("t.csv.zst", "unpack"), ("t.xlsx", ".csv"), ("t.feather", ".parquet")]
)
def test_other_formats_say_what_to_do(folder: Path, name: str, advice: str) -> None:
    with pytest.raises(UserError, match=f"unknown format.*; .*{advice}"):
        open_pairs(str(table(folder, "x", name)))


@pytest.mark.parametrize("name", ["t.csv.gz", "T.JSONL.GZ", "t.json.bz2", "t.tsv.xz", "t.csv"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_packed_tables_are_read(folder: Path, name: str, encoding: str) -> None:
    text = "image,caption\na.png,caf\u00e9\n"
    if "json" in name.lower():
        text = json.dumps([{"image": "a.png", "caption": "caf\u00e9"}])
    pack = {".bz2": bz2.compress, ".xz": lzma.compress}.get(Path(name).suffix, gzip.compress)
    assert captions(table(folder, pack(text.encode(encoding)), name)) == ["caf\u00e9"]


def test_packed_tables_that_are_cut_off_are_refused(folder: Path) -> None:
    packed = gzip.compress(b"image,caption\na.png,x\n" * 9)[:-9]
    with pytest.raises(UserError, match=r"t.csv.gz: cannot be read .*gzip"):
        open_pairs(str(table(folder, packed, "t.csv.gz")))


CONVERSATIONS = [
    {
        "conversations": [
            {"from": "human", "value": "<image>\nWhat?"},
            {"from": "gpt", "value": "a dog"},
        ]
    },
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "a dog"}]},
        ]
    },
    {"caption": [{"role": "user", "text": "What?"}, {"role": "assistant", "text": "a dog"}]},
]


@pytest.mark.parametrize("record", CONVERSATIONS)
def test_the_answers_of_a_conversation_are_captions(folder: Path, record: dict[str, Any]) -> None:
    rows = [{"image": "a.png"} | record]
    assert captions(table(folder, json.dumps(rows), "t.json")) == ["a dog"]


def test_the_answers_of_a_conversation_in_arrow_are_captions(folder: Path) -> None:
    rows = [{"image": "a.png"} | CONVERSATIONS[0]]
    pq.write_table(pa.Table.from_pylist(rows), folder / "t.parquet")
    assert captions(folder / "t.parquet") == ["a dog"]


@pytest.mark.parametrize("name", ["http://[::1/a.png", "s3://[a", "file://[a.png"])
def test_names_that_are_no_urls(folder: Path, name: str) -> None:
    (reason,) = reasons(table(folder, f"image,caption\n{name},x\n"))
    assert reason.startswith(f"missing image file: {name}")


@pytest.mark.parametrize("unseen", ["\ufeff", "\ufeff\ufeff", "\u200b", "\xa0 ", "\u3000"])
def test_marks_that_are_not_seen_are_no_part_of_a_name(folder: Path, unseen: str) -> None:
    path = table(folder, f"{unseen}image,{unseen}caption{unseen}\na.png,x\n")
    assert captions(path) == ["x"]


def test_columns_of_one_name_are_told_apart(folder: Path) -> None:
    header = "image,caption,x,caption,x,,x.1,\n"
    (pair,) = pairs(table(folder, header + "a.png,first,1,second,2,?,3,\n"))
    assert pair.captions == ("first",)
    assert pair.attributes == {"x": "1", "caption.1": "second", "x.2": "2", "x.1": "3"}


@pytest.mark.parametrize("cell", ["NaN", "NULL", "None", "<NA>", "NA", "NaT", "?", "N/A", " nan "])
def test_what_stands_for_no_value_is_none(folder: Path, cell: str) -> None:
    path = table(folder, f"image,caption,label\na.png,x,{cell}\nb.png,{cell},y\n")
    (pair,) = pairs(path)
    assert pair.attributes == {"label": None}
    assert reasons(path) == ["missing caption"]


def test_words_that_look_like_no_value_are_kept(folder: Path) -> None:
    path = table(folder, "image,caption,label\na.png,none of these,none\nb.png,nan bread,-\n")
    assert captions(path) == ["none of these", "nan bread"]
    assert [pair.attributes["label"] for pair in pairs(path)] == ["none", "-"]


def test_values_are_the_same_without_the_blanks_around(folder: Path) -> None:
    path = table(folder, 'image,caption,label\na.png,x,"cat "\nb.png,y," cat"\nc.png,z,cat\n')
    assert {pair.attributes["label"] for pair in pairs(path)} == {"cat"}


CAPTION_RECORDS = [
    [{"raw": "a dog", "tokens": ["a", "dog"]}, {"raw": "one dog"}],
    {"text": ["a dog", "one dog"], "lang": "en"},
    [{"caption": "a dog"}, ["one dog"]],
]


@pytest.mark.parametrize("caption", CAPTION_RECORDS)
def test_captions_that_are_records(folder: Path, caption: Any) -> None:
    path = table(folder, json.dumps({"image": "a.png", "captions": caption}), "t.jsonl")
    assert captions(path) == ["a dog", "one dog"]


def names_of(picture: Path) -> list[str]:
    text = base64.b64encode(picture.read_bytes()).decode()
    return [
        picture.as_uri(),
        f"file://{picture}",
        f" {picture.name}",
        f"data:image/png;base64,{text}",
        f"data:image/png,{quote_from_bytes(picture.read_bytes())}",
        text,
        text[:40] + "\n" + text[40:],
    ]


@pytest.mark.parametrize("number", range(7))
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_pictures_by_any_name(tmp_path: Path, number: int, ending: str) -> None:
    folder = tmp_path / "with blank"
    folder.mkdir()
    (folder / "a.png").write_bytes(png("blue"))
    rows = [{"image": names_of(folder / "a.png")[number], "caption": "x"}]
    path = folder / f"t.{ending}"
    if ending == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["image", "caption"])
            writer.writeheader()
            writer.writerows(rows)
    elif ending == "jsonl":
        path.write_text(json.dumps(rows[0]))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    source = open_pairs(str(path))
    (pair,) = pairs(source)
    assert pair.image.getpixel((0, 0)) == (0, 0, 255)
    assert len(pair.id) < 100 and str(tmp_path) not in pair.location
    assert dict(source.images([pair.location])).keys() == {pair.location}


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_what_is_missing_is_named(tmp_path: Path, ending: str) -> None:
    names = ["gone.png", "https://example.org/a.png", "data:image/png;base64,?", "x" * 5000]
    rows = [{"image": name, "caption": "x"} for name in names]
    path = tmp_path / f"t.{ending}"
    if ending == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    gone, url, damaged, long = reasons(path)
    assert gone.startswith("missing image file: gone.png; looked beside the table")
    assert url.startswith("missing image file: https://example.org/a.png is a URL; download")
    assert damaged == "missing image file: data:image/png;base64,?"
    assert len(long) < 200


def test_a_picture_that_changes_is_noticed_by_any_name(folder: Path) -> None:
    for name in (".\\a.png", (folder / "a.png").as_uri(), " a.png"):
        (folder / "a.png").write_bytes(png("red"))
        path = table(folder, json.dumps({"image": name, "caption": "x"}), "t.jsonl")
        before = open_pairs(str(path)).fingerprint()
        (folder / "a.png").write_bytes(png("blue"))
        assert open_pairs(str(path)).fingerprint() != before


def test_the_fingerprint_follows_captions_pictures_and_columns(folder: Path) -> None:
    def fingerprint(text: str, **columns: str) -> str:
        return open_pairs(str(table(folder, text)), **columns).fingerprint()

    text = "image,caption,text\na.png,one,two\n"
    first = fingerprint(text)
    assert fingerprint(text) == first
    assert fingerprint(text.replace("one", "won")) != first
    assert fingerprint(text, caption_column="text") != first
    same_size = bytearray((folder / "a.png").read_bytes())
    same_size[-20] ^= 1
    (folder / "a.png").write_bytes(same_size)
    assert fingerprint(text) != first
