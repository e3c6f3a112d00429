"""Whatever comes, the outcome is pairs, counted skips with reasons, or one UserError, and no file
is touched."""

from __future__ import annotations

import io
import json
import random
import tarfile
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.errors import UserError
from features.pairs.base import Pair, Skipped
from features.pairs.open import open_pairs
from tests.pairs.reading import png

PNG = png()
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
NAMES = st.sampled_from(
    ["a.png", "b.png", "none.png", "/dev/zero", "..", "", ".", "a.png\0", "pipe:touch x", "A.PNG"]
)
COLUMNS = st.sampled_from(
    ["image", "file_name", "caption", "text", "id", "tags", "attributes", "mood", "", "IMAGE"]
)
TEXT = st.one_of(
    st.text(max_size=12),
    st.text("\",;\t|\n\r\\ 'é\ufeff\ud800\0x", max_size=12),
    st.sampled_from(["a dog", '"', '""', '"open', 'shut"', "x,y", "\u202e", "\U0001f600", "ก"]),
)
SCALAR = st.one_of(
    TEXT, NAMES, st.none(), st.booleans(), st.integers(), st.floats(), st.binary(max_size=4)
)
VALUE = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(COLUMNS, inner, max_size=3)
)


def outcome(spec: Path, **options: object) -> int:
    """Read all, and see that nothing but the allowed comes out; the number of records."""
    before = sorted((p, p.stat().st_size) for p in spec.parent.rglob("*"))
    count = 0
    try:
        source = open_pairs(str(spec), **options)  # type: ignore[arg-type]
        source.fingerprint()
        locations = []
        for part in source.parts():
            for record in source.read(part):
                count += 1
                record.id.encode()
                record.location.encode()
                if isinstance(record, Skipped):
                    assert record.reason.partition(":")[0]
                    record.reason.encode()
                else:
                    assert isinstance(record, Pair) and record.image.mode == "RGB"
                    json.dumps(record.attributes).encode()
                    for text in (*record.captions, *record.attributes):
                        text.encode()
                    locations.append(record.location)
        assert dict(source.images(locations)).keys() == set(locations)
    except UserError as error:
        assert str(error).strip()
    assert sorted((p, p.stat().st_size) for p in spec.parent.rglob("*")) == before
    return count


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as name:
        for image in ("a.png", "b.png"):
            Path(name, image).write_bytes(PNG)
        yield Path(name)


ROW = st.lists(st.one_of(TEXT, NAMES), max_size=4)


@QUICK
@given(
    header=st.lists(COLUMNS, max_size=4),
    rows=st.lists(ROW, max_size=6),
    delimiter=st.sampled_from([",", "\t", ";", "|", " "]),
    ending=st.sampled_from(["\n", "\r\n", "\r", "\n\n"]),
    encoding=st.sampled_from(["utf-8", "utf-16", "latin-1", "shift-jis", "utf-8-sig"]),
)
def test_tables(folder: Path, header, rows, delimiter, ending, encoding) -> None:
    text = ending.join(delimiter.join(row) for row in [header, *rows])
    path = folder / "t.csv"
    path.write_bytes(text.encode(encoding, errors="replace"))
    outcome(path)


@QUICK
@given(content=st.binary(max_size=200), name=st.sampled_from(["t.csv", "t.tsv", "t.jsonl"]))
def test_any_bytes_as_a_table(folder: Path, content: bytes, name: str) -> None:
    for start in (b"", b"image,caption\na.png,", b'{"image": "a.png", "caption": "'):
        (folder / name).write_bytes(start + content)
        outcome(folder / name)


@QUICK
@given(rows=st.lists(st.dictionaries(COLUMNS, VALUE, max_size=5), min_size=1, max_size=5))
def test_json_lines(folder: Path, rows) -> None:
    lines = [json.dumps(row, default=lambda value: value.hex()) for row in rows]
    good = json.dumps({"image": "a.png", "caption": "good"})
    (folder / "t.jsonl").write_text("\n".join([good, *lines]))
    assert outcome(folder / "t.jsonl") in (0, 1 + len(rows))
    for line in lines:
        (folder / "t.jsonl").write_text(line)
        outcome(folder / "t.jsonl", captions_needed=False)


IMAGE = st.one_of(
    st.just(PNG),
    st.binary(max_size=64),
    st.integers(0, len(PNG) - 1).map(lambda cut: PNG[:cut]),
    st.tuples(st.integers(0, len(PNG) - 1), st.integers(0, 255)).map(
        lambda change: PNG[: change[0]] + bytes([change[1]]) + PNG[change[0] + 1 :]
    ),
)
MEMBER = st.sampled_from(
    [
        "a.png",
        "a.txt",
        "a.json",
        "b.1.png",
        "b.1.txt",
        "b.2.png",
        "../up.png",
        "/abs.png",
        "x",
        ".png",
    ]
)


@QUICK
@given(
    members=st.lists(st.tuples(MEMBER, IMAGE), max_size=6),
    cut=st.integers(0, 4000),
    damage=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=4),
)
def test_archives(folder: Path, members, cut: int, damage) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    content = bytearray(file.getvalue())
    for place, byte in damage:
        content[place % len(content)] = byte
    (folder / "t.tar").write_bytes(content[: len(content) - cut])
    outcome(folder / "t.tar")


@QUICK
@given(
    images=st.lists(st.one_of(IMAGE, st.none()), min_size=1, max_size=4),
    texts=st.lists(TEXT.filter(lambda t: "\ud800" not in t), min_size=4, max_size=4),
    listed=st.booleans(),
    flips=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=3),
)
def test_parquet(folder: Path, images, texts, listed: bool, flips) -> None:
    captions = texts[: len(images)]
    table = pa.table({"image": images, "text": [[t] for t in captions] if listed else captions})
    if table.schema.field("image").type == pa.null():
        table = table.set_column(0, "image", pa.array(images, pa.binary()))
    pq.write_table(table, folder / "t.parquet", row_group_size=2)
    assert outcome(folder / "t.parquet") == len(images)
    content = bytearray((folder / "t.parquet").read_bytes())
    for place, byte in flips:
        content[4 + place % (len(content) - 8)] = byte
    (folder / "t.parquet").write_bytes(content)
    outcome(folder / "t.parquet")


@pytest.mark.parametrize("seed", [1, 2, 4])
def test_parquets_that_contradict_themselves_end_no_process(folder: Path, seed: int) -> None:
    """Each seed has a footer of which pyarrow's metadata, when asked, ends the process."""
    table = pa.table({"image": [b"\x89PNGxxxx"] * 3, "text": ["a dog", "b", "c"]})
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=2)
    whole = file.getvalue()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    rng = random.Random(seed)
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            content[rng.randrange(footer, len(whole) - 8)] = rng.randrange(256)
        (folder / "t.parquet").write_bytes(content)
        outcome(folder / "t.parquet")


@QUICK
@given(content=IMAGE)
def test_images(folder: Path, content: bytes) -> None:
    (folder / "f").mkdir(exist_ok=True)
    (folder / "f/x.png").write_bytes(content)
    (folder / "f/x.txt").write_text("x")
    assert outcome(folder / "f") == 1
