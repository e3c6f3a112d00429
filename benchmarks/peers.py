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
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from benchmarks.common import Result, median_row

DIM, FEATURES, BATCH, CAUSES, ACTIVE = 512, 4096, 4096, 2048, 24
PEERS = ("sparsify", "overcomplete", "dictionary_learning", "sae_lens")
ROOT = Path(__file__).parent.parent


def speed_rows(
    peers: str | None, work: Path, seed: int, steps: int = 20, rounds: int = 3
) -> list[Result]:
    """Samples a second, ratios to the peers, FVU after the same number of samples, and the seconds
    until every library has reached the highest of those FVUs.

    Libraries take turns, one at a time; one that fails is left out. Values are medians over the
    rounds, with their range.

    Args:
        peers: the Python of the peers' environment; None measures this project's dictionary alone.
        steps: of each training, the first of which is not timed.
    """
    work.mkdir(parents=True)
    data = work / "training.safetensors"
    write_data(data, steps, seed)
    interpreters = {"ours": sys.executable}
    if peers is not None:
        interpreters |= dict.fromkeys(PEERS, peers)
    trainings: dict[str, list[dict[str, Any]]] = {library: [] for library in interpreters}
    for _ in range(rounds):
        for library, python in interpreters.items():
            training = train(library, python, data, work / "training.json")
            if training is not None:
                trainings[library].append(training)
    trainings = {library: found for library, found in trainings.items() if found}
    speeds = {
        library: [BATCH / statistics.median(t["seconds"][1:]) for t in found]
        for library, found in trainings.items()
    }
    rows = [
        median_row("dictionary/samples_per_s" + _suffix(library), speed, "samples/s")
        for library, speed in speeds.items()
    ]
    for library in trainings:
        if library != "ours":
            pairs = zip(speeds["ours"], speeds[library], strict=False)
            rows.append(
                median_row(f"dictionary/ratio/{library}", [a / b for a, b in pairs], "ratio")
            )
    final = {library: [t["fvu"][-1][1] for t in found] for library, found in trainings.items()}
    target = max(itertools.chain.from_iterable(final.values()))
    for library, found in trainings.items():
        rows.append(median_row("dictionary/fvu" + _suffix(library), final[library], "FVU"))
        times = [seconds_to(target, training) for training in found]
        rows.append(median_row("dictionary/seconds_to_fvu" + _suffix(library), times, "s"))
    return rows


def write_data(path: Path, steps: int, seed: int) -> None:
    """Unit vectors with sparse causes and a common offset, and weights to start from."""
    generator = torch.Generator().manual_seed(seed)
    causes = F.normalize(torch.randn(CAUSES, DIM, generator=generator), dim=1)

    def samples(n: int) -> torch.Tensor:
        present = torch.rand(n, CAUSES, generator=generator) < ACTIVE / CAUSES
        strength = -torch.log1p(-torch.rand(n, CAUSES, generator=generator))
        noise = 0.02 * torch.randn(n, DIM, generator=generator)
        return F.normalize((present * strength) @ causes + noise + 0.05, dim=1)

    weights = F.normalize(torch.randn(FEATURES, DIM, generator=generator), dim=1)
    train = torch.stack([samples(BATCH) for _ in range(steps)])  # [steps, batch, dim]
    save_file({"train": train, "held_out": samples(BATCH), "weights": weights}, path)


def train(library: str, python: str, data: Path, out: Path) -> dict[str, Any] | None:
    """What `benchmarks.topk_training` measures of one library; None, and a line that says why, if
    it fails."""
    command = [python, "-m", "benchmarks.topk_training", "--library", library]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(
        [*command, "--data", str(data), "--out", str(out)],
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


def _suffix(library: str) -> str:
    return "" if library == "ours" else f"/{library}"
