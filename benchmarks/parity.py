"""Whether what is computed here equals what other libraries compute, on the same numbers.

    python -m benchmarks.parity --peers peers/bin/python --out runs/benchmark-parity.json

- ms/greatest_difference: our one-pass Monosemanticity Score against the mean over all pairs of
  samples, as sae-for-vlm computes it, of topk's features on held-out drawings;
- conversion/LIBRARY: the greatest relative difference of a converted dictionary's reconstruction
  from its library's own, over the files in tests/autoencoders;
- loss/matryoshka: the relative difference of our nested loss from dictionary_learning's, at equal
  weights and batches, theirs divided by the batch's mean squared length;
- fvu/LIBRARY: held-out FVU of a TopK dictionary after the same steps on the same batches of emoji
  embeddings, from the same weights; `ours_trained_offset` trains the vector that is subtracted,
  as the other libraries do.

The last two need `--peers`, the Python of an environment that holds the libraries
(`benchmarks.peers`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from benchmarks.common import Result, median_row, options, run_sections
from benchmarks.peers import PEERS, ROOT, train
from features.dictionary import DictionaryConfig, MatryoshkaDictionary
from features.dictionary.foreign import read_autoencoder
from features.encoders.load import load_encoder
from features.pairs.open import open_pairs
from features.scores.monosemanticity import MonosemanticityStatistics
from features.space.space import FeatureSpace
from features.store.extract import extract
from features.store.store import ActivationStore

RECORDED = ROOT / "tests" / "autoencoders"
K_OF_RECORDED = 5
SAMPLES = 300
FEATURES, BATCH, STEPS, ROUNDS = 512, 1024, 200, 3
OURS = ("ours", "ours_trained_offset")
LOSS_SAMPLES, LOSS_FEATURES, LOSS_K = 256, 64, 8


def ms_rows(work: Path) -> list[Result]:
    """`ms/greatest_difference`, over the features that vary."""
    space = FeatureSpace.load("embedded", device="cpu")
    own = emoji(work, "embedded", "heldout")
    judge = emoji(work, "embedded-ssl", "heldout")
    image, text = own.rows(range(SAMPLES))
    judge_image, judge_text = judge.rows(range(SAMPLES))
    z_image, z_text = (
        space.dictionary.encode(image, "image"),
        space.dictionary.encode(text, "text"),
    )
    sums = MonosemanticityStatistics(len(space), judge.dim)
    sums.update(z_image, z_text, judge_image, judge_text)
    scores = sums.scores()
    greatest = 0.0
    for ours, activations, embeddings in (
        (scores.ms_image, z_image, judge_image),
        (scores.ms_text, z_text, judge_text),
    ):
        theirs = mean_over_pairs(activations.double(), embeddings.double())
        known = np.isfinite(ours) & np.isfinite(theirs)
        greatest = max(greatest, float(np.abs(ours - theirs)[known].max()))
    return [median_row("ms/greatest_difference", [greatest], "MS")]


def mean_over_pairs(activations: torch.Tensor, embeddings: torch.Tensor) -> np.ndarray:
    """The activation-weighted mean cosine over all pairs i < j, activations scaled to [0, 1]:
    `[features]`, NaN for those that don't vary.

    Args:
        activations: `[n, features]`.
        embeddings: `[n, dim]`.
    """
    least, greatest = activations.amin(0), activations.amax(0)
    scaled = (activations - least) / (greatest - least)  # [n, features]
    weighted = torch.zeros(scaled.shape[1], dtype=torch.float64)
    mass = torch.zeros_like(weighted)
    for i in range(len(scaled) - 1):
        cosines = F.cosine_similarity(embeddings[i][None], embeddings[i + 1 :])  # [n - i - 1]
        weights = scaled[i] * scaled[i + 1 :]  # [n - i - 1, features]
        weighted += (weights * cosines[:, None]).sum(0)
        mass += weights.sum(0)
    return (weighted / mass).numpy()


def conversion_rows() -> list[Result]:
    """`conversion/LIBRARY`."""
    x = load_file(RECORDED / "embeddings.safetensors")["x"]
    differences: dict[str, list[float]] = {}
    for folder in sorted(path.parent for path in RECORDED.glob("*/computed.safetensors")):
        source = folder / "sae.pt" if (folder / "sae.pt").is_file() else folder
        library = folder.name.partition("-")[0]
        k = K_OF_RECORDED if folder.name.startswith("overcomplete-topk") else None
        dictionary = read_autoencoder(source, k=k).dictionary()
        expected = load_file(folder / "computed.safetensors")["reconstruction"]
        found = dictionary.decode_sparse(dictionary.encode_sparse(x, "image"), "image")
        difference = (found - expected).norm() / expected.norm()
        differences.setdefault(library, []).append(float(difference))
    return [
        median_row(f"conversion/{library}", [max(found)], "relative")
        for library, found in differences.items()
    ]


def loss_rows(work: Path, peers: str, seed: int) -> list[Result]:
    """`loss/matryoshka`: both losses at the same weights, on the same centred batch."""
    config = DictionaryConfig("matryoshka", 128, LOSS_FEATURES, LOSS_K, False, seed=seed)
    dictionary = MatryoshkaDictionary(config).requires_grad_(False)
    x = emoji(work, "embedded", "heldout").rows(range(LOSS_SAMPLES))
    image, text = x[0] - x[0].mean(0), x[1] - x[1].mean(0)
    alive = torch.zeros(LOSS_FEATURES, dtype=torch.bool)
    ours = float(dictionary(image, text, alive).loss)
    both = torch.cat([image, text])
    weights = {"x": both, "encoder": dictionary.encoder, "decoder": dictionary.decoder}
    save_file({n: t.detach().contiguous() for n, t in weights.items()}, work / "loss.safetensors")
    command = [peers, "-m", "benchmarks.matryoshka_loss", str(work / "loss.safetensors")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        [*command, str(LOSS_K)], env=environment, capture_output=True, text=True, check=True
    )
    theirs = json.loads(found.stdout.splitlines()[-1]) / float(both.square().sum(1).mean())
    return [median_row("loss/matryoshka", [abs(ours - theirs) / theirs], "relative")]


def fvu_rows(work: Path, peers: str | None, seed: int) -> list[Result]:
    """`fvu/LIBRARY`: medians over trainings from ROUNDS seeds, with their range."""
    interpreters = dict.fromkeys(OURS, sys.executable) | (
        dict.fromkeys(PEERS, peers) if peers else {}
    )
    found: dict[str, list[float]] = {}
    for number in range(seed, seed + ROUNDS):
        save_file(training_data(work, number), work / "training.safetensors")
        for library, python in interpreters.items():
            files = (work / "training.safetensors", work / "training.json")
            training = train(library, python, *files)
            if training is not None:
                found.setdefault(library, []).append(training["fvu"][-1][1])
    return [median_row(f"fvu/{library}", values, "FVU") for library, values in found.items()]


def training_data(work: Path, seed: int) -> dict[str, torch.Tensor]:
    """Batches of the emoji's images and texts, epoch after epoch, held-out ones, and weights to
    start from, as `benchmarks.topk_training` reads them."""
    generator = torch.Generator().manual_seed(seed)
    train_store, held_out = emoji(work, "embedded", "train"), emoji(work, "embedded", "heldout")
    rows = torch.cat(train_store.rows(range(len(train_store))))  # [samples, dim]
    epochs = -(-STEPS * BATCH // len(rows))
    drawn = torch.cat([torch.randperm(len(rows), generator=generator) for _ in range(epochs)])
    weights = F.normalize(torch.randn(FEATURES, train_store.dim, generator=generator), dim=1)
    return {
        "train": rows[drawn[: STEPS * BATCH]].view(STEPS, BATCH, -1),
        "held_out": torch.cat(held_out.rows(range(len(held_out)))),
        "weights": weights,
    }


def emoji(work: Path, encoder: str, split: str) -> ActivationStore:
    """The embeddings of a split of the emoji, made once."""
    folder = work / f"{encoder}-{split}"
    if not folder.exists():
        source = open_pairs(f"embedded:{split}")
        extract(source, load_encoder(encoder, device="cpu"), folder, progress=False)
    return ActivationStore.open(folder)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--peers", help="Python of an environment that holds the other libraries")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        sections = [lambda: ms_rows(work), conversion_rows]
        if arguments.peers:
            sections.append(lambda: loss_rows(work, arguments.peers, arguments.seed))
        sections.append(lambda: fvu_rows(work, arguments.peers, arguments.seed))
        run_sections(sections, arguments.out, seed=arguments.seed)


if __name__ == "__main__":
    main()
