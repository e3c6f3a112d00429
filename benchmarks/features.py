"""Benchmark of the core: encoders, extraction, planted ground truth, the command line.

    python -m benchmarks.features --out runs/benchmark-features.json

Retrieval, zero-shot and probes are on the held-out combinations. Planted ground truth: a
dictionary is fitted on the training pairs; alignment and MDS are measured on held-out pairs only,
each under several draws of the planted factors.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.common import Result, print_results, write_results
from benchmarks.planted import align
from features.dictionary import TrainConfig, fit_dictionary
from features.dominance import DominanceStatistics
from features.embedded import ENCODER_NAMES
from features.embedded.world import EmbeddedPairs
from features.encoder import Encoder, load_encoder
from features.evaluate import embed_pairs, evaluate_encoder
from features.extract import extract
from features.intervals import bootstrap_interval
from features.pairs import open_pairs

HELD_OUT_DRAWS = range(1, 9)
MIN_PAIRS = 10


def encoder_rows(encoders: dict[str, Encoder], seed: int) -> list[Result]:
    """Retrieval, zero-shot and probes of each encoder. Without the encoder's name as a prefix:
    probes for planted factors of `embedded-ssl`, on which the planted truth stands, and the rest
    of `embedded`."""
    rows = []
    for name, encoder in encoders.items():
        for measure, hits in evaluate_encoder(encoder).items():
            plain = "embedded-ssl" if measure.startswith("probe/") else "embedded"
            row = measure if name == plain else f"{name}/{measure}"
            low, high = bootstrap_interval(hits.astype(float), seed=seed)
            rows.append(Result(row, float(hits.mean()), low, high, len(hits), "share"))
    return rows


def planted_rows(encoder: Encoder, work: Path, seed: int) -> list[Result]:
    """Does MDS tell features of vision-only factors from those of text-only ones?"""
    store = extract(EmbeddedPairs("train"), encoder, work / "train", progress=False)
    dictionary = fit_dictionary(store, TrainConfig(seed=seed), work / "dictionary", progress=False)
    draws = [embed_pairs(encoder, EmbeddedPairs("heldout", draw)) for draw in HELD_OUT_DRAWS]
    attributes = [a for _, _, draw_attributes in draws for a in draw_attributes]
    statistics_ = DominanceStatistics(dictionary.config.features, seed=seed)
    activations: dict[str, list[np.ndarray]] = {"image": [], "text": []}
    with torch.no_grad():
        for images, texts, _ in draws:
            image = dictionary.encode(F.normalize(images, dim=-1), "image")  # [n, features]
            text = dictionary.encode(F.normalize(texts, dim=-1), "text")  # [n, features]
            statistics_.update(image, text)
            activations["image"].append(image.numpy())
            activations["text"].append(text.numpy())
    mds = np.asarray(statistics_.scores(min_pairs=MIN_PAIRS).mds)
    alignment = align(
        np.concatenate(activations["image"]), np.concatenate(activations["text"]), attributes
    )
    scored = np.isfinite(mds)
    vision, text_only = alignment.vision_only & scored, alignment.text_only & scored
    rows = [auroc_row(mds[vision], mds[text_only], seed)]
    for name, group in (("vision_only", vision), ("text_only", text_only)):
        low, high = bootstrap_interval(mds[group], seed=seed)
        mean = float(mds[group].mean()) if group.any() else math.nan
        rows.append(Result(f"planted/mds/{name}", mean, low, high, int(group.sum()), "MDS"))
    return rows


def auroc_row(vision: np.ndarray, text: np.ndarray, seed: int, replicates: int = 1000) -> Result:
    """AUROC of MDS for vision-only against text-only features, with a bootstrap over features
    within each group; NaN where a group is empty."""
    from sklearn.metrics import roc_auc_score

    n = len(vision) + len(text)
    if len(vision) == 0 or len(text) == 0:
        return Result("planted/auroc", math.nan, math.nan, math.nan, n, "AUROC")
    truth = np.repeat([1, 0], [len(vision), len(text)])
    rng = np.random.default_rng(seed)
    draws = [
        roc_auc_score(
            truth, np.concatenate([rng.choice(group, len(group)) for group in (vision, text)])
        )
        for _ in range(replicates)
    ]
    low, high = np.quantile(draws, [0.025, 0.975])
    auroc = float(roc_auc_score(truth, np.concatenate([vision, text])))
    return Result("planted/auroc", auroc, float(low), float(high), n, "AUROC")


def extraction_row(encoder: Encoder, work: Path, repeats: int = 5) -> Result:
    """Pairs a second of a whole extraction from PNG files over the bare encoder on preloaded
    tensors, in turns; the median of the ratios, and their range as the interval."""
    source = EmbeddedPairs()
    pairs = [source.pair(index) for index in range(source.total())]
    folder = work / "imagefolder"
    write_imagefolder(pairs, folder)
    pixels = torch.stack([encoder.preprocess(pair.image) for pair in pairs])
    tokens = encoder.tokenize([pair.captions[0] for pair in pairs])
    ratios = []
    for repeat in range(repeats):
        start = time.perf_counter()
        for first in range(0, len(pairs), 256):
            encoder.encode_image_tensors(pixels[first : first + 256])
            encoder.encode_token_tensors(tokens[first : first + 256])
        bare = time.perf_counter() - start
        start = time.perf_counter()
        extract(open_pairs(str(folder)), encoder, work / f"store-{repeat}", progress=False)
        ratios.append(bare / (time.perf_counter() - start))
    return Result(
        "extract/ratio", statistics.median(ratios), min(ratios), max(ratios), repeats, "ratio"
    )


def write_imagefolder(pairs: list, folder: Path) -> None:
    """Write pairs as PNG files with a `metadata.jsonl`."""
    import json

    (folder / "images").mkdir(parents=True)
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as metadata:
        for pair in pairs:
            pair.image.save(folder / "images" / f"{pair.id}.png")
            row = {"file_name": f"images/{pair.id}.png", "text": pair.captions[0]}
            metadata.write(json.dumps(row) + "\n")


def help_row(repeats: int = 5) -> Result:
    """Seconds that `mms --help` takes."""
    command = [str(Path(sys.executable).with_name("mms")), "--help"]
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    middle = statistics.median(seconds)
    return Result("cli/help_seconds", middle, min(seconds), max(seconds), repeats, "s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    encoders = {name: load_encoder(name, device=arguments.device) for name in ENCODER_NAMES}
    results = encoder_rows(encoders, arguments.seed)
    with tempfile.TemporaryDirectory() as work:
        results += planted_rows(encoders["embedded-ssl"], Path(work), arguments.seed)
        results.append(extraction_row(encoders["embedded"], Path(work)))
    results.append(help_row())
    print_results(results)
    write_results(arguments.out, results, seed=arguments.seed)


if __name__ == "__main__":
    main()
