"""Benchmark of the core: encoders, planted ground truth, extraction, dictionaries' speed, scoring,
the command line.

    python -m benchmarks.features --out runs/benchmark-features.json

Retrieval, zero-shot, probes and planted ground truth are on the held-out combinations. `--peers`
measures other libraries' speed too (`benchmarks.peers`); `--only` measures some sections.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.common import Result, mean_row, median_row, options, run_sections
from benchmarks.peers import LARGE, ON_GPU, PEERS, speed_rows
from benchmarks.planted import planted_rows
from benchmarks.scale import scale_rows
from features.embedded import ENCODER_NAMES
from features.embedded.evaluate import evaluate_encoder
from features.embedded.world import EmbeddedPairs
from features.encoders.encoder import Encoder
from features.encoders.load import load_encoder
from features.pairs.open import open_pairs
from features.store.extract import extract

SECTIONS = ("encoders", "extraction", "scale", "planted", "speed", "speed_16k", "cli")
WITH_GPU = "speed_cuda"
"""The section that has to be asked for, since it needs an NVIDIA GPU."""


def encoder_rows(encoders: dict[str, Encoder], seed: int) -> list[Result]:
    """Retrieval, zero-shot and probes of each encoder. Without the encoder's name as a prefix:
    probes for planted factors of `embedded-ssl`, on which the planted truth stands, and the rest
    of `embedded`."""
    rows = []
    for name, encoder in encoders.items():
        for measure, hits in evaluate_encoder(encoder).items():
            plain = "embedded-ssl" if measure.startswith("probe/") else "embedded"
            row = measure if name == plain else f"{name}/{measure}"
            rows.append(mean_row(row, hits, "share", seed))
    return rows


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
    return median_row("extract/ratio", ratios, "ratio")


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
    return median_row("cli/help_seconds", seconds, "s")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--peers", help="Python of an environment that holds the other libraries")
    parser.add_argument("--libraries", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--only", nargs="+", choices=(*SECTIONS, WITH_GPU), default=SECTIONS)
    arguments = parser.parse_args()
    if WITH_GPU in arguments.only and not torch.cuda.is_available():
        parser.error(f"--only {WITH_GPU}: there is no NVIDIA GPU here")
    encoders = {name: load_encoder(name, device=arguments.device) for name in ENCODER_NAMES}
    seed = arguments.seed
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        sections: dict[str, Callable[[], list[Result]]] = {
            "encoders": lambda: encoder_rows(encoders, seed),
            "extraction": lambda: [extraction_row(encoders["embedded"], work / "extraction")],
            "scale": lambda: scale_rows(work / "scale", seed),
            "planted": lambda: planted_rows(encoders["embedded-ssl"], work / "planted", seed),
            "speed": lambda: speed_rows(
                arguments.peers, work / "speed", seed, names=arguments.libraries
            ),
            "speed_16k": lambda: speed_rows(
                arguments.peers, work / "speed_16k", seed, LARGE, names=arguments.libraries
            ),
            "cli": lambda: [help_row()],
            WITH_GPU: lambda: [
                row
                for size in ON_GPU
                for row in speed_rows(
                    arguments.peers, work / size.name, seed, size, names=("sparsify",)
                )
            ],
        }
        run_sections([sections[name] for name in arguments.only], arguments.out, seed=seed)


if __name__ == "__main__":
    main()
