import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from features.errors import UserError
from features.pairs.base import Pair, PairSource, Skipped
from features.pairs.images import UnreadableImage, decode_image
from features.pairs.open import open_pairs
from tests.conftest import draw_imagefolder


def png(colour: str | tuple[int, ...] = "red", mode: str = "RGB", size: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (size, size), colour).save(file, "PNG")
    return file.getvalue()


def read(source: PairSource) -> list[Pair | Skipped]:
    return [record for part in source.parts() for record in source.read(part)]


def summary(source: PairSource) -> list[tuple]:
    """What must be equal for the same pairs in any layout."""
    return [
        (pair.captions, pair.attributes, pair.image.tobytes())
        for pair in read(source)
        if isinstance(pair, Pair)
    ]


def test_imagefolder(imagefolder: Path) -> None:
    source = open_pairs(str(imagefolder))
    pairs = read(source)
    assert summary(open_pairs(imagefolder)) == summary(source), "a Path is as good as its name"
    assert source.name == "shapes"
    assert source.total() == len(pairs) == 40
    first = pairs[0]
    assert isinstance(first, Pair)
    assert first.image.mode == "RGB"
    assert len(first.captions) == 2
    assert first.attributes["shape"] is None
    colour = first.attributes["colour"]
    assert first.attributes["tags"].startswith(f"{colour}|")
    found = dict(source.images([first.location, "images/none.png"]))
    assert list(found) == [first.location]
    assert found[first.location].tobytes() == first.image.tobytes()


def test_attributes_are_looked_for_in_all_pairs_until_each_was_seen(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    lines = [{"file_name": "a.png", "text": f"text {place}"} for place in range(1100)]
    lines[-1]["mood"] = "good"
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = open_pairs(str(tmp_path / "pairs.jsonl"))
    source.require_attributes(["mood"])
    source.require_attributes([])
    with pytest.raises(UserError, match=r"moods: .*no such attribute; they have mood"):
        source.require_attributes(["mood", "moods"])


def test_parts_and_index_over_several_parts(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    for name, header, line in (
        ("list.csv", "image,caption\n", 'a.png,"two\nlines, é {i}"\n\n'),
        ("list.jsonl", "\n", '{{"image": "a.png", "text": "é {i}"}}\n\n'),
    ):
        content = header + "".join(line.format(i=i) for i in range(1030))
        (tmp_path / name).write_text(content, encoding="utf-8")
        source = open_pairs(str(tmp_path / name))
        assert [(part.start, part.stop) for part in source.parts()] == [
            (0, 512),
            (512, 1024),
            (1024, 1030),
        ]
        last = list(source.read(source.parts()[2]))
        assert [pair.captions[0].split()[-1] for pair in last] == [
            str(i) for i in range(1024, 1030)
        ]


def test_all_layouts_give_the_same_pairs(imagefolder: Path, tmp_path: Path) -> None:
    records = [json.loads(line) for line in (imagefolder / "metadata.jsonl").open()]
    images = [(imagefolder / record["file_name"]).read_bytes() for record in records]
    for record in records:
        record["caption"] = record.pop("text")
        record["caption"] = (
            [record["caption"]] if isinstance(record["caption"], str) else record["caption"]
        )
    expected = summary(open_pairs(str(imagefolder)))

    columns = {key: [record[key] for record in records] for key in records[0]}
    columns["image"] = [{"bytes": image, "path": "x.png"} for image in images]
    del columns["file_name"]
    pq.write_table(pa.table(columns), tmp_path / "struct.parquet", row_group_size=7)
    columns["image"] = images
    pq.write_table(pa.table(columns), tmp_path / "bytes.parquet", row_group_size=100)
    for name in ("struct.parquet", "bytes.parquet"):
        source = open_pairs(str(tmp_path / name))
        assert summary(source) == expected
        found = dict(source.images(["39", "3", "99"]))
        assert set(found) == {"3", "39"}
        assert found["39"].tobytes() == expected[39][2]

    for shard in range(2):
        with tarfile.open(tmp_path / f"pairs-{shard}.tar", "w") as tar:
            for index in range(20 * shard, 20 * shard + 20):
                record = records[index]
                attributes = {k: record[k] for k in ("colour", "shape")}
                described = {
                    "captions": record["caption"],
                    "attributes": attributes,
                    "tags": record["tags"],
                }
                for ending, content in (
                    ("png", images[index]),
                    ("json", json.dumps(described).encode()),
                ):
                    info = tarfile.TarInfo(f"{index:04d}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    unordered = [(c, sorted(a.items(), key=str), i) for c, a, i in expected]
    for spec in ("", "/pairs-*.tar", "/pairs-{0..1}.tar"):
        source = open_pairs(f"{tmp_path}{spec}")
        assert [(c, sorted(a.items(), key=str), i) for c, a, i in summary(source)] == unordered
        assert [part.name for part in source.parts()] == ["pairs-0.tar", "pairs-1.tar"]
        assert source.total() is None
        assert (
            dict(source.images(["pairs-1.tar/0030"]))["pairs-1.tar/0030"].tobytes()
            == expected[30][2]
        )


def test_csv_and_tsv_keep_attributes(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(png())
    for name, tab in (("l.csv", ","), ("l.tsv", "\t"), ("tabs.csv", "\t")):
        text = tab.join(["filepath", "title", "mood"]) + "\n" + tab.join(["images/a.png", "x", "y"])
        (tmp_path / name).write_text("\ufeff" + text)
        (pair,) = read(open_pairs(str(tmp_path / name)))
        assert pair.captions == ("x",)
        assert pair.attributes == {"mood": "y"}
        assert pair.location == "images/a.png"


def test_tar_txt_caption_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in (
            ("a.png", png()),
            ("a.txt", b"hello\n"),
            ("b.png", png()),
            ("c.txt", b"alone"),
            ("d.jpg", png()[:45]),
            ("d.txt", b"cut"),
            ("e.png", png()),
            ("e.txt", b"end" * 5000),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    records = read(open_pairs(str(path)))
    assert records[0].id == "a" and records[0].captions == ("hello",)
    reasons = [record.reason.split(":")[0] for record in records if isinstance(record, Skipped)]
    assert reasons == ["missing caption", "missing image file", "truncated image or damaged"]
    path.write_bytes(path.read_bytes()[:-14_000])
    last = read(open_pairs(str(path)))[-1]
    assert isinstance(last, Skipped) and last.reason.startswith("unreadable tar")
    assert str(tmp_path) not in last.reason


def test_bad_records_are_skipped_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(png())
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:5000])
    (tmp_path / "text.png").write_text("no image")
    lines = [
        '{"file_name": "good.png", "text": " ok "}',
        '{"file_name": "cut.png", "text": "x"}',
        '{"file_name": "text.png", "text": "x"}',
        '{"file_name": "none.png", "text": "x"}',
        '{"file_name": "good.png", "text": "  "}',
        '{"file_name": "good.png"}',
        '{"file_name": "good.png", ',
        '{"text": "x"}',
        "[]",
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    records = read(open_pairs(str(tmp_path)))
    assert isinstance(records[0], Pair) and records[0].captions == ("ok",)
    assert all(isinstance(record, Skipped) for record in records[1:])
    reasons = [record.reason.split(":")[0] for record in records[1:]]
    assert reasons == [
        "truncated image or damaged",
        "unreadable image",
        "missing image file",
        "missing caption",
        "missing caption",
        "unreadable metadata row",
        "missing image file",
        "unreadable metadata row",
    ]


def test_decompression_bomb(monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(UnreadableImage, match="too large"):
        decode_image(png())


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
        ("LA", (0, 0), (255, 255, 255)),
        ("L", 7, (7, 7, 7)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 0x8000, (128, 128, 128)),
    ],
)
def test_modes_become_rgb_on_white(mode: str, colour, expected) -> None:
    image = decode_image(png(colour, mode))
    assert image.mode == "RGB"
    assert image.getpixel((3, 3)) == expected


def test_palette_and_key_colour_transparency() -> None:
    for mode, key in (("P", 0), ("RGB", (0, 0, 0))):
        file = io.BytesIO()
        Image.new(mode, (4, 4)).save(file, "PNG", transparency=key)
        assert decode_image(file.getvalue()).getpixel((0, 0)) == (255, 255, 255)


def test_fingerprint_follows_metadata_and_sizes(tmp_path: Path) -> None:
    first, second = (draw_imagefolder(tmp_path / name, 5) for name in "ab")
    prints = [open_pairs(str(folder)).fingerprint() for folder in (first, second)]
    assert prints[0] == prints[1]
    (second / "images/0003.png").write_bytes(png())
    assert open_pairs(str(second)).fingerprint() != prints[0]


def test_user_errors_name_the_cause(tmp_path: Path) -> None:
    def refused(path: Path, match: str) -> None:
        with pytest.raises(UserError, match=match):
            open_pairs(str(path))

    refused(tmp_path, "no metadata.jsonl, .csv or .parquet, no .tar file and no images")
    refused(tmp_path / "none", "no such file or folder")
    refused(tmp_path / "none-*.tar", "no such file or folder")
    (tmp_path / "x.zip").write_text("")
    refused(tmp_path / "x.zip", "unknown format")
    (tmp_path / "x.csv").write_text("image,words\na.png,b\n")
    refused(tmp_path / "x.csv", "no caption column among image, words")
    (tmp_path / "y.csv").write_text("picture,caption\na.png,b\n")
    refused(tmp_path / "y.csv", "no image column among picture, caption")
    (tmp_path / "e.csv").write_text("")
    refused(tmp_path / "e.csv", "no records")
    (tmp_path / "x.parquet").write_text("no")
    refused(tmp_path / "x.parquet", "parquet")
    pq.write_table(pa.table({"image": [b""]}), tmp_path / "y.parquet")
    refused(tmp_path / "y.parquet", "no caption column")
    (tmp_path / "metadata.jsonl").write_text("")
    refused(tmp_path, "no records")


def test_importing_needs_no_torch() -> None:
    code = "import sys, features.pairs.open; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
