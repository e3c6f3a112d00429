"""The same attacks by other libraries, on the same model, images and eps.

The other libraries need an environment of their own that holds this project's requirements too:

    python3 -m venv --system-site-packages peers
    peers/bin/pip install --no-deps foolbox eagerpy gitpython gitdb smmap adv-lib visdom
    python -m benchmarks.robustness --peers peers/bin/python --out FILE

"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from features.encoders.load import load_encoder
from mms_apps.robustness.models import ZeroShot, undisturbed

PGD_STEPS, APGD_STEPS, STEP = 40, 100, 2.5
PEERS = {
    "foolbox": ("fgsm", "pgd", "pgd-l2"),
    "adversarial-library": ("pgd", "apgd", "apgd-l2", "fab"),
}
ROOT = Path(__file__).parent.parent


def withstood_by_peer(
    python: str, library: str, attack: str, eps: float, data: Path, out: Path
) -> np.ndarray | None:
    """Whether each image withstands a peer's attack, `[n]` bool; None, and a line that says why, if
    the peer fails."""
    command = [python, "-m", "benchmarks.robustness_peers", "--library", library]
    finished = subprocess.run(
        [*command, "--attack", attack, "--eps", str(eps), "--data", str(data), "--out", str(out)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    if finished.returncode:
        reason = finished.stderr.strip().splitlines()[-1:]
        print(f"{library} {attack} failed under {python}: {' '.join(reason)}", file=sys.stderr)
        return None
    return np.array(json.loads(out.read_text()))


def write_data(path: Path, model: ZeroShot, pixels: Tensor, labels: Tensor) -> None:
    """What a peer needs: images, labels and the classes' vectors; the encoder is loaded there."""
    tensors = {"pixels": pixels, "labels": labels, "vectors": model.vectors}
    save_file(
        {key: value.cpu().contiguous() for key, value in tensors.items()},
        path,
        metadata={"encoder": model.encoder.id},
    )


def run(
    library: str, attack: str, model: nn.Module, pixels: Tensor, labels: Tensor, eps: float
) -> Tensor:
    """A peer's adversarial images, `[n, 3, height, width]`."""
    if library == "foolbox":
        return _foolbox(attack, model, pixels, labels, eps)
    return _adversarial_library(attack, model, pixels, labels, eps)


def _foolbox(attack: str, model: nn.Module, pixels: Tensor, labels: Tensor, eps: float) -> Tensor:
    import foolbox

    kinds = {
        "fgsm": lambda: foolbox.attacks.LinfFastGradientAttack(random_start=False),
        "pgd": lambda: foolbox.attacks.LinfPGD(
            steps=PGD_STEPS, rel_stepsize=STEP / PGD_STEPS, random_start=False
        ),
        "pgd-l2": lambda: foolbox.attacks.L2PGD(
            steps=PGD_STEPS, rel_stepsize=STEP / PGD_STEPS, random_start=False
        ),
    }
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=pixels.device)
    _, clipped, _ = kinds[attack]()(wrapped, pixels, labels, epsilons=eps)
    return clipped


def _adversarial_library(
    attack: str, model: nn.Module, pixels: Tensor, labels: Tensor, eps: float
) -> Tensor:
    from adv_lib.attacks import apgd, fab, pgd_linf

    if attack == "pgd":
        return pgd_linf(
            model, pixels, labels, eps, steps=PGD_STEPS, random_init=False,
            absolute_step_size=STEP * eps / PGD_STEPS,
        )  # fmt: skip
    if attack == "fab":
        with torch.no_grad():
            others = model(pixels[:1]).shape[1] - 1
        found = fab(
            model, pixels, labels, norm=math.inf, n_iter=APGD_STEPS, restarts=others,
            targeted_restarts=True,
        )  # fmt: skip
        near = (found - pixels).flatten(1).abs().amax(1) <= eps * (1 + 1e-6)
        return torch.where(near.view(-1, 1, 1, 1), found, pixels)
    norm = 2 if attack == "apgd-l2" else math.inf
    return apgd(model, pixels, labels, eps, norm=norm, n_iter=APGD_STEPS, loss_function="ce")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", required=True, choices=PEERS)
    parser.add_argument("--attack", required=True)
    parser.add_argument("--eps", required=True, type=float)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()
    from safetensors import safe_open

    with safe_open(arguments.data, framework="pt") as file:
        encoder = load_encoder(file.metadata()["encoder"], device="cpu")
    data = load_file(arguments.data)
    model = ZeroShot(encoder, data["vectors"])
    with undisturbed(model, 0):
        right = model(data["pixels"]).argmax(1) == data["labels"]
        chosen = right.nonzero().squeeze(1)
        pixels, labels = data["pixels"][chosen], data["labels"][chosen]
        images = run(arguments.library, arguments.attack, model, pixels, labels, arguments.eps)
        with torch.no_grad():
            right[chosen] = model(images.detach()).argmax(1) == labels
    arguments.out.write_text(json.dumps(right.tolist()))


if __name__ == "__main__":
    main()
