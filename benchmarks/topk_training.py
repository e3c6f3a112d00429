"""One library trains a TopK dictionary, timed step by step, in an interpreter of its own.

    PYTHON -m benchmarks.topk_training --library NAME --data FILE --k K --out FILE

Run by `benchmarks.peers`. Each library does what its own trainer does in a step, with Adam, from
the same weights; dead features play no part in so short a training.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

LEARNING_RATE = 1e-3
EVERY = 5
"""Steps between two measurements of FVU."""

Step = Callable[[Tensor], Any]
Reconstruct = Callable[[Tensor], Tensor]


def ours(
    weights: Tensor, mean: Tensor, k: int, selection: str = "auto"
) -> tuple[Step, Reconstruct]:
    from features.dictionary import DictionaryConfig, TopKDictionary
    from features.dictionary.selection import resolve_selection

    features, dim = weights.shape
    dictionary = TopKDictionary(DictionaryConfig("topk", dim, features, k, modality_bias=False))
    dictionary.to(weights.device)
    selected = resolve_selection(selection, dictionary, weights.device)
    dictionary.exact_selection = selected == "exact"
    dictionary.decoder.data.copy_(weights)
    dictionary.encoder.data.copy_(weights)
    dictionary.set_means(mean, mean)
    optimizer = torch.optim.Adam(dictionary.parameters(), lr=LEARNING_RATE, fused=True)
    alive = torch.zeros(features, dtype=torch.bool, device=weights.device)

    def step(x: Tensor) -> None:
        image, text = x.chunk(2)
        optimizer.zero_grad()
        dictionary(image, text, alive).loss.backward()
        dictionary.project_gradients()
        optimizer.step()
        dictionary.constrain()

    def reconstruct(x: Tensor) -> Tensor:
        return dictionary.decode_sparse(dictionary.encode_sparse(x, "image"), "image")

    return step, reconstruct


def ours_exact(weights: Tensor, mean: Tensor, k: int) -> tuple[Step, Reconstruct]:
    return ours(weights, mean, k, "exact")


def ours_trained_offset(weights: Tensor, mean: Tensor, k: int) -> tuple[Step, Reconstruct]:
    """As `ours`, but for the vector that is subtracted, which is trained too, as the others do."""
    from features.dictionary import DictionaryConfig, TopKDictionary
    from features.dictionary.sparse import ActivePlaces, active_outputs, weighted_rows

    features, dim = weights.shape
    dictionary = TopKDictionary(DictionaryConfig("topk", dim, features, k, modality_bias=False))
    dictionary.decoder.data.copy_(weights)
    dictionary.encoder.data.copy_(weights)
    offset = torch.nn.Parameter(mean.clone())
    optimizer = torch.optim.Adam([*dictionary.parameters(), offset], lr=LEARNING_RATE, fused=True)

    def reconstruct(x: Tensor) -> Tensor:
        centred = x - offset  # [n, dim]
        with torch.no_grad():
            code = dictionary.encode_sparse(centred, "image")
        places = ActivePlaces(code.indices, features)
        layer = (dictionary.encoder, dictionary.encoder_bias)
        values = active_outputs(centred, *layer, code.values, places)
        values = torch.where(code.values > 0, values, 0.0)  # [n, k]
        return weighted_rows(values, dictionary.decoder, places) + offset

    def step(x: Tensor) -> None:
        optimizer.zero_grad()
        error = (x - reconstruct(x)).square().sum() / (x - mean).square().sum()
        error.backward()
        dictionary.project_gradients()
        optimizer.step()
        dictionary.constrain()

    return step, reconstruct


def sparsify(weights: Tensor, mean: Tensor, k: int) -> tuple[Step, Reconstruct]:
    if weights.device.type == "cpu":
        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    from sparsify import SparseCoder, SparseCoderConfig

    features, dim = weights.shape
    coder = SparseCoder(dim, SparseCoderConfig(num_latents=features, k=k), device=weights.device)
    coder.encoder.weight.data.copy_(weights)
    coder.W_dec.data.copy_(weights)
    coder.b_dec.data.copy_(mean)
    optimizer = torch.optim.Adam(coder.parameters(), lr=LEARNING_RATE, fused=True)

    def step(x: Tensor) -> None:
        coder.set_decoder_norm_to_unit_norm()
        optimizer.zero_grad()
        coder(x).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()

    return step, lambda x: coder(x).sae_out


def overcomplete(weights: Tensor, mean: Tensor, k: int) -> tuple[Step, Reconstruct]:
    from overcomplete.sae import TopKSAE
    from overcomplete.sae.trackers import DeadCodeTracker

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(*weights.T.shape)
            self.linear.weight.data.copy_(weights)
            self.linear.bias.data.zero_()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            pre = self.linear(x)
            return pre, pre.relu()

    features, dim = weights.shape
    sae = TopKSAE(
        dim,
        features,
        top_k=k,
        encoder_module=Encoder(),
        dictionary_params={"initializer": weights},
    )
    optimizer = torch.optim.Adam(sae.parameters(), lr=LEARNING_RATE, fused=True)
    tracker = DeadCodeTracker(features, "cpu")
    sae.train()

    def step(x: Tensor) -> None:
        optimizer.zero_grad()
        _, z, x_hat = sae(x - mean)
        loss = (x - mean - x_hat).square().mean()
        tracker.update(z)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()

    return step, lambda x: sae(x - mean)[2] + mean


def dictionary_learning(weights: Tensor, mean: Tensor, k: int) -> tuple[Step, Reconstruct]:
    from dictionary_learning.trainers.top_k import TopKTrainer

    features, dim = weights.shape
    trainer = TopKTrainer(
        steps=1_000_000,
        activation_dim=dim,
        dict_size=features,
        k=k,
        layer=0,
        lm_name="none",
        lr=LEARNING_RATE,
        warmup_steps=1,
        device="cpu",
    )
    trainer.ae.encoder.weight.data.copy_(weights)
    trainer.ae.decoder.weight.data.copy_(weights.T)
    trainer.ae.b_dec.data.copy_(mean)
    steps = iter(range(1, 1_000_000))  # in step 0 it would estimate a mean of its own

    return lambda x: trainer.update(next(steps), x), lambda x: trainer.ae(x)


def sae_lens(weights: Tensor, mean: Tensor, k: int) -> tuple[Step, Reconstruct]:
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    features, dim = weights.shape
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=dim, d_sae=features, k=k))
    sae.W_enc.data.copy_(weights.T)
    sae.W_dec.data.copy_(weights)
    sae.b_dec.data.copy_(mean)
    config = SAETrainerConfig(
        total_training_samples=10**9,
        train_batch_size_samples=4096,
        lr=LEARNING_RATE,
        lr_end=LEARNING_RATE,
    )
    trainer = SAETrainer(config, sae, iter(()))
    return trainer.step, lambda x: sae(x)


LIBRARIES: dict[str, Callable[[Tensor, Tensor, int], tuple[Step, Reconstruct]]] = {
    "ours": ours,
    "ours_exact": ours_exact,
    "ours_trained_offset": ours_trained_offset,
    "sparsify": sparsify,
    "overcomplete": overcomplete,
    "dictionary_learning": dictionary_learning,
    "sae_lens": sae_lens,
}


def fvu(reconstruct: Reconstruct, x: Tensor) -> float:
    """Fraction of variance unexplained, one ratio over all samples."""
    with torch.no_grad():
        error = (x - reconstruct(x)).double().square().sum()
    return float(error / (x - x.mean(0)).double().square().sum())


def resident_mib(field: str) -> float:
    """VmRSS, what this process holds in memory, or VmHWM, the most that it held, in MiB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.findall(rf"{field}:\s+(\d+) kB", status)[0]) / 1024


def _now(device: torch.device) -> float:
    """Seconds on a clock, once the device is through with its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class PeakMemory:
    """What building and training add to what the process, or the GPU, held before, in MiB."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            self.before = torch.cuda.memory_allocated(device) / 2**20
        else:
            self.before = resident_mib("VmRSS")

    def start(self) -> None:
        """Forget the most that was held until now."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew

    def mib(self) -> float:
        """The most that was held since the start, beyond what was held before."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20 - self.before
        return resident_mib("VmHWM") - self.before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", choices=LIBRARIES, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--k", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu", help="cpu or cuda; cuda for ours and sparsify")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    data = {name: tensor.clone().to(device) for name, tensor in load_file(arguments.data).items()}
    weights, mean, make = data["weights"], data["train"].mean((0, 1)), LIBRARIES[arguments.library]
    make(weights[: arguments.k], mean, arguments.k)  # what it imports is no part of its peak
    memory = PeakMemory(device)
    step, reconstruct = make(weights, mean, arguments.k)
    seconds: list[float] = []
    curve = [(0, fvu(reconstruct, data["held_out"]))]
    memory.start()
    for batch in data["train"]:
        start = _now(device)
        step(batch)
        seconds.append(_now(device) - start)
        if len(curve) == 1:  # measuring FVU takes memory too
            peak = memory.mib()
        if len(seconds) % EVERY == 0 or len(seconds) == len(data["train"]):
            curve.append((len(seconds), fvu(reconstruct, data["held_out"])))
    arguments.out.write_text(json.dumps({"seconds": seconds, "fvu": curve, "peak_mib": peak}))


if __name__ == "__main__":
    main()
