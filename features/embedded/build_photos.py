"""Repack the imagefolders of photographs into `photos.parquet` and fix its splits.

    python -m features.embedded.build_photos --source path/to/photos

Of garments at most `GARMENTS` a label are kept, drawn by a seed; of the textbook pictures, 150 are
held out and 250 scored, drawn by the same seed.
"""

from __future__ import annotations

import argparse
import io
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from features.embedded import PHOTOS

SEED = 20
HELD_OUT = 150
SCORED = 250
GARMENTS = 55
WEBP_QUALITY = 62
COLUMNS = (
    "id", "text", "context", "kind", "split", "book", "tags", "label", "kids", "sender", "credit",
    "licence", "source",
)  # fmt: skip
KINDS = {"textbooks": "textbook", "recipes": "dish", "clothing": "garment"}


def garment_text(label: str, kids: str) -> str:
    """A caption from a garment's label.

    >>> garment_text("T-Shirt", "child")
    'a t-shirt for a child'
    """
    article = "an" if label[0] in "AEIOU" else "a"
    return f"{article} {label.lower()} for {'a child' if kids == 'child' else 'an adult'}"


def _rows(source: Path, folder: str) -> list[dict]:
    lines = (source / folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    rows = []
    for line in lines:
        row = json.loads(line)
        row["file"] = source / folder / row.pop("file_name")
        row["id"] = f"{folder}/{row['file'].stem}"
        row["kind"] = KINDS[folder]
        row["tags"] = "|".join(row.get("tags", ()))
        rows.append(row)
    return rows


def build(source: Path, out: Path) -> None:
    """Write `out` from the imagefolders `textbooks`, `recipes` and `clothing` under `source`."""
    rng = random.Random(SEED)
    textbooks = _rows(source, "textbooks")
    rng.shuffle(textbooks)
    for index, row in enumerate(textbooks):
        unseen = "heldout" if index < HELD_OUT else "scored"
        row["split"] = unseen if index < HELD_OUT + SCORED else "train"
    dishes = [row | {"split": "scored"} for row in _rows(source, "recipes")]
    clothing = _rows(source, "clothing")
    rng.shuffle(clothing)
    garments: list[dict] = []
    for row in clothing:
        if sum(kept["label"] == row["label"] for kept in garments) < GARMENTS:
            text = garment_text(row["label"], row["kids"])
            garments.append(row | {"split": "garments", "text": text})
    packed = []
    for row in sorted([*textbooks, *dishes, *garments], key=lambda row: row["id"]):
        webp = io.BytesIO()
        with Image.open(row["file"]) as image:
            image.convert("RGB").save(webp, "WEBP", quality=WEBP_QUALITY, method=6)
        packed.append({name: row.get(name) for name in COLUMNS} | {"image": webp.getvalue()})
    pq.write_table(pa.Table.from_pylist(packed), out, compression="zstd")
    print(f"{len(packed)} pictures, {out.stat().st_size / 1e6:.1f} MB -> {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=PHOTOS)
    arguments = parser.parse_args()
    build(arguments.source, arguments.out)
