"""Repack the emoji imagefolder into `emoji.parquet` and fix its held-out combinations.

    python -m features.embedded.build_pairs --source path/to/emoji

A combination is role x gender x skin tone. About a quarter of the combinations that have all
three (gender man, woman or person; one of five tones) is held out, drawn by a seed, so that
every role keeps, among its training pairs, every gender and every tone that it has.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from features.embedded import EMOJI

SEED = 20
HELD_OUT_SHARE = 0.27
WEBP_QUALITY = 95
GENDERS = ("man", "woman", "person")
SKIN_TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
GENDER_WORDS = re.compile(r"\b(wo)?m[ae]n\b|\bpe(rson|ople)\b")
TONE_WORDS = re.compile(r"\b(medium-)?(light|medium|dark) skin tone\b")


def role_of(name: str) -> str:
    """The name without its words for gender, skin tone and direction.

    >>> role_of("woman walking: dark skin tone, facing right")
    'walking'
    """
    role = GENDER_WORDS.sub("", TONE_WORDS.sub("", name.replace("facing right", "")))
    return " ".join(re.sub(r"[:,]", " ", role).split()) or "adult"


def held_out_combinations(rows: list[dict]) -> set[tuple[str, str, str]]:
    """Draw the held-out (role, gender, skin tone) combinations."""
    combinations = sorted(
        {
            (row["role"], row["gender"], row["skin_tone"])
            for row in rows
            if row["gender"] in GENDERS and row["skin_tone"] in SKIN_TONES
        }
    )
    by_gender = Counter((role, gender) for role, gender, _ in combinations)
    by_tone = Counter((role, tone) for role, _, tone in combinations)
    order = combinations.copy()
    random.Random(SEED).shuffle(order)
    held_out: set[tuple[str, str, str]] = set()
    for role, gender, tone in order:
        if len(held_out) >= HELD_OUT_SHARE * len(combinations):
            break
        if by_gender[role, gender] > 1 and by_tone[role, tone] > 1:
            by_gender[role, gender] -= 1
            by_tone[role, tone] -= 1
            held_out.add((role, gender, tone))
    return held_out


def build(source: Path, out: Path) -> None:
    """Write `out` from the imagefolder `source` (`metadata.jsonl` and its images)."""
    lines = (source / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        row["role"] = role_of(row["text"])
    held_out = held_out_combinations(rows)
    for row in rows:
        row["id"] = Path(row.pop("file_name")).stem
        combination = (row["role"], row["gender"], row["skin_tone"])
        row["split"] = "heldout" if combination in held_out else "train"
        webp = io.BytesIO()
        with Image.open(source / "images" / f"{row['id']}.png") as image:
            image.convert("RGBA").save(webp, "WEBP", quality=WEBP_QUALITY, method=6)
        row["image"] = webp.getvalue()
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, out, compression="zstd")
    count = sum(row["split"] == "heldout" for row in rows)
    print(f"{len(rows)} pairs, {count} held out, {out.stat().st_size / 1e6:.1f} MB -> {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=EMOJI)
    arguments = parser.parse_args()
    build(arguments.source, arguments.out)
