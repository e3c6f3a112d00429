"""The folders, shards and archives that people have."""

from __future__ import annotations

import errno
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.errors import UserError
from features.pairs.base import Skipped
from features.pairs.open import open_pairs
from tests.pairs.reading import captions, pairs, png, reasons, records, write_tar


def metadata(folder: Path, name: str, rows: list[dict]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        (folder / row["file_name"]).write_bytes(png())
    if name.lower().endswith(".jsonl"):
        (folder / name).write_text("\n".join(map(json.dumps, rows)))
    elif name.lower().endswith(".csv"):
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        (folder / name).write_text("\n".join(lines))
    else:
        pq.write_table(pa.Table.from_pylist(rows), folder / name)


KINDS = ["metadata.jsonl", "metadata.csv", "metadata.parquet", "Metadata.CSV"]


@pytest.mark.parametrize("name", KINDS)
def test_imagefolders_metadata(tmp_path: Path, name: str) -> None:
    metadata(tmp_path / "f", name, [{"file_name": "a.png", "text": "x", "mood": "y"}])
    (pair,) = pairs(tmp_path / "f")
    assert pair.captions == ("x",) and pair.attributes == {"mood": "y"}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("below", ["", "data/"])
def test_splits_in_folders_with_the_same_names(tmp_path: Path, name: str, below: str) -> None:
    for split in ("train", "test"):
        rows = [{"file_name": f"{i}.png", "text": f"{split} {i}"} for i in range(2)]
        metadata(tmp_path / f"{below}{split}", name, rows)
    source = open_pairs(str(tmp_path))
    found = pairs(source)
    assert sorted(captions(source)) == ["test 0", "test 1", "train 0", "train 1"]
    assert {pair.attributes["split"] for pair in found} == {"train", "test"}
    assert len({pair.id for pair in found}) == len({pair.location for pair in found}) == 4
    assert source.total() == 4
    locations = [pair.location for pair in found]
    assert dict(source.images(locations)).keys() == set(locations)


def test_metadata_above_split_folders(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    metadata(tmp_path, "metadata.csv", [{"file_name": "train/0.png", "text": "x"}])
    (pair,) = pairs(tmp_path)
    assert pair.location == "train/0.png"


@pytest.mark.parametrize("splits", [False, True])
def test_folders_of_classes(tmp_path: Path, splits: bool) -> None:
    for split in ("train", "val") if splits else ("",):
        for label in ("cat", "dog"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            (folder / "0.PNG").write_bytes(png())
            (folder / "notes.md").write_text("no picture")
            (folder / ".hidden.png").write_bytes(png())
    with pytest.raises(UserError, match=r"no captions.*--caption-column label"):
        open_pairs(str(tmp_path))
    for found in (
        pairs(open_pairs(str(tmp_path), captions_needed=False)),
        pairs(open_pairs(str(tmp_path), caption_column="label")),
    ):
        assert len(found) == (4 if splits else 2)
        assert {pair.attributes.get("label", *pair.captions) for pair in found} == {"cat", "dog"}
        if splits:
            assert {pair.attributes["split"] for pair in found} == {"train", "val"}
    assert captions(open_pairs(str(tmp_path), caption_column="label"))[0] == "cat"


def test_texts_beside_images(tmp_path: Path) -> None:
    for name, text in (("a", "été".encode("latin-1")), ("b", "naïve".encode("utf-16"))):
        (tmp_path / f"{name}.png").write_bytes(png())
        (tmp_path / f"{name}.txt").write_bytes(text)
    (tmp_path / "c.png").write_bytes(png())
    assert captions(tmp_path) == ["été", "naïve"]
    assert reasons(tmp_path) == ["missing caption"]


def shard(path: Path, first: int, rows: int = 6, *, group: int = 2, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = range(first, first + rows)
    columns = {
        "image": [{"bytes": png((i, 0, 0)), "path": f"{i}.png"} for i in numbers],
        "text": [f"number {i}" for i in numbers],
    }
    pq.write_table(pa.table(columns), path, row_group_size=group, **options)


@pytest.mark.parametrize(
    "pattern", ["", "/data", "/data/*.parquet", "/data/train-{00000..00001}-of-2.parquet"]
)
def test_sharded_parquet(tmp_path: Path, pattern: str) -> None:
    for index in range(2):
        shard(tmp_path / f"data/train-{index:05d}-of-2.parquet", 6 * index)
    source = open_pairs(f"{tmp_path}{pattern}")
    found = pairs(source)
    assert captions(source) == [f"number {i}" for i in range(12)]
    assert {pair.attributes["split"] for pair in found} == {"train"}
    wanted = [found[i].location for i in (11, 2, 10, 3)]
    images = dict(source.images(wanted))
    assert [images[place].getpixel((0, 0))[0] for place in wanted] == [11, 2, 10, 3]


@pytest.mark.parametrize(
    "pattern",
    ["*.parquet", "x-?.parquet", "x-[01].parquet", "../*/x-*.parquet", "x-{0..1}.parquet"],
)
def test_patterns_in_a_folder_with_brackets(tmp_path: Path, pattern: str) -> None:
    for index in range(2):
        shard(tmp_path / "photos [2024] *" / f"x-{index}.parquet", 6 * index)
    assert len(pairs(f"{tmp_path}/photos [2024] */{pattern}")) == 12


def test_a_folder_with_brackets_is_no_pattern_of_others(tmp_path: Path) -> None:
    shard(tmp_path / "a1" / "x.parquet", 0)
    shard(tmp_path / "a[1]" / "x.parquet", 6)
    assert captions(f"{tmp_path}/a[1]/*.parquet")[0] == "number 6"
    assert captions(f"{tmp_path}/a[12]/*.parquet")[0] == "number 0"


def test_no_row_group_is_decoded_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard(tmp_path / "x.parquet", 0, 200, group=50)
    monkeypatch.setattr("features.pairs.parquet.PART_RECORDS", 40)
    decoded: list[int] = []
    whole = pq.ParquetFile.iter_batches

    def counted(self: pq.ParquetFile, *args: object, row_groups: list[int], **options: object):
        decoded.extend(row_groups)
        return whole(self, *args, row_groups=row_groups, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    assert len(pairs(tmp_path / "x.parquet")) == 200
    assert sorted(decoded) == [0, 1, 2, 3]
    decoded.clear()
    source = open_pairs(str(tmp_path / "x.parquet"))
    found = [int(place) for place, _ in source.images(map(str, (199, 7, 100, 11)))]
    assert found == [7, 11, 100, 199]
    assert sorted(decoded) == [0, 2, 3]


def arrow(kind: pa.DataType, values: list) -> pa.Array:
    return pa.array(values, kind)


TEXTS = ["one", "two"]
CAPTIONS = [
    pa.array(TEXTS, pa.string()),
    pa.array(TEXTS, pa.large_string()),
    pa.array(TEXTS, pa.string_view()),
    pa.array(TEXTS, pa.binary()),
    pa.array(TEXTS).dictionary_encode(),
    pa.array([[t] for t in TEXTS], pa.list_(pa.string())),
    pa.array([[t] for t in TEXTS], pa.large_list(pa.large_string())),
    pa.array([[t] for t in TEXTS], pa.list_(pa.string(), 1)),
    pa.array([[t] for t in TEXTS], pa.list_view(pa.string())),
    pa.array([[[t]] for t in TEXTS], pa.list_(pa.list_(pa.string()))),
]


@pytest.mark.parametrize("column", CAPTIONS, ids=lambda column: str(column.type))
def test_captions_of_any_arrow_type(tmp_path: Path, column: pa.Array) -> None:
    for image in (pa.binary(), pa.large_binary(), pa.binary_view()):
        table = pa.table({"image": pa.array([png(), png()], image), "caption": column})
        try:
            pq.write_table(table, tmp_path / "x.parquet")
        except pa.ArrowNotImplementedError:
            pytest.skip("parquet cannot hold it")
        assert captions(tmp_path / "x.parquet") == TEXTS


def test_attributes_of_any_arrow_type(tmp_path: Path) -> None:
    import datetime
    import decimal

    table = pa.table(
        {
            "image": [png()],
            "text": ["x"],
            "int": pa.array([3], pa.int8()),
            "float": pa.array([3.0], pa.float32()),
            "half": [2.5],
            "bool": [True],
            "day": [datetime.date(2020, 1, 2)],
            "price": [decimal.Decimal("1.50")],
            "kind": pa.array(["a"]).dictionary_encode(),
            "list": pa.array([[1, 2]], pa.large_list(pa.int64())),
            "nothing": pa.array([None], pa.string()),
            "nan": [float("nan")],
            "blob": [b"\xff\xfe\x00\x01"],
            "struct": [{"a": 1}],
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    (pair,) = pairs(tmp_path / "x.parquet")
    assert pair.attributes == {
        "int": "3",
        "float": "3",
        "half": "2.5",
        "bool": "true",
        "day": "2020-01-02",
        "price": "1.50",
        "kind": "a",
        "list": "1|2",
        "nothing": None,
        "nan": None,
    }


def test_a_damaged_row_group_costs_its_rows_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    shard(path, 0, 6, compression="zstd", use_dictionary=False)
    file = pq.ParquetFile(path)
    chunk = file.metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    start = chunk.data_page_offset
    content[start + 20 : start + chunk.total_compressed_size] = bytes(
        chunk.total_compressed_size - 20
    )
    path.write_bytes(content)
    found = records(path)
    assert captions(path) == ["number 0", "number 1", "number 4", "number 5"]
    assert len(found) == 6 and all("unreadable" in reason for reason in reasons(path))


def test_a_caption_that_is_corrected_in_place_is_noticed(tmp_path: Path) -> None:
    def prints(text: str) -> list[str]:
        rows = {"image": [png()] * 3, "text": ["aa", text, "zz"]}
        pq.write_table(pa.table(rows), tmp_path / "x.parquet", use_dictionary=False)
        write_tar(tmp_path / "x.tar", [("a.png", png()), ("a.txt", text.encode())])
        write_tar(tmp_path / "x.tgz", [("a.png", png()), ("a.json", b'{"text": "%s"}')], "w:gz")
        return [open_pairs(str(tmp_path / name)).fingerprint() for name in ("x.parquet", "x.tar")]

    first, again, other = prints("dog"), prints("dog"), prints("cat")
    assert first == again
    assert all(one != two for one, two in zip(first, other, strict=True))


@pytest.mark.parametrize("stray", ["README.png", "samples/x.png", "samples/a/x.png"])
def test_a_stray_picture_leaves_the_splits(tmp_path: Path, stray: str) -> None:
    names = ["train/cat/1.png", "train/dog/1.png", "test/cat/2.png", stray]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png())
    source = open_pairs(str(tmp_path), captions_needed=False)
    found = {pair.location: pair.attributes for pair in pairs(source)}
    assert found["train/dog/1.png"] == {"label": "dog", "split": "train"}
    assert found["test/cat/2.png"] == {"label": "cat", "split": "test"}
    assert len(found) == 4


def test_a_class_may_be_called_as_a_split(tmp_path: Path) -> None:
    for name in ("test/1.png", "exam/1.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(png())
    assert captions(open_pairs(str(tmp_path), caption_column="label")) == ["exam", "test"]


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["images/cat/1.png", "images/dog/1.png"], ["cat", "dog"]),
        (["a/images/cat/1.png", "a/images/dog/x/1.png"], ["cat", "dog"]),
        (["images/cat/1.png", "images/dog/1.png", "images/all.png"], [None, "cat", "dog"]),
        (["images/cat/1.png", "images/dog/1.png", "logo.png"], ["cat", "dog", None]),
        (["photos2018/birds/30/1.png", "photos2018/fungi/2/1.png"], ["birds", "fungi"]),
        (["images/cat/1.png"], ["cat"]),
        (["cat/1.png"], ["cat"]),
        (["cat/1.png", "cat/2.png", "cat/young/3.png"], ["cat", "cat", "cat"]),
        (  # most lie deeper than in a; of those in a/cat half do
            ["a/1.png", "a/2.png", "a/cat/3.png", "a/cat/4.png", "a/cat/young/5.png"],
            [None, None, "cat", "cat", "cat"],
        ),
        (  # of those in a/b most do
            ["a/1.png", "a/b/2.png", "a/b/cat/3.png", "a/b/dog/4.png"],
            [None, None, "cat", "dog"],
        ),
        (["train/cat/1.png", "train/dog/2.png"], ["train: cat", "train: dog"]),
        (["x/x/test/cat/3.png", "x/x/train/dog/1.png"], ["test: cat", "train: dog"]),
        (["x/train/cat/1.png"], ["train: cat"]),
        (["train/images/cat/1.png", "val/images/dog/1.png"], ["train: cat", "val: dog"]),
        (["images/train/1.png", "images/val/2.png"], ["train: None", "val: None"]),
    ],
)
def test_folders_around_all_pictures_are_no_labels(
    tmp_path: Path, names: list[str], labels: list[str | None]
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png())
    found = [pair.attributes for pair in pairs(open_pairs(str(tmp_path), captions_needed=False))]
    assert [
        f"{one['split']}: {one.get('label')}" if "split" in one else one.get("label")
        for one in found
    ] == labels


def test_links_to_folders_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    for name in ("all/cat/1.png", "all/dog/1.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(png())
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    for name in ("cat", "dog"):
        (chosen / name).symlink_to(tmp_path / "all" / name)
    (chosen / "loop").symlink_to(chosen)
    (tmp_path / "all/cat/up").symlink_to(tmp_path / "all")
    assert captions(open_pairs(str(chosen), caption_column="label"))[:2] == ["cat", "dog"]
    assert len(pairs(open_pairs(str(tmp_path / "all"), caption_column="label"))) == 2


def test_archives_behind_a_loop_are_read_once(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("1.png", png()), ("1.txt", b"x")])
    (tmp_path / "loop").symlink_to(tmp_path)
    assert captions(tmp_path) == ["x"]


@pytest.mark.parametrize("text", ["a.b.txt", "a.b.TXT", "a.b.caption", "a.b.PNG.txt"])
def test_the_text_beside_may_be_named_as_people_do(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.b.PNG").write_bytes(png())
    (tmp_path / text).write_text("x")
    before = open_pairs(str(tmp_path)).fingerprint()
    assert captions(tmp_path) == ["x"]
    (tmp_path / text).write_text("y")
    assert open_pairs(str(tmp_path)).fingerprint() != before


@pytest.mark.parametrize("where", ["run", "results/today"])
def test_what_was_written_among_the_data_is_no_data(tmp_path: Path, where: str) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "a.txt").write_text("a dog")
    before = open_pairs(str(tmp_path)).fingerprint()
    store = tmp_path / where / "store"
    store.mkdir(parents=True)
    (store / "config.json").write_text("{}")
    (store / "shard-00000.safetensors").write_bytes(b"")
    pq.write_table(pa.table({"id": ["a"], "captions": [["a dog"]]}), store / "samples.parquet")
    (store / "b.png").write_bytes(png())
    assert captions(tmp_path) == ["a dog"]
    assert open_pairs(str(tmp_path)).fingerprint() == before


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("captions.txt", r"name the table .*\(captions.txt\)"),
        ("annotations/captions.json", r"name the table .*\(annotations/captions.json\)"),
        ("README.txt", "and no captions; list them in .*beside each image$"),
    ],
)
def test_tables_that_a_folder_does_not_take_are_named(
    tmp_path: Path, table: str, message: str
) -> None:
    for name, content in (("a.png", png()), (table, b"x")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_pairs(str(tmp_path))


@pytest.mark.parametrize("name", ["images.tar", "images.tar.gz", "images.TGZ", "images.parquet"])
def test_what_lies_unpacked_beside_itself_is_not_read_twice(tmp_path: Path, name: str) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png())
    (tmp_path / "list.csv").write_text("image,caption\na.png,x\n")
    write_tar(tmp_path / name, [("images/a.png", png())])
    assert captions(tmp_path) == ["x"]


@pytest.mark.parametrize("name", ["backup.tar", "old/backup.tar.gz", "old/backup.TGZ"])
def test_archives_among_pictures_are_asked_about(tmp_path: Path, name: str) -> None:
    for stem in ("a", "b"):
        (tmp_path / f"{stem}.png").write_bytes(png())
        (tmp_path / f"{stem}.txt").write_text("now")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    archive = write_tar(tmp_path / name, [("a.png", png()), ("a.txt", b"then")])
    with pytest.raises(UserError, match=rf"2 pictures beside archives \({name}\); ") as raised:
        open_pairs(str(tmp_path))
    _, _, advised = str(raised.value).partition("(as ")
    assert captions(advised.partition(")")[0]) == ["then"]
    (tmp_path / "b.png").unlink()
    assert captions(tmp_path) == ["then"], "a stray picture beside archives"
    archive.unlink()
    assert captions(tmp_path) == ["now"]


def test_a_store_that_is_not_finished_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "a.txt").write_text("a dog")
    before = open_pairs(str(tmp_path)).fingerprint()
    begun = tmp_path / "run" / "store"
    begun.mkdir(parents=True)
    (begun / "extraction.json").write_text("{}")
    pq.write_table(pa.table({"image": ["a.png"], "caption": ["x"]}), begun / "part-00000.parquet")
    assert open_pairs(str(tmp_path)).fingerprint() == before


@pytest.mark.parametrize("left", ["@eaDir/a.png/THUMB.jpg", "$RECYCLE.BIN/S-1/$R1.png"])
def test_what_systems_leave_is_no_data(tmp_path: Path, left: str) -> None:
    for name in ("cat/a.png", f"cat/{left}", left):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png())
    assert captions(open_pairs(str(tmp_path), caption_column="label")) == ["cat"]


@pytest.mark.parametrize("closed", ["", "b", "a/c"])
def test_a_folder_that_cannot_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    for name in ("a/c/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png())
    scandir = os.scandir

    def guarded(path: str) -> object:
        if Path(path) == tmp_path / closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", guarded)
    with pytest.raises(UserError, match=rf"{closed}: cannot be read \(Permission denied\)"):
        open_pairs(str(tmp_path), captions_needed=False)


@pytest.mark.parametrize("name", ["metadata.csv", "0.tar", "0.parquet", "t.jsonl"])
def test_pipes_among_the_data_are_not_waited_for(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "a.txt").write_text("a dog")
    os.mkfifo(tmp_path / name)
    assert captions(tmp_path) == ["a dog"]
    with pytest.raises(UserError, match="a pipe or a device"):
        open_pairs(str(tmp_path / name))


def test_what_a_folder_has_instead_is_said(tmp_path: Path) -> None:
    (tmp_path / "data-00000-of-00001.arrow").write_bytes(b"")
    (tmp_path / "a.heic").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 with \.arrow.*images end in .*to_parquet"):
        open_pairs(str(tmp_path))


@pytest.mark.parametrize("spec", ["", " "])
def test_no_name_is_not_the_folder_here(spec: str) -> None:
    with pytest.raises(UserError, match="the name is empty"):
        open_pairs(spec)


def test_columns_of_one_name_in_parquet_are_refused(tmp_path: Path) -> None:
    columns = [pa.array(["a.png"]), pa.array(["x"]), pa.array(["y"])]
    table = pa.Table.from_arrays(columns, names=["image", "caption", "caption"])
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(UserError, match="several columns are named caption"):
        open_pairs(str(tmp_path / "t.parquet"))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
PAGES = [
    (POINTER, "run git lfs pull"),
    (b"\n<!DOCTYPE html><title>Sign in</title>" + bytes(600), "a page of HTML"),
    (b"<html>" + bytes(2000), "a page of HTML"),
    (b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>', "a server's error"),
]


@pytest.mark.parametrize(("content", "told"), PAGES)
@pytest.mark.parametrize("name", ["t.tar", "t.parquet", "t.csv", "t.json", "t.jsonl", "t.tsv"])
def test_pointers_and_pages_are_told(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    if name.endswith(".tar"):
        assert [reason.split(": ")[0] for reason in reasons(tmp_path / name)] == [
            "unreadable tar file"
        ]
        assert told in reasons(tmp_path / name)[0]
    else:
        with pytest.raises(UserError, match=f"{name}: .*{told}"):
            open_pairs(str(tmp_path / name))


@pytest.mark.parametrize("name", ["t.csv", "t.json", "t.jsonl", "t.tsv", "t.parquet", "t.csv.gz"])
@pytest.mark.parametrize(
    ("begin", "told"),
    [
        (b"PK\x03\x04", "a zip file, as .xlsx"),
        (b"ARROW1", "Arrow"),
        (b"SQLite format 3\0", "SQLite"),
    ],
)
def test_files_of_other_formats_are_told(
    tmp_path: Path, name: str, begin: bytes, told: str
) -> None:
    content = begin + bytes(range(256)) * 4
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(UserError, match=f"{name}: .*{told}"):
        open_pairs(str(tmp_path / name))


def test_a_parquet_file_called_otherwise_is_told(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": ["a.png"], "caption": ["x"]}), tmp_path / "t.csv")
    with pytest.raises(UserError, match=r"t\.csv: a parquet file; let its name end in"):
        open_pairs(str(tmp_path / "t.csv"))


@pytest.mark.parametrize(("content", "told"), PAGES)
def test_pictures_that_are_pointers_and_pages_are_told(
    tmp_path: Path, content: bytes, told: str
) -> None:
    (tmp_path / "a.png").write_bytes(content)
    (tmp_path / "t.csv").write_text("image,caption\na.png,x\n")
    (reason,) = reasons(tmp_path / "t.csv")
    assert reason.startswith("unreadable image: ") and told in reason


def test_a_drawing_is_no_page(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b'<?xml version="1.0"?><svg></svg>')
    (tmp_path / "t.csv").write_text("image,caption\na.png,x\n")
    assert "none of the formats" in reasons(tmp_path / "t.csv")[0]


@pytest.mark.parametrize("pattern", ["", "/*.parquet"])
@pytest.mark.parametrize("bad", [b"", b"PAR1", b"cut", POINTER])
def test_shards_without_rows_and_damaged_ones(tmp_path: Path, pattern: str, bad: bytes) -> None:
    table = pa.table({"image": [png()], "text": ["x"]})
    for name, content in (("train-0", table), ("train-1", table[:0]), ("train-2", table)):
        pq.write_table(content, tmp_path / f"{name}.parquet")
    whole = (tmp_path / "train-2.parquet").read_bytes()
    (tmp_path / "train-3.parquet").write_bytes(whole[: len(whole) // 2] if bad == b"cut" else bad)
    source = open_pairs(f"{tmp_path}{pattern}")
    assert [pair.id for pair in pairs(source)] == [
        f"train-{n}.parquet/train-{n}.parquet:1" for n in (0, 2)
    ]
    (one,) = [record for record in records(source) if isinstance(record, Skipped)]
    assert one.location == "train-3.parquet/train-3.parquet"
    assert one.reason.startswith("unreadable file: ") and str(tmp_path) not in one.reason
    assert source.total() == 3 and list(source.images([one.location])) == []
    before = source.fingerprint()
    (tmp_path / "train-3.parquet").write_bytes(whole)
    assert open_pairs(f"{tmp_path}{pattern}").fingerprint() != before


def test_shards_of_other_tables(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "0.csv").write_text("image,caption\na.png,x\n")
    (tmp_path / "1.csv").write_text("image,caption\n")
    (tmp_path / "2.csv").write_bytes(POINTER)
    assert captions(tmp_path / "*.csv") == ["x"]
    assert reasons(tmp_path / "*.csv") == ["unreadable file: a git-lfs pointer; run git lfs pull"]


def test_shards_that_are_all_damaged_are_refused(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"0\.parquet: not a readable parquet file"):
        open_pairs(str(tmp_path))


LABEL = {"_type": "ClassLabel", "names": ["cat", "dog"]}


@pytest.mark.parametrize(
    ("feature", "values", "expected"),
    [
        (LABEL, [0, 1, -1, None, 2], ["cat", "dog", None, None, "2"]),
        ({"_type": "Sequence", "feature": LABEL}, [[0, 1], [1], []], ["cat|dog", "dog", ""]),
        ([LABEL], [[0, 1], [1]], ["cat|dog", "dog"]),
        ({"_type": "Value", "dtype": "int64"}, [0, 1], ["0", "1"]),
        ({"_type": "ClassLabel", "names": None}, [0, 1], ["0", "1"]),
        (None, [0], ["0"]),
    ],
)
@pytest.mark.parametrize("column", [None, "label"])
def test_classes_have_their_names(
    tmp_path: Path, feature: Any, values: list[Any], expected: list[str | None], column: str | None
) -> None:
    rows = {"image": [png()] * len(values), "label": values, "text": ["x"] * len(values)}
    kept = json.dumps({"info": {"features": {"label": feature, "gone": LABEL}}})
    table = pa.table(rows).replace_schema_metadata({"huggingface": kept})
    pq.write_table(table, tmp_path / "t.parquet")
    found = pairs(open_pairs(str(tmp_path / "t.parquet"), caption_column=column))
    if column is None:
        assert [pair.attributes["label"] for pair in found] == expected
    else:
        assert ["|".join(pair.captions) for pair in found] == [text for text in expected if text]


@pytest.mark.parametrize(
    "kept", [b"", b"[]", b"{", b'{"info": null}', b'{"info": {"features": 1}}']
)
def test_other_metadata_is_no_matter(tmp_path: Path, kept: bytes) -> None:
    table = pa.table({"image": [png()], "label": [0], "text": ["x"]})
    table = table.replace_schema_metadata({"huggingface": kept})
    pq.write_table(table, tmp_path / "t.parquet")
    assert [pair.attributes for pair in pairs(tmp_path / "t.parquet")] == [{"label": "0"}]


def test_vectors_are_no_attributes(tmp_path: Path) -> None:
    rows = [
        {"image": png(), "text": "x", "clip_embedding": [0.5, 0.25], "grid": [[0.5]], "n": [1, 2]}
    ]
    for kind in (pa.list_(pa.float32()), pa.list_(pa.float64(), 2)):
        table = pa.Table.from_pylist(rows)
        place = table.schema.get_field_index("clip_embedding")
        table = table.set_column(place, "clip_embedding", table["clip_embedding"].cast(kind))
        pq.write_table(table, tmp_path / "t.parquet")
        assert [pair.attributes for pair in pairs(tmp_path / "t.parquet")] == [{"n": "1|2"}]


def test_captions_that_are_records_in_parquet(tmp_path: Path) -> None:
    captions_of = [[{"raw": "a dog", "tokens": ["a"]}, {"raw": "one dog", "tokens": []}]]
    table = pa.table({"image": [{"bytes": png(), "path": None}], "sentences": captions_of})
    pq.write_table(table, tmp_path / "t.parquet")
    source = open_pairs(str(tmp_path / "t.parquet"), caption_column="sentences")
    assert captions(source) == ["a dog", "one dog"]


@pytest.mark.parametrize(
    ("caption", "expected"), [({"text": "a dog", "lang": "en"}, ["a dog"]), ({"en": "a dog"}, [])]
)
def test_names_in_a_map_are_no_captions(
    tmp_path: Path, caption: dict[str, str], expected: list[str]
) -> None:
    column = pa.array([list(caption.items()), None], pa.map_(pa.string(), pa.string()))
    pq.write_table(pa.table({"image": [png()] * 2, "caption": column}), tmp_path / "t.parquet")
    assert captions(tmp_path / "t.parquet") == expected
    assert set(reasons(tmp_path / "t.parquet")) == {"missing caption"}


def test_what_was_expected_is_named(tmp_path: Path) -> None:
    def refused(where: str, match: str) -> None:
        with pytest.raises(UserError, match=match):
            open_pairs(f"{tmp_path}/{where}")

    (tmp_path / "empty").mkdir()
    refused("empty", "no metadata.jsonl, .csv or .parquet, no .tar file and no images")
    (tmp_path / "two").mkdir()
    for name in ("a.csv", "b.csv"):
        (tmp_path / "two" / name).write_text("image,caption\nx.png,y\n")
    refused("two", r"2 tables \(a\.csv, b\.csv\); name one of them")
    metadata(tmp_path / "both", "metadata.csv", [{"file_name": "a.png", "text": "x"}])
    metadata(tmp_path / "both", "metadata.jsonl", [{"file_name": "a.png", "text": "x"}])
    refused("both", "keep one of them")
    refused("a{b", "no such file or folder")
    refused("{0..99999999}.tar", "more than 100,000")


def test_what_img2dataset_writes_in_folders(tmp_path: Path) -> None:
    for shard in ("00000", "00001"):
        (tmp_path / shard).mkdir()
        for ending, content in ((".jpg", png()), (".txt", shard.encode()), (".json", b"{}")):
            (tmp_path / shard / f"{shard}0{ending}").write_bytes(content)
        pq.write_table(pa.table({"url": ["u"], "caption": ["x"]}), tmp_path / f"{shard}.parquet")
        (tmp_path / f"{shard}_stats.json").write_text("{}")
    assert captions(tmp_path) == ["00000", "00001"]


@pytest.mark.parametrize("column", ["jpg", "png", "webp", "images"])
def test_a_parquet_column_named_by_its_format(tmp_path: Path, column: str) -> None:
    picture = [{"bytes": png(), "path": None}] if column == "images" else png()
    pq.write_table(
        pa.Table.from_pylist([{column: picture, "caption": "x"}]), tmp_path / "t.parquet"
    )
    assert captions(tmp_path) == ["x"]


def test_phones_photographs_are_listed_as_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(png())
    (tmp_path / "b.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name)
    assert captions(tmp_path) == ["a"]
    assert reasons(tmp_path) == ["unreadable image: HEIC; convert it to JPEG"]


@pytest.mark.parametrize("ending", ["jfif", "jpe", "pgm", "pnm", "j2k", "JPE"])
def test_less_usual_endings_of_pictures(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"a.{ending}").write_bytes(png())
    (tmp_path / "a.txt").write_text("x")
    assert captions(tmp_path) == ["x"]
