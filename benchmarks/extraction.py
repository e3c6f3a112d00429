"""Benchmark of extraction from large photographs, beside open_clip's own loader of image files.

    python -m benchmarks.extraction --out runs/benchmark-extraction.json

JPEG files of several sizes are made from the photographs that ship, enlarged, with the grain that
gives files of usual length. Both sides have as many decoding workers, and encode with a model that
costs next to nothing, as one on a GPU would beside few cores; they take turns. Rows are the medians
of the rounds, with their range.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader

from benchmarks.common import Result, median_row, options, run_sections
from features.embedded.photos import PhotoPairs
from features.encoders.encoder import Encoder
from features.pairs.images import decode_image
from features.pairs.open import open_pairs
from features.store.extract import extract

MEGAPIXELS = (1, 3, 6, 12)
PICTURES, ROUNDS, WORKERS, BATCH = 48, 5, 1, 16
GRAIN = 5.0
"""Standard deviation of the brightness that is added to an enlarged picture, of 255."""
QUALITY = 90
SEPARATOR = "\t"


def write_photographs(folder: Path, megapixels: float, pictures: int, seed: int) -> None:
    """JPEG files of one size with a caption each, listed in `metadata.jsonl` for this project and
    in `pairs.tsv` for open_clip."""
    folder.mkdir(parents=True)
    source, rng = PhotoPairs("heldout"), np.random.default_rng(seed)
    rows = []
    for index in range(pictures):
        small = source.image(index)
        scale = (megapixels * 1e6 / (small.width * small.height)) ** 0.5
        size = (round(small.width * scale), round(small.height * scale))
        large = np.asarray(small.resize(size, Image.Resampling.BICUBIC), np.float32)
        grain = rng.normal(0, GRAIN, (size[1], size[0], 1)).astype(np.float32)
        picture = Image.fromarray((large + grain).clip(0, 255).astype(np.uint8))
        picture.save(folder / f"{index}.jpg", quality=QUALITY)
        caption = " ".join(source.described(index).captions[0].replace('"', "").split())
        rows.append((f"{index}.jpg", caption))
    listed = [json.dumps({"file_name": name, "text": caption}) + "\n" for name, caption in rows]
    (folder / "metadata.jsonl").write_text("".join(listed), encoding="utf-8")
    lines = ["file\tcaption", *(f"{folder / name}\t{caption}" for name, caption in rows)]
    (folder / "pairs.tsv").write_text("\n".join(lines), encoding="utf-8")


def small_encoder(seed: int) -> Encoder:
    """An open_clip model of 224 pixels and few, random weights, with open_clip's own transform and
    tokenizer."""
    import open_clip

    torch.manual_seed(seed)
    vision = open_clip.CLIPVisionCfg(layers=1, width=64, head_width=64, patch_size=32)
    text = open_clip.CLIPTextCfg(layers=1, width=64, heads=1)
    model = open_clip.CLIP(64, vision, text)
    transform = open_clip.image_transform(224, is_train=False)
    return Encoder("small", model, transform, open_clip.SimpleTokenizer())


def extract_ours(encoder: Encoder, folder: Path, workers: int = WORKERS) -> None:
    """Embeddings of a folder's pairs, by `extract`."""
    with tempfile.TemporaryDirectory() as out:
        extract(
            open_pairs(str(folder)),
            encoder,
            Path(out) / "store",
            batch_size=BATCH,
            workers=workers,
            progress=False,
        )


def extract_theirs(encoder: Encoder, folder: Path, workers: int = WORKERS) -> None:
    """Embeddings of a folder's pairs, by open_clip's data set of image files."""
    from open_clip_train.data import CsvDataset

    pairs = CsvDataset(
        str(folder / "pairs.tsv"),
        encoder.preprocess,
        img_key="file",
        caption_key="caption",
        sep=SEPARATOR,
        tokenizer=encoder.tokenizer,
    )
    found = [
        (encoder.encode_image_tensors(images).half(), encoder.encode_token_tensors(texts).half())
        for images, texts in DataLoader(pairs, BATCH, num_workers=workers)
    ]
    assert sum(len(images) for images, _ in found) == len(pairs)


SIDES: dict[str, Callable[[Encoder, Path], None]] = {
    "ours": extract_ours,
    "open_clip": extract_theirs,
}


def ratio_rows(work: Path, seed: int) -> list[Result]:
    """Seconds of open_clip's loader over ours by size, and over all sizes together; pairs a second
    of both."""
    encoder = small_encoder(seed)
    folders = {size: work / f"{size}mp" for size in MEGAPIXELS}
    for size, folder in folders.items():
        write_photographs(folder, size, PICTURES, seed)
    for side in SIDES.values():
        side(encoder, folders[MEGAPIXELS[0]])  # warms up
    seconds: dict[tuple[str, int], list[float]]
    seconds = {(name, size): [] for name in SIDES for size in MEGAPIXELS}
    for turn in range(ROUNDS):
        for size, folder in folders.items():
            for name in sorted(SIDES, reverse=turn % 2 == 1):
                start = time.perf_counter()
                SIDES[name](encoder, folder)
                seconds[name, size].append(time.perf_counter() - start)
    ratios = {
        size: np.divide(seconds["open_clip", size], seconds["ours", size]) for size in folders
    }
    sums = {name: np.sum([seconds[name, size] for size in folders], axis=0) for name in SIDES}
    rows = [
        median_row("extract/photos_ratio", (sums["open_clip"] / sums["ours"]).tolist(), "ratio")
    ]
    for size in folders:
        rows.append(median_row(f"extract/photos_ratio_{size}mp", ratios[size].tolist(), "ratio"))
    for name, size in seconds:
        speeds = [PICTURES / each for each in seconds[name, size]]
        rows.append(median_row(f"extract/photos_per_s_{size}mp/{name}", speeds, "pairs/s"))
    return rows


def likeness_rows(work: Path, seed: int) -> list[Result]:
    """Cosines of the `photos` encoder's embeddings between pictures decoded at a scale and whole:
    the mean, with the least and the greatest beside it."""
    from features.encoders.load import load_encoder

    encoder = load_encoder("photos", device="cpu")
    rows = []
    for size in MEGAPIXELS:
        files = [path.read_bytes() for path in sorted((work / f"{size}mp").glob("*.jpg"))]
        side = encoder.preprocessing.short_side
        scaled = encoder.encode_images([decode_image(file, side) for file in files])
        whole = encoder.encode_images([decode_image(file) for file in files])
        cosines = F.cosine_similarity(scaled, whole)
        low, high = float(cosines.min()), float(cosines.max())
        name = f"extract/photos_cosine_{size}mp"
        rows.append(Result(name, float(cosines.mean()), low, high, len(files), "cosine"))
    return rows


def peak_rows(work: Path, seed: int) -> list[Result]:
    """Peak memory of each side with its workers on the largest pictures, each in a process of its
    own that holds the libraries and the model."""
    folder = work / f"{MEGAPIXELS[-1]}mp"
    rows = []
    for name in SIDES:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            peak = pool.submit(_peak_mib, name, folder, seed).result()
        rows.append(median_row(f"extract/photos_peak_mib/{name}", [peak], "MiB"))
    return rows


def _peak_mib(name: str, folder: Path, seed: int) -> float:
    encoder = small_encoder(seed)
    peaks = [0.0]

    def watch() -> None:
        while True:
            peaks[0] = max(peaks[0], _family_mib())
            time.sleep(0.05)

    threading.Thread(target=watch, daemon=True).start()
    SIDES[name](encoder, folder)
    return peaks[0]


def _family_mib() -> float:
    """Memory that this process and those that it started hold of their own; what they share counts
    once."""
    total = 0
    tasks = Path("/proc/self/task").glob("*/children")
    for process in [os.getpid(), *(int(p) for task in tasks for p in task.read_text().split())]:
        try:
            status = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:  # it has ended
            continue
        found = re.search(r"Pss_Anon:\s+(\d+) kB", status)
        total += int(found[1]) if found else 0
    return total / 1024


SECTIONS = {"ratio": ratio_rows, "cosine": likeness_rows, "peak": peak_rows}


def main() -> None:
    arguments = options(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        sections = [lambda rows=rows: rows(work, arguments.seed) for rows in SECTIONS.values()]
        run_sections(sections, arguments.out, seed=arguments.seed)


if __name__ == "__main__":
    main()
