"""What all benchmarks share: options, result rows, peak memory, printing and writing."""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from features.bootstrap import Estimate, mean_estimate
from features.files import jsonable, write_json

VERSIONS = ("torch", "open_clip_torch", "diffusers", "accelerate", "torchattacks", "scikit-learn")


@dataclass(frozen=True)
class Result:
    """One measured value with its 95% interval, or its range over `n` repeats for timings."""

    name: str
    value: float
    ci_low: float
    ci_high: float
    n: int
    unit: str


def estimate_row(name: str, estimate: Estimate, n: int, unit: str) -> Result:
    """An estimate over `n` samples."""
    return Result(name, estimate.value, estimate.low, estimate.high, n, unit)


def mean_row(name: str, values: np.ndarray, unit: str, seed: int) -> Result:
    """A mean with its bootstrap interval; NaN for no values."""
    return estimate_row(name, mean_estimate(values, seed=seed), len(values), unit)


def median_row(name: str, values: Sequence[float], unit: str) -> Result:
    """The median of repeats with their range."""
    return Result(name, statistics.median(values), min(values), max(values), len(values), unit)


class PeakMemory(threading.Thread):
    """Watches how much memory this process holds of its own, in MiB: not the pages of the store's
    files that are mapped, which the system takes back when it wants them."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0.0

    def run(self) -> None:
        while True:
            status = Path("/proc/self/status").read_text(encoding="utf-8")
            found = re.search(r"RssAnon:\s+(\d+) kB", status)
            self.peak = max(self.peak, int(found[1]) / 1024 if found else float("nan"))
            time.sleep(0.02)


def options(doc: str) -> argparse.ArgumentParser:
    """The options that all benchmarks take; the help is the first line of `doc`."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the results")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def run_sections(
    sections: Iterable[Callable[[], list[Result]]], out: Path, *, seed: int
) -> list[Result]:
    """Measure sections in turn; what there is is written after each, and printed in the end."""
    results: list[Result] = []
    for section in sections:
        results += section()
        write_results(out, results, seed=seed)
    print_results(results)
    return results


def machine() -> dict[str, Any]:
    """The processor, cores and accelerator."""
    import torch

    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def versions() -> dict[str, str | None]:
    """Installed versions of the libraries that matter."""
    found: dict[str, str | None] = {}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def print_results(results: list[Result]) -> None:
    """Print a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("name")
    for heading in ("value", "low", "high", "n"):
        table.add_column(heading, justify="right")
    table.add_column("unit")
    for r in results:
        figures = (f"{x:.3f}" for x in (r.value, r.ci_low, r.ci_high))
        table.add_row(r.name, *figures, str(r.n), r.unit)
    Console().print(table)


def write_results(path: Path, results: list[Result], *, seed: int) -> None:
    """Write `{"machine", "versions", "seed", "results"}` as JSON; NaN becomes null."""
    record = {
        "machine": machine(),
        "versions": versions(),
        "seed": seed,
        "results": jsonable(results),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
