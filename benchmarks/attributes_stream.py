"""Seconds and peak memory of predicting a store, in a process of its own.

python -m benchmarks.attributes_stream --pairs 1000000 --out runs/stream
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import PeakMemory, Result
from features.space.space import FeatureSpace
from features.store.store import ActivationStore, StoreConfig
from features.store.write import finish_store, sample_table, write_part
from mms_apps.attributes.labels import Samples
from mms_apps.attributes.model import fit_model
from mms_apps.attributes.predict import write_predictions

MILLION = 1_000_000
SMALL = 100_000
PART = 50_000


def stream_rows(work: Path, seed: int) -> list[Result]:
    """Seconds and peak memory of predicting a small and a large store, each in a process of its
    own."""
    rows = []
    for pairs in (SMALL, MILLION):
        command = [sys.executable, "-m", "benchmarks.attributes_stream", "--pairs", str(pairs)]
        command += ["--out", str(work / f"stream-{pairs}"), "--seed", str(seed)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        for measure, unit in (("seconds", "s"), ("peak_memory", "MiB")):
            value = found[measure]
            rows.append(Result(f"stream/{pairs}/{measure}", value, value, value, 1, unit))
    return rows


def stream(pairs: int, work: Path, seed: int) -> None:
    """Predict random embeddings with a sparse probe's weights; print seconds and peak memory."""
    space = FeatureSpace.load("embedded", device="cpu")
    generator = torch.Generator().manual_seed(seed)
    work.mkdir(parents=True, exist_ok=True)
    starts = range(0, pairs, PART)
    for index, start in enumerate(starts):
        rows = min(PART, pairs - start)
        x = torch.randn(rows, space.dictionary.config.dim, generator=generator)
        x = torch.nn.functional.normalize(x, dim=-1)
        names = [str(start + i) for i in range(rows)]
        write_part(work, index, x, x, sample_table(names, [["a"]] * rows), [])
    config = StoreConfig(
        encoder=space.config.encoder,
        encoder_fingerprint=space.config.encoder_fingerprint,
        pairs="random",
        pairs_fingerprint=str(seed),
        dim=space.dictionary.config.dim,
    )
    finish_store(work, config, len(starts))
    samples = Samples(x[:1000], np.arange(1000), {"side": np.where(x[:1000, 0] > 0, "a", "b")})
    model = fit_model(space, samples, "side", ["a", "b"], "sparse_probe", seed=seed)
    store = ActivationStore.open(work)
    memory = PeakMemory()
    memory.start()
    began = time.perf_counter()
    summary = write_predictions(model, store, work / "predictions.csv")
    seconds = time.perf_counter() - began
    assert summary.pairs == pairs
    print(json.dumps({"seconds": seconds, "peak_memory": memory.peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the store")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    stream(arguments.pairs, arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
