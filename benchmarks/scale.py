"""How scoring scales: peak memory against the number of pairs, and closed forms against loops."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.common import Result, median_row
from features.dictionary import DictionaryConfig, TopKDictionary
from features.monosemanticity import MonosemanticityStatistics
from features.space import score
from features.store import ActivationStore, StoreConfig, sample_table, write_store

DIM, FEATURES, K, PAIRS = 128, 512, 16, 20_000
LOOP_PAIRS, LOOP_FEATURES = 600, 4


def scale_rows(work: Path, seed: int) -> list[Result]:
    """`score/peak_ratio_10x` and `score/ms_ratio`."""
    return [peak_row(work, seed), closed_form_row(seed)]


def peak_row(work: Path, seed: int, repeats: int = 3) -> Result:
    """Peak memory of scoring ten times the pairs over that of scoring them once, each in a process
    of its own; what a process needs before it scores is in both."""
    peaks = {}
    for times in (1, 10):
        folder = work / f"store-{times}"
        make_store(folder, PAIRS * times, seed)
        peaks[times] = [_peak(folder) for _ in range(repeats)]
    ratios = [ten / one for one, ten in zip(peaks[1], peaks[10], strict=True)]
    return median_row("score/peak_ratio_10x", ratios, "ratio")


def make_store(folder: Path, pairs: int, seed: int) -> ActivationStore:
    """A store of random embeddings with captions of a few words."""
    generator = torch.Generator().manual_seed(seed)
    image, text = F.normalize(torch.randn(2, pairs, DIM, generator=generator), dim=2)
    words = [f"word{n}" for n in range(200)]
    captions = [
        [f"{words[i % 200]} {words[i * 7 % 200]} {words[i * 13 % 200]}"] for i in range(pairs)
    ]
    samples = sample_table([str(i) for i in range(pairs)], captions)
    config = StoreConfig("random", "random", "random", f"random-{pairs}", DIM)
    return write_store(folder, image, text, samples, config)


def score_store(folder: Path) -> None:
    """Score an untrained dictionary's features on a store."""
    config = DictionaryConfig("topk", DIM, FEATURES, K, modality_bias=False)
    score(ActivationStore.open(folder), TopKDictionary(config).eval(), progress=False)


def _peak(folder: Path) -> float:
    """Peak memory in bytes of a process that scores a store."""
    code = "import sys; from benchmarks.scale import peak_of_scoring; peak_of_scoring(sys.argv[1])"
    command = [sys.executable, "-c", code, str(folder)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_of_scoring(folder: str) -> None:
    """Score a store and print this process's peak memory in bytes."""
    score_store(Path(folder))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak * (1 if sys.platform == "darwin" else 1024))


def closed_form_row(seed: int, repeats: int = 3) -> Result:
    """How many times faster the Monosemanticity Scores' closed form is than the literal double
    loop over pairs of samples, a feature; the values agree to 1e-9."""
    generator = torch.Generator().manual_seed(seed)
    activations = torch.rand(LOOP_PAIRS, LOOP_FEATURES, generator=generator).double()
    embeddings = F.normalize(torch.randn(LOOP_PAIRS, DIM, generator=generator).double(), dim=1)
    ratios = []
    for _ in range(repeats):
        start = time.perf_counter()
        sums = MonosemanticityStatistics(LOOP_FEATURES, DIM)
        sums.update(activations, activations, embeddings, embeddings)
        closed = sums.scores().ms_image
        quick = time.perf_counter() - start
        start = time.perf_counter()
        loop = [double_loop(a, embeddings.numpy()) for a in activations.T.numpy()]
        slow = time.perf_counter() - start
        np.testing.assert_allclose(closed, loop, atol=1e-9)
        ratios.append(slow / quick)
    return median_row("score/ms_ratio", ratios, "ratio")


def double_loop(activations: np.ndarray, embeddings: np.ndarray) -> float:
    """The Monosemanticity Score as it is defined, over all pairs of different samples.

    Args:
        activations: `[n]`.
        embeddings: unit, `[n, dim]`.
    """
    scaled = (activations - activations.min()) / (activations.max() - activations.min())
    weighted = mass = 0.0
    for i in range(len(scaled)):
        for j in range(len(scaled)):
            if i != j:
                weight = scaled[i] * scaled[j]
                weighted += weight * float(embeddings[i] @ embeddings[j])
                mass += weight
    return weighted / mass
