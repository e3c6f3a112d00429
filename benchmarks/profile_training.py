"""Where a training step's time goes, here and in the fastest peer, and what the machine allows.

    python -m benchmarks.profile_training --peers peers/bin/python --out FILE

Steps are those of `benchmarks.topk_training`, each library in an interpreter of its own under
torch's profiler. `--peers` is the Python of an environment that holds sparsify
(`benchmarks.peers`).
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

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from benchmarks.common import Result, median_row, run_sections
from benchmarks.peers import BATCH, LARGE, ROOT, SMALL, Size, write_data
from benchmarks.topk_training import LIBRARIES

PROFILED = ("ours", "ours_exact", "sparsify")
WARM, STEPS = 2, 5
REPEATS = 7
CHUNK = 1024
"""Samples of a product, as `features.dictionary.selection` makes it."""
COPIED_MIB = 512
KINDS = {
    "dense_products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "selection": (
        "aten::topk",
        "aten::amax",
        "aten::gather",
        "aten::bitwise_or",
        "aten::bitwise_and",
        "aten::__lshift__",
        "partition",
    ),
    "row_sums": ("aten::_embedding_bag", "aten::_embedding_bag_forward_only", "aten::index_add_"),
    "row_products": ("aten::_embedding_bag_per_sample_weights_backward",),
    "adam": ("aten::_fused_adam_",),
    "moves": ("aten::copy_", "aten::cat", "aten::fill_", "aten::zero_", "aten::clone"),
}
"""What torch's operations do; all others are counted as `rest`, with Python."""


def profiled_step(library: str, data: Path, k: int) -> dict[str, float]:
    """Milliseconds of one training step by kind, and their sum as `step`."""
    if library.startswith("ours"):
        _name_partition()
    tensors = load_file(data)
    step, _ = LIBRARIES[library](tensors["weights"], tensors["train"].mean((0, 1)), k)
    batches = tensors["train"][: WARM + STEPS]
    for batch in batches[:WARM]:
        step(batch)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        start = time.perf_counter()
        for batch in batches[WARM:]:
            step(batch)
        whole = 1000 * (time.perf_counter() - start) / len(batches[WARM:])
    own = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    found = {
        kind: sum(own.get(name, 0.0) for name in names) / 1000 / len(batches[WARM:])
        for kind, names in KINDS.items()
    }
    return found | {"rest": whole - sum(found.values()), "step": whole}


def _name_partition() -> None:
    """Let the profiler see numpy's partition, which is no operation of torch's."""
    from features.dictionary import selection

    partitioned = selection._partitioned

    def named(keys: torch.Tensor, count: int) -> torch.Tensor:
        with torch.profiler.record_function("partition"):
            return partitioned(keys, count)

    selection._partitioned = named


def profile_rows(size: Size, python: dict[str, str], work: Path, seed: int) -> list[Result]:
    """The profile of each library at a size; the median over rounds."""
    work.mkdir(parents=True, exist_ok=True)
    data = work / f"training{size.name}.safetensors"
    write_data(data, size, seed)
    rounds: dict[str, list[dict[str, float]]] = {library: [] for library in python}
    for _ in range(3):
        for library, interpreter in python.items():
            command = [interpreter, "-m", "benchmarks.profile_training", "--library", library]
            command += ["--data", str(data), "--k", str(size.k), "--out", str(work / "step.json")]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)
            rounds[library].append(json.loads((work / "step.json").read_text()))
    return [
        median_row(f"step{size.name}/{library}/{kind}", [each[kind] for each in found], "ms")
        for library, found in rounds.items()
        for kind in found[0]
    ]


def rate_rows() -> list[Result]:
    """Products in fp32 and bf16, memory, and what caches hold, as fast as they run here."""
    n, dim, features = CHUNK, SMALL.dim, SMALL.features
    x, weight = torch.randn(n, dim), torch.randn(features, dim)
    low = x.bfloat16(), weight.bfloat16()
    operations = 2e-9 * n * dim * features
    source = torch.ones(COPIED_MIB * 2**18)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * 4e-9
    return [
        _rate_row("rate/fp32", lambda: F.linear(x, weight), operations, "GFLOP/s"),
        _rate_row("rate/bf16", lambda: F.linear(*low), operations, "GFLOP/s"),
        _rate_row("rate/memory", lambda: target.copy_(source), moved, "GB/s"),
        _rate_row("rate/cache", lambda: weight.sum(), 4e-9 * weight.numel(), "GB/s"),
    ]


def _rate_row(name: str, run: Callable[[], object], amount: float, unit: str) -> Result:
    run()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return median_row(name, [amount / each for each in seconds], unit)


def limit_rows(size: Size, rates: dict[str, float]) -> list[Result]:
    """The least milliseconds of a step: the bf16 product at its rate, each active row that is read
    at the caches', Adam's reads and writes at the memory's.

    Rows are read four times (reconstruction, gradients of the values, the decoder and the encoder),
    those of candidates once more. Adam reads a weight, its gradient and two moments, and writes all
    but the gradient.
    """
    from features.dictionary.selection import SPARE

    row = size.dim * 4e-9  # GB
    least = {
        "dense_products": 2e-9 * BATCH * size.dim * size.features / rates["rate/bf16"],
        "rows": BATCH * (4 * size.k + size.k + SPARE) * row / rates["rate/cache"],
        "adam": 7 * 2 * size.features * row / rates["rate/memory"],
    }
    least["step"] = sum(least.values())
    return [
        median_row(f"limit{size.name}/{kind}", [1000 * seconds], "ms")
        for kind, seconds in least.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", help="Python of an environment that holds sparsify")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--library", choices=PROFILED, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--k", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.library:
        step = profiled_step(arguments.library, arguments.data, arguments.k)
        arguments.out.write_text(json.dumps(step))
        return
    python = {library: sys.executable for library in PROFILED if library.startswith("ours")}
    if arguments.peers:
        python["sparsify"] = arguments.peers
    rates = rate_rows()
    values = {row.name: row.value for row in rates}
    with tempfile.TemporaryDirectory() as scratch:
        sections: list[Callable[[], list[Result]]] = [lambda: rates]
        for size in (SMALL, LARGE):
            sections.append(partial(limit_rows, size, values))
            sections.append(partial(profile_rows, size, python, Path(scratch), arguments.seed))
        run_sections(sections, arguments.out, seed=arguments.seed)


if __name__ == "__main__":
    main()
