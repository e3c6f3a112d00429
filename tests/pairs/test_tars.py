"""Archives: each damaged sample is lost alone, and no name is ever run or fetched."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest

from features.pairs.open import open_pairs
from tests.pairs.reading import captions, pairs, png, reasons, records, write_tar


def files(*keys: str, image: bytes | None = None) -> list[tuple[str, bytes]]:
    return [
        file
        for key in keys
        for file in ((f"{key}.png", image or png()), (f"{key}.txt", key.encode()))
    ]


NAMES = [
    "pipe:touch owned #.tar",
    "pipe:touch owned",
    "file:owned.tar",
    "a.tar|touch owned",
    "$(touch owned).tar",
    "`touch owned`.tar",
    "gs:x;touch owned;.tar",
    "-rf.tar",
    "{a,b}.tar",
    "[0-9].tar",
]


@pytest.mark.parametrize("name", NAMES)
def test_no_name_is_given_to_a_shell(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("subprocess.Popen.__init__", started)
    monkeypatch.setattr("os.system", started)
    file = name if name.endswith(".tar") else f"{name}.tar"
    write_tar(tmp_path / file, files("a"))
    for spec in (".", file, "*.tar", str(tmp_path / file)):
        source = open_pairs(spec)
        source.fingerprint()
        (pair,) = pairs(source)
        assert dict(source.images([pair.location]))
    assert os.listdir(tmp_path) == [file]


@pytest.mark.parametrize("column", ["image", "file_name", "path"])
def test_no_name_in_a_table_is_either(tmp_path: Path, column: str) -> None:
    rows = [{column: f"pipe:touch {tmp_path}/owned", "text": "x"}, {column: "a.png", "text": "y"}]
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert captions(tmp_path / "t.jsonl") == ["y"]
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        (".tar", "w"),
        (".tar.gz", "w:gz"),
        (".tgz", "w:gz"),
        (".tar.bz2", "w:bz2"),
        (".tar.xz", "w:xz"),
    ],
)
def test_compressed_or_not(tmp_path: Path, suffix: str, mode: str) -> None:
    path = write_tar(tmp_path / f"x{suffix}", files("a", "b"), mode)
    assert captions(path) == ["a", "b"]
    assert captions(tmp_path) == ["a", "b"]


def test_all_images_first(tmp_path: Path) -> None:
    ordered = sorted(files(*"abcd"), key=lambda file: file[0].rsplit(".")[-1])
    assert captions(write_tar(tmp_path / "x.tar", ordered)) == list("abcd")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["photo.1.png", "photo.1.txt", "photo.2.png", "photo.2.txt"], ["photo.1", "photo.2"]),
        (["v1.0/a.png", "v1.0/a.txt", "v1.0/b.png", "v1.0/b.txt"], ["v1.0/a", "v1.0/b"]),
        (["a.seg.png", "a.txt"], ["a"]),
        (["a.PNG", "a.TXT"], ["a"]),
        (["./a.jpeg", "./a.txt"], ["a"]),
        (["x/a.png", "x/a.txt", "y/a.png", "y/a.txt"], ["x/a", "y/a"]),
        (["._a.png", "a.png", "a.txt", "__MACOSX/a.png"], ["a"]),
        (["2024.01.02.png", "2024.01.02.txt"], ["2024"]),
    ],
)
def test_which_files_belong_together(tmp_path: Path, names: list[str], expected: list[str]) -> None:
    content = [(n, n.encode() if n.lower().endswith("txt") else png()) for n in names]
    source = open_pairs(str(write_tar(tmp_path / "x.tar", content)))
    assert [pair.id for pair in pairs(source)] == expected
    assert dict(source.images([f"x.tar/{key}" for key in expected])).keys() == {
        f"x.tar/{key}" for key in expected
    }


def test_several_texts_are_several_captions(tmp_path: Path) -> None:
    content = [("a.png", png()), ("a.0.txt", b"one"), ("a.1.txt", b"two")]
    assert captions(write_tar(tmp_path / "x.tar", content)) == ["one", "two"]


KEYS = [f"{i:03d}" for i in range(40)]


@pytest.mark.parametrize(
    ("place", "content"),
    [
        (30, [("007.png", png()), ("007.txt", b"again")]),
        (10, [("bad.png", b"no picture"), ("bad.txt", b"x")]),
        (10, [("bad.png", png())]),
        (10, [("bad.txt", b"x")]),
        (10, [("bad.png", png()), ("bad.json", b"{")]),
        (10, [("bad.png", png()), ("bad.json", b"[" * 99_999)]),
        (10, [("bad.png", png()), ("bad.txt", b"\xff\xfe\xff")]),
        (10, [("bad.png", png()), ("bad.json", b'{"text": "\\ud800"}')]),
    ],
)
def test_one_bad_sample_costs_itself(
    tmp_path: Path, place: int, content: list[tuple[str, bytes]]
) -> None:
    good = files(*KEYS)
    path = write_tar(tmp_path / "x.tar", [*good[:place], *content, *good[place:]])
    lost = "007" if content[0][0].startswith("007") else None
    assert captions(path) == [key for key in KEYS if key != lost]
    assert len(reasons(path)) == 1


def test_a_damaged_header_costs_its_sample(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", files(*KEYS))
    with tarfile.open(path) as tar:
        offset = tar.getmember("020.txt").offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 512] = b"\xa5" * 512
    path.write_bytes(content)
    assert captions(path) == [key for key in KEYS if key != "020"]
    missing, damage = reasons(path)
    assert missing == "missing caption"
    assert damage.startswith(f"unreadable tar file: bytes {offset} to ")


def test_a_cut_off_archive_keeps_what_is_whole(tmp_path: Path) -> None:
    for suffix, mode in ((".tar", "w"), (".tar.gz", "w:gz")):
        path = write_tar(tmp_path / f"x{suffix}", files(*KEYS), mode)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2 + 5])
        assert 0 < len(captions(path)) < 40
        assert "unreadable tar file" in reasons(path)[-1]


def test_archives_put_together(tmp_path: Path) -> None:
    one, two = (write_tar(tmp_path / f"{k}.tar", files(k)).read_bytes() for k in "ab")
    (tmp_path / "c.tar").write_bytes(one + two)
    assert captions(tmp_path / "c.tar") == ["a", "b"]
    assert reasons(tmp_path / "c.tar") == []


@pytest.mark.parametrize("content", [b"", b"no archive" * 99, png(), bytes(4096)])
def test_what_is_no_archive_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    assert [r.reason.startswith("unreadable tar file") for r in records(tmp_path / "x.tar")] == [
        True
    ]


def test_links_and_devices_are_no_pictures(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for kind, target in ((tarfile.SYMTYPE, "/etc/passwd"), (tarfile.FIFOTYPE, "")):
            info = tarfile.TarInfo(f"{kind.decode()}.png")
            info.type, info.linkname = kind, target
            tar.addfile(info)
    for key, content in files("a"):
        write_tar(path, [(key, content)], "a")
    assert captions(path) == ["a"]
    assert os.listdir(tmp_path) == ["x.tar"]


def test_metadata_as_img2dataset_writes_it(tmp_path: Path) -> None:
    described = {"caption": "a dog", "url": "https://x/y.jpg", "key": "0", "width": 8, "sha": None}
    content = [("0.jpg", png()), ("0.txt", b"a dog"), ("0.json", json.dumps(described).encode())]
    (pair,) = pairs(write_tar(tmp_path / "x.tar", content))
    assert pair.captions == ("a dog",)
    assert pair.attributes == {"url": "https://x/y.jpg", "key": "0", "width": "8", "sha": None}


def test_a_class_beside_its_picture(tmp_path: Path) -> None:
    content = [
        ("0.jpg", png()),
        ("0.cls", b"3"),
        ("0.txt", b"x"),
        ("1.cls", b"4"),
        ("1.jpg", png()),
    ]
    path = write_tar(tmp_path / "x.tar", content)
    assert [pair.attributes for pair in pairs(path)] == [{"cls": "3"}]
    source = open_pairs(str(path), captions_needed=False)
    assert [pair.attributes for pair in pairs(source)] == [{"cls": "3"}, {"cls": "4"}]


@pytest.mark.parametrize(("name", "mode"), [("a.tar", "w:gz"), ("a.tar", "w:xz"), ("a.tgz", "w")])
def test_an_archive_is_unpacked_by_its_content(tmp_path: Path, name: str, mode: str) -> None:
    files = [("a.png", png()), ("a.txt", b"x")]
    assert captions(write_tar(tmp_path / name, files, mode)) == ["x"]


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "hi"},
        {"Alt Text": "hi"},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "hi"}]},
        {"caption": "hi", "prompt": "ho"},
    ],
)
def test_records_name_captions_as_tables_do(tmp_path: Path, record: dict[str, object]) -> None:
    content = json.dumps(record | {"x": 1}).encode()
    write_tar(tmp_path / "x.tar", [("a.png", png()), ("a.json", content)])
    (pair,) = pairs(tmp_path / "x.tar")
    assert pair.captions == ("hi",) and pair.attributes["x"] == "1"


def test_a_text_comes_before_less_usual_names(tmp_path: Path) -> None:
    content = json.dumps({"prompt": "ho"}).encode()
    members = [("a.png", png()), ("a.json", content), ("a.text", b"hi")]
    (pair,) = pairs(write_tar(tmp_path / "x.tar", members))
    assert pair.captions == ("hi",) and pair.attributes == {"prompt": "ho"}


def test_archives_with_a_table_or_classes_have_to_be_unpacked(tmp_path: Path) -> None:
    members = [("p/metadata.csv", b"file_name,text\na.png,x\n"), ("p/a.png", png())]
    write_tar(tmp_path / "x.tar", [*members, ("cat/a.png", png())])
    for reason in reasons(tmp_path / "x.tar"):
        assert reason.startswith("missing caption: no .txt") and "unpack" in reason
    write_tar(tmp_path / "x.tar", [*members, ("b.png", png()), ("b.json", b"{}")])
    assert reasons(tmp_path / "x.tar") == ["missing caption", "missing caption"]
