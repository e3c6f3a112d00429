"""How fast a TopK dictionary trains here and in other libraries, on the same data.

The other libraries need an environment of their own (theirs and this project's requirements
exclude each other):

    python3 -m venv peers
    peers/bin/pip install eai-sparsify overcomplete dictionary-learning sae-lens "matplotlib<3.9"
    python -m benchmarks.features --only speed --peers peers/bin/python --out FILE
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from benchmarks.common import Result, median_row

BATCH, CAUSES, ACTIVE = 4096, 2048, 24
PEERS = ("sparsify", "overcomplete", "dictionary_learning", "sae_lens")
OURS = ("ours", "ours_exact")
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Size:
    """Of a dictionary and its training."""

    name: str
    dim: int
    features: int
    k: int
    steps: int
    """The first of them is not timed."""
    device: str = "cpu"


SMALL = Size("", 512, 4096, 32, steps=20)
LARGE = Size("_16k", 768, 16_384, 64, steps=6)
ON_GPU = (
    Size("_cuda", 512, 4096, 32, steps=60, device="cuda"),
    Size("_16k_cuda", 768, 16_384, 64, steps=40, device="cuda"),
)
"""The same sizes; steps are so short there that more of them are timed."""


def speed_rows(
    peers: str | None,
    work: Path,
    seed: int,
    size: Size = SMALL,
    rounds: int = 5,
    names: Sequence[str] = PEERS,
) -> list[Result]:
    """Samples a second, ratios to the peers, peak memory, FVU after the same number of samples, and
    the seconds until every library has reached the highest of those FVUs.

    Libraries take turns, one at a time; one that fails is left out. Values are medians over the
    rounds, with their range.

    Args:
        peers: the Python of the peers' environment; None measures this project's dictionary alone.
        names: of the peers to measure.
    """
    work.mkdir(parents=True)
    data = work / "training.safetensors"
    write_data(data, size, seed)
    interpreters = dict.fromkeys(OURS, sys.executable)
    if peers is not None:
        interpreters |= dict.fromkeys(names, peers)
    trainings: dict[str, list[dict[str, Any]]] = {library: [] for library in interpreters}
    for _ in range(rounds):
        for library, python in interpreters.items():
            training = train(library, python, data, work / "training.json", size)
            if training is not None:
                trainings[library].append(training)
    trainings = {library: found for library, found in trainings.items() if found}
    speeds = {
        library: [BATCH / statistics.median(t["seconds"][1:]) for t in found]
        for library, found in trainings.items()
    }
    rows = [
        median_row(_name("samples_per_s", size, library), speed, "samples/s")
        for library, speed in speeds.items()
    ]
    for library in trainings:
        if library != "ours":
            pairs = zip(speeds["ours"], speeds[library], strict=False)
            rows.append(
                median_row(_name("ratio", size, library), [a / b for a, b in pairs], "ratio")
            )
    final = {library: [t["fvu"][-1][1] for t in found] for library, found in trainings.items()}
    target = max(itertools.chain.from_iterable(final.values()))
    for library, found in trainings.items():
        rows.append(median_row(_name("fvu", size, library), final[library], "FVU"))
        times = [seconds_to(target, training) for training in found]
        rows.append(median_row(_name("seconds_to_fvu", size, library), times, "s"))
        peaks = [training["peak_mib"] for training in found]
        rows.append(median_row(_name("peak_mib", size, library), peaks, "MiB"))
    return rows


def write_data(path: Path, size: Size, seed: int) -> None:
    """Unit vectors with sparse causes and a common offset, and weights to start from."""
    generator = torch.Generator().manual_seed(seed)
    causes = F.normalize(torch.randn(CAUSES, size.dim, generator=generator), dim=1)

    def samples(n: int) -> torch.Tensor:
        present = torch.rand(n, CAUSES, generator=generator) < ACTIVE / CAUSES
        strength = -torch.log1p(-torch.rand(n, CAUSES, generator=generator))
        noise = 0.02 * torch.randn(n, size.dim, generator=generator)
        return F.normalize((present * strength) @ causes + noise + 0.05, dim=1)

    weights = F.normalize(torch.randn(size.features, size.dim, generator=generator), dim=1)
    train = torch.stack([samples(BATCH) for _ in range(size.steps)])  # [steps, batch, dim]
    save_file({"train": train, "held_out": samples(BATCH), "weights": weights}, path)


def train(
    library: str, python: str, data: Path, out: Path, size: Size = SMALL
) -> dict[str, Any] | None:
    """What `benchmarks.topk_training` measures of one library; None, and a line that says why, if
    it fails."""
    command = [python, "-m", "benchmarks.topk_training", "--library", library]
    command += ["--data", str(data), "--out", str(out), "--k", str(size.k)]
    command += ["--device", size.device]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
    )
    if finished.returncode:
        reason = finished.stderr.strip().splitlines()[-1:]
        print(f"{library} failed under {python}: {' '.join(reason)}", file=sys.stderr)
        return None
    return json.loads(out.read_text())


def seconds_to(target: float, training: dict[str, Any]) -> float:
    """Seconds of training until the FVU was measured at or below the target."""
    step = next(step for step, fvu in training["fvu"] if fvu <= target)
    return sum(training["seconds"][:step])


def _name(measure: str, size: Size, library: str) -> str:
    return f"dictionary/{measure}{size.name}" + ("" if library == "ours" else f"/{library}")
