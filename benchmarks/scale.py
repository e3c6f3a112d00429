"""How scoring and importing scale: a million pairs, memory, one process against two.

    python -m benchmarks.scale --out runs/benchmark-scale.json

- score/seconds_per_million, score/peak_mib: scoring a store of random embeddings in a process of
  its own, with a progress bar;
- merge/max_difference: the greatest difference in any score of any feature between that and two
  processes that share the pass;
- import/seconds_per_million, import/peak_mib: `mms import` of embeddings of 768 dimensions in
  clip-retrieval's layout (fp16, with captions and a few more columns), in a process of its own.

`--only import` leaves the others out, which stay as they are in the file of results. `--earlier`
names the folder of an earlier version's source, and measures instead

- score/seconds_per_million, score/earlier_seconds_per_million: five rounds of both in turns, on one
  store that the earlier version wrote, of `--pairs` pairs;
- score/earlier_ratio: the earlier version's seconds over this one's, round by round.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F

from benchmarks.common import PeakMemory, Result, median_row, options, print_results, write_results
from features.dictionary import DictionaryConfig, TopKDictionary
from features.distributed import this_process
from features.files import write_json
from features.scores.monosemanticity import MonosemanticityStatistics
from features.space.score import score
from features.space.space import FeatureSpace
from features.store.import_embeddings import import_embeddings
from features.store.layouts import open_embeddings
from features.store.store import ActivationStore, StoreConfig
from features.store.write import finish_store, sample_table, write_part

DIM, FEATURES, K, PAIRS = 128, 512, 16, 20_000
IMPORTED_DIM = 768
MILLION = 1_000_000
ROUNDS = 5
ROOT = Path(__file__).parents[1]
SHARD = 50_000
LOOP_PAIRS, LOOP_FEATURES = 600, 4
ONE_PROCESS = [sys.executable, "-m", "benchmarks.scale"]
TWO_PROCESSES = [
    *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"),
    *("-m", "benchmarks.scale"),
]


def scale_rows(work: Path, seed: int) -> list[Result]:
    """`score/peak_ratio_10x` and `score/ms_ratio`."""
    return [peak_row(work, seed), closed_form_row(seed)]


def million_rows(work: Path, pairs: int, seed: int) -> list[Result]:
    """`score/seconds_per_million`, `score/peak_mib` and `merge/max_difference`."""
    make_store(work / "store", pairs, seed)
    one = scored_apart(ONE_PROCESS, work / "store", work / "one")
    scored_apart(TWO_PROCESSES, work / "store", work / "two")
    difference = greatest_difference(work / "one" / "space", work / "two" / "space")
    return [
        median_row("score/seconds_per_million", [one["seconds"] * MILLION / pairs], "s"),
        median_row("score/peak_mib", [one["peak_mib"]], "MiB"),
        median_row("merge/max_difference", [difference], "score"),
    ]


def earlier_rows(earlier: Path, work: Path, pairs: int, seed: int) -> list[Result]:
    """This version's scoring beside that of an earlier one, whose source is in a folder."""
    store = work / "store"
    write = "from benchmarks.scale import *; make_store(Path(sys.argv[1]), *map(int, sys.argv[2:]))"
    arguments = (str(store), str(pairs), str(seed))
    subprocess.run([sys.executable, "-c", write, *arguments], check=True, **within(earlier))
    seconds: dict[Path, list[float]] = {earlier: [], ROOT: []}
    for round_ in range(ROUNDS):
        for version, times in seconds.items():
            out = work / f"{version.name}-{round_}"
            found = scored_apart(ONE_PROCESS, store, out, **within(version))
            times.append(found["seconds"] * MILLION / pairs)
    before, now = seconds.values()
    return [
        median_row("score/seconds_per_million", now, "s"),
        median_row("score/earlier_seconds_per_million", before, "s"),
        median_row(
            "score/earlier_ratio", [b / n for b, n in zip(before, now, strict=True)], "ratio"
        ),
    ]


def within(folder: Path) -> dict[str, Any]:
    """How `subprocess.run` runs the source in a folder."""
    return {"cwd": folder, "env": os.environ | {"PYTHONPATH": str(folder.resolve())}}


def import_rows(work: Path, pairs: int, seed: int) -> list[Result]:
    """`import/seconds_per_million` and `import/peak_mib`."""
    make_clip_retrieval(work / "embeddings", pairs, seed)
    out = work / "imported"
    command = [*ONE_PROCESS, "--embeddings", str(work / "embeddings"), "--out", str(out)]
    subprocess.run(command, check=True)
    found = json.loads((work / "imported.json").read_text(encoding="utf-8"))
    return [
        median_row("import/seconds_per_million", [found["seconds"] * MILLION / pairs], "s"),
        median_row("import/peak_mib", [found["peak_mib"]], "MiB"),
    ]


def make_clip_retrieval(root: Path, pairs: int, seed: int) -> None:
    """Write random embeddings as clip-retrieval does, in files of SHARD pairs."""
    for name in ("img_emb", "text_emb", "metadata"):
        (root / name).mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    for number, start in enumerate(range(0, pairs, SHARD)):
        rows = range(start, min(start + SHARD, pairs))
        for name in ("img_emb", "text_emb"):
            x = F.normalize(torch.randn(len(rows), IMPORTED_DIM, generator=generator), dim=1)
            np.save(root / name / f"{name}_{number}.npy", x.half().numpy())
        columns = {
            "image_path": [f"{row:09d}" for row in rows],
            "caption": [
                f"word{row % 200} word{row * 7 % 200} word{row * 13 % 200}" for row in rows
            ],
            "similarity": [0.25 + row % 100 / 1000 for row in rows],
            "width": [200 + row % 800 for row in rows],
            "license": [None if row % 3 else "?" for row in rows],
        }
        pq.write_table(pa.table(columns), root / "metadata" / f"metadata_{number}.parquet")


def import_store(embeddings: Path, out: Path) -> None:
    """Import embeddings to the store `out`; write the figures beside it."""
    memory = PeakMemory()
    memory.start()
    start = time.perf_counter()
    import_embeddings(open_embeddings(embeddings), out)
    seconds = time.perf_counter() - start
    write_json(out.with_suffix(".json"), {"seconds": seconds, "peak_mib": memory.peak})


def peak_row(work: Path, seed: int, repeats: int = 3) -> Result:
    """Peak memory of scoring ten times the pairs over that of scoring them once, each in a process
    of its own; what a process needs before it scores is in both."""
    peaks = {}
    for times in (1, 10):
        folder = work / f"store-{times}"
        make_store(folder, PAIRS * times, seed)
        out = work / f"scored-{times}"
        found = [scored_apart(ONE_PROCESS, folder, out) for _ in range(repeats)]
        peaks[times] = [each["peak_mib"] for each in found]
    ratios = [ten / one for one, ten in zip(peaks[1], peaks[10], strict=True)]
    return median_row("score/peak_ratio_10x", ratios, "ratio")


def make_store(folder: Path, pairs: int, seed: int) -> None:
    """Write a store of random embeddings with captions of a few words, shard by shard."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    words = [f"word{n}" for n in range(200)]
    starts = range(0, pairs, SHARD)
    for index, start in enumerate(starts):
        numbers = range(start, min(start + SHARD, pairs))
        image, text = F.normalize(torch.randn(2, len(numbers), DIM, generator=generator), dim=2)
        captions = [
            [f"{words[i % 200]} {words[i * 7 % 200]} {words[i * 13 % 200]}"] for i in numbers
        ]
        write_part(folder, index, image, text, sample_table([*map(str, numbers)], captions), [])
    config = StoreConfig("random", "random", "random", f"random-{pairs}", DIM)
    finish_store(folder, config, len(starts))


def scored_apart(command: list[str], store: Path, out: Path, **process: Any) -> dict[str, float]:
    """Seconds and peak memory of scoring a store in processes of their own, which leave the
    FeatureSpace in `out`; `process` as `subprocess.run` takes it."""
    subprocess.run([*command, "--store", str(store), "--out", str(out)], check=True, **process)
    return json.loads((out / "figures.json").read_text(encoding="utf-8"))


def score_store(store: Path, out: Path) -> None:
    """Score an untrained dictionary's features on a store; write the FeatureSpace and figures."""
    config = DictionaryConfig("topk", DIM, FEATURES, K, modality_bias=False)
    memory = PeakMemory()
    memory.start()
    start = time.perf_counter()
    space = score(ActivationStore.open(store), TopKDictionary(config).eval())
    seconds = time.perf_counter() - start
    if this_process().is_main_process:
        space.save(out / "space")
        write_json(out / "figures.json", {"seconds": seconds, "peak_mib": memory.peak})


def greatest_difference(first: Path, second: Path) -> float:
    """Of any number in the tables of features; infinite where one is undefined in one space only.

    Raises:
        AssertionError: a name or a class differs.
    """
    tables = [FeatureSpace.load(folder, device="cpu").features for folder in (first, second)]
    greatest = 0.0
    for name in tables[0].column_names:
        one, two = (table[name].to_numpy() for table in tables)
        if one.dtype.kind != "f":
            assert (one == two).all(), name
        elif not np.array_equal(np.isnan(one), np.isnan(two)):
            return float("inf")
        elif not np.isnan(one).all():
            greatest = max(greatest, float(np.nanmax(np.abs(one - two))))
    return greatest


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


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--pairs", type=int, default=MILLION)
    parser.add_argument("--only", choices=["score", "import"])
    parser.add_argument("--earlier", type=Path, help="folder of an earlier version's source")
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--embeddings", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.store is not None:
        score_store(arguments.store, arguments.out)
        return
    if arguments.embeddings is not None:
        import_store(arguments.embeddings, arguments.out)
        return
    sections: dict[str, Callable[[Path, int, int], list[Result]]]
    sections = {"score": million_rows, "import": import_rows}
    if arguments.earlier is not None:
        sections = {"score": partial(earlier_rows, arguments.earlier)}
        arguments.only = "score"
    results: list[Result] = []
    if arguments.only:
        results = read_results(arguments.out)
        sections = {arguments.only: sections[arguments.only]}
    for rows in sections.values():
        with tempfile.TemporaryDirectory() as scratch:
            results = merged(results, rows(Path(scratch), arguments.pairs, arguments.seed))
        write_results(arguments.out, results, seed=arguments.seed)
    print_results(results)


def read_results(path: Path) -> list[Result]:
    """What an earlier run wrote; nothing where there was none."""
    if not path.is_file():
        return []
    return [Result(**row) for row in json.loads(path.read_text(encoding="utf-8"))["results"]]


def merged(old: list[Result], new: list[Result]) -> list[Result]:
    """The new rows, in place of old ones of their names."""
    names = {row.name for row in new}
    return [row for row in old if row.name not in names] + new


if __name__ == "__main__":
    main()
