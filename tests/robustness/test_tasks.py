"""Tasks are drawn over the whole of a source."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.encoders.load import load_encoder
from features.errors import UserError
from mms_apps.robustness.tasks import load_task
from tests.pairs.reading import png, write_tar

LABELS = ("cat", "dog", "eel", "fox")
EACH = 600


def sorted_source(folder: Path, layout: str) -> str:
    """Pairs sorted by their label, in several parts."""
    colours = {label: png((60 * place, 0, 0)) for place, label in enumerate(LABELS)}
    rows = [label for label in LABELS for _ in range(EACH)]
    for label, content in colours.items():
        (folder / f"{label}.png").write_bytes(content)
    if layout == "csv":
        lines = [f"{label}.png,a {label},{label}" for label in rows]
        (folder / "t.csv").write_text("\n".join(["image,caption,label", *lines]))
        return str(folder / "t.csv")
    if layout == "parquet":
        table = {"image": [colours[r] for r in rows], "text": rows, "label": rows}
        pq.write_table(pa.table(table), folder / "t.parquet", row_group_size=EACH)
        return str(folder / "t.parquet")
    for place, label in enumerate(LABELS):
        record = f'{{"caption": "x", "label": "{label}"}}'.encode()
        files = [
            (f"{i}.{end}", content)
            for i in range(20)
            for end, content in (("png", colours[label]), ("json", record))
        ]
        write_tar(folder / f"{place}.tar", files)
    return f"{folder}/*.tar"


@pytest.mark.parametrize("layout", ["csv", "parquet", "tar"])
def test_sorted_pairs_keep_their_classes(tmp_path: Path, clip_folder: Path, layout: str) -> None:
    encoder = load_encoder(f"local-dir:{clip_folder}", "cpu")
    task = load_task(sorted_source(tmp_path, layout), encoder, label="label", count=40)
    assert task.classes == LABELS
    assert len(task) == 40
    counts = Counter(task.labels.tolist())
    assert len(counts) == 4 and min(counts.values()) >= 3


def test_classes_come_from_the_whole_source_though_few_are_drawn(
    tmp_path: Path, clip_folder: Path
) -> None:
    encoder = load_encoder(f"local-dir:{clip_folder}", "cpu")
    source = sorted_source(tmp_path, "csv")
    for given in (source, Path(source)):
        task = load_task(given, encoder, label="label", count=1)
        assert task.classes == LABELS and len(task) == 1


def test_unreadable_images_are_replaced(tmp_path: Path, clip_folder: Path) -> None:
    encoder = load_encoder(f"local-dir:{clip_folder}", "cpu")
    where = sorted_source(tmp_path, "csv")
    (tmp_path / "fox.png").write_bytes(b"no picture")
    task = load_task(where, encoder, label="label", count=40)
    assert len(task) == 40 and 3 not in task.labels.tolist()
    for label in LABELS:
        (tmp_path / f"{label}.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="could be read"):
        load_task(where, encoder, label="label", count=40)


def test_embedded_skin_tones_leave_out_mixed_ones() -> None:
    encoder = load_encoder("embedded", "cpu")
    task = load_task("embedded", encoder, label="skin_tone", count=10)
    assert len(task.classes) == 5 and "mixed" not in task.classes


@pytest.mark.parametrize(
    ("numbers", "refused"),
    [
        (["1.5", "2", "-3e2", "12", ".5", "70"], True),
        (["1", "1.0", "2", "2", "0", "0.0"], False),
        (["one", "two", "three", "four", "five", "six"], False),
    ],
)
def test_measured_numbers_are_no_classes(
    tmp_path: Path, clip_folder: Path, numbers: list[str], refused: bool
) -> None:
    rows = []
    for place, number in enumerate(numbers):
        (tmp_path / f"{place}.png").write_bytes(png())
        rows.append(f"{place}.png,x,{number}\n")
    path = tmp_path / "t.csv"
    path.write_text("image,caption,price\n" + "".join(rows))
    encoder = load_encoder(f"local-dir:{clip_folder}", "cpu")
    if refused:
        with pytest.raises(UserError, match=r"--label price: 6 different numbers.*--classes"):
            load_task(str(path), encoder, label="price")
        assert (
            load_task(str(path), encoder, label="price", classes=["12", "70"]).labels.numel() == 2
        )
    else:
        load_task(str(path), encoder, label="price")
