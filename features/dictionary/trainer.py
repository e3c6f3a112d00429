"""Fitting a dictionary on the embeddings of a store, images and texts together."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from features.checkpoint import load_checkpoint, save_checkpoint
from features.dictionary.base import (
    DICTIONARIES,
    Dictionary,
    DictionaryConfig,
    dictionary_class,
    load_dictionary,
)
from features.dictionary.reconstruction import reconstruction_figures
from features.distributed import from_main_process, resolve_device, this_process
from features.errors import UserError
from features.modality import FIXED_BOUNDS, MODALITIES
from features.store.store import ActivationStore

EVALUATION_BATCH = 1024
HELD_OUT_ONE_IN = 10
HASHED_DIMS = 16
DECAY_SHARE = 0.2
SHOW_EVERY = 20
SHOWN_PAIRS = 64
CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class TrainConfig:
    """How to fit a dictionary."""

    kind: str = "topk"
    features: int | None = None
    """None: 4 times the embedding's dimensions (identity: the dimensions)."""
    k: int = 16
    """Active features a sample (identity: all)."""
    modality_bias: bool | None = None
    """Centre images and texts by their own means; None: as the kind does."""
    batch_size: int = 256
    """Pairs a step, over all processes; a tenth of them is held out."""
    steps: int = 3000
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    dead_steps: int = 50
    """A feature that was inactive for so many steps is dead, until it is active again."""
    checkpoint_steps: int = 500
    seed: int = 0


def fit_dictionary(
    store: ActivationStore,
    config: TrainConfig,
    out: str | Path,
    *,
    device: torch.device | str = "auto",
    progress: bool = True,
) -> Dictionary:
    """Fit a dictionary and save it, with its figures on the held-out pairs, to the folder `out`.

    A tenth of the pairs is held out (`is_held_out`). Under `accelerate launch` each process takes
    its share of every batch. A run that was cut off goes on from its last checkpoint and ends in
    the same result; a finished one is loaded.

    Args:
        device: as `resolve_device` takes it.

    Returns:
        The dictionary, on the CPU.

    Raises:
        UserError: the settings don't fit the store, or `out` holds another dictionary.
    """
    out = Path(out)
    made_from = dataclasses.asdict(config) | {
        "store_fingerprint": store.fingerprint,
        "pairs": store.config.pairs,
    }
    if from_main_process(lambda: _finished(out, made_from)):
        return load_dictionary(out)
    dictionary = new_dictionary(store, config)
    means, pairs = _training_means(store)
    if pairs < 2:
        raise UserError(f"{store.path}: {pairs} pairs to train on; a dictionary needs at least two")
    dictionary.set_means(*means.float())
    if list(dictionary.parameters()):
        _train(dictionary, store, config, out, json.dumps(made_from), device, progress)
    dictionary = dictionary.cpu().eval().requires_grad_(False)
    dictionary.config = dataclasses.replace(
        dictionary.config, training=made_from, held_out=held_out_figures(dictionary, store)
    )

    def finish() -> None:
        dictionary.save(out)
        (out / CHECKPOINT).unlink(missing_ok=True)

    from_main_process(finish)
    return dictionary


def new_dictionary(store: ActivationStore, config: TrainConfig) -> Dictionary:
    """An untrained dictionary for the embeddings of a store.

    Raises:
        UserError: the settings don't fit the store.
    """
    cls = dictionary_class(config.kind)
    if not cls.trained_here:
        kinds = ", ".join(name for name, kind in DICTIONARIES.items() if kind.trained_here)
        raise UserError(f"{config.kind}: not trained here; fit one of {kinds}, or use mms convert")
    if min(config.batch_size, config.steps, config.checkpoint_steps) < 1:
        raise UserError("batch_size, steps and checkpoint_steps must be at least 1")
    if config.kind == "identity":
        features = k = store.dim
    else:
        features, k = config.features or 4 * store.dim, config.k
    if config.features not in (None, features):
        raise UserError(f"features {config.features}: identity has {features}; leave it out")
    if not 1 <= k <= features:
        raise UserError(f"k {k}: must be at least 1 and at most the {features} features")
    bias = cls.default_modality_bias if config.modality_bias is None else config.modality_bias
    return cls(
        DictionaryConfig(
            kind=config.kind,
            dim=store.dim,
            features=features,
            k=k,
            modality_bias=bias,
            seed=config.seed,
            encoder=store.config.encoder,
            encoder_fingerprint=store.config.encoder_fingerprint,
        )
    )


def is_held_out(image: Tensor) -> Tensor:
    """Which pairs are kept from training: `[n]` bool, about a tenth.

    Decided by a hash of the image's embedding as the store keeps it (fp16), so that pairs with the
    same image fall on the same side, whatever the order.

    Args:
        image: `[n, dim]`.
    """
    bits = image[:, :HASHED_DIMS].half().contiguous().view(torch.int16).long()  # [n, hashed dims]
    state = torch.full((len(bits),), 0x2545F491)
    for column in bits.unbind(1):  # FNV-like; int64 arithmetic wraps
        state = (state ^ (column & 0xFFFF)) * 0x100000001B3
        state = state ^ ((state >> 29) & 0x7FFFFFFFF)
    return (state & 0x7FFFFFFF) % HELD_OUT_ONE_IN == 0


def held_out_figures(
    dictionary: Dictionary, store: ActivationStore
) -> dict[str, dict[str, float | None]]:
    """How well a dictionary reconstructs the held-out pairs of its training store."""
    held_out = (
        (image[rows], text[rows])
        for image, text in store.batches(EVALUATION_BATCH)
        if (rows := is_held_out(image)).any()
    )
    return reconstruction_figures(dictionary, held_out)


class _Activity(nn.Module):
    """For how many steps each feature has been inactive."""

    idle: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("idle", torch.zeros(features, dtype=torch.long))

    def update(self, active: Tensor) -> None:
        """Count one step, in which the features of `active` `[features]` bool were active."""
        self.idle += 1
        self.idle[active] = 0


def _train(
    dictionary: Dictionary,
    store: ActivationStore,
    config: TrainConfig,
    out: Path,
    settings: str,
    device: torch.device | str,
    progress: bool,
) -> None:
    """The training loop; the dictionary is changed in place."""
    from accelerate import Accelerator
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    accelerator = Accelerator(device_placement=False, cpu=this_process().device.type == "cpu")
    target = resolve_device(device)
    dictionary.to(target)
    activity = _Activity(dictionary.config.features).to(target)
    model, optimizer = accelerator.prepare(
        dictionary, torch.optim.Adam(dictionary.parameters(), lr=config.learning_rate, fused=True)
    )
    modules: dict[str, nn.Module] = {"dictionary": dictionary, "activity": activity}
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / CHECKPOINT
    first = load_checkpoint(checkpoint, modules, optimizer, settings)
    share = slice(accelerator.process_index, None, accelerator.num_processes)
    bar = Progress(
        TextColumn("fitting the dictionary"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("FVU {task.fields[fvu]}, TextD | CrossD | ImgD {task.fields[classes]}"),
        disable=not (progress and accelerator.is_main_process),
    )
    with bar:
        task = bar.add_task("", total=config.steps, completed=first, fvu="-", classes="-")
        for step, image, text in _training_batches(store, config, first):
            whole = len(image) // accelerator.num_processes * accelerator.num_processes
            if whole:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step, config)
                dead = activity.idle >= config.dead_steps
                result = model(
                    image[:whole][share].to(target),
                    text[:whole][share].to(target),
                    dead,
                )
                optimizer.zero_grad()
                accelerator.backward(result.loss)
                dictionary.project_gradients()
                optimizer.step()
                dictionary.constrain()
                activity.update(accelerator.reduce(result.active.int(), "sum") > 0)
                if step % SHOW_EVERY == 0:
                    shown = (batch[:SHOWN_PAIRS].to(target) for batch in (image, text))
                    shares = " | ".join(f"{s:.0%}" for s in class_shares(dictionary, *shown))
                    bar.update(task, fvu=f"{result.fvu.item():.3f}", classes=shares)
            bar.update(task, completed=step + 1)
            finished = step + 1
            if finished % config.checkpoint_steps == 0 and accelerator.is_main_process:
                save_checkpoint(checkpoint, modules, optimizer, finished, settings)
    accelerator.wait_for_everyone()


@torch.no_grad()
def class_shares(dictionary: Dictionary, image: Tensor, text: Tensor) -> list[float]:
    """Shares of the features active on these pairs whose MDS there lies below 1/3, between, and
    above 2/3; all 0 where none is active.

    Args:
        image: `[n, dim]`.
        text: `[n, dim]`.
    """
    activations = [
        dictionary.encode(x, m).abs() for x, m in zip((image, text), MODALITIES, strict=True)
    ]
    total = activations[0] + activations[1]  # [n, features]
    pairs = (total > 0).sum(0)  # [features]
    ratio = torch.where(total > 0, activations[0] / total, 0.0)
    mds = ratio.sum(0)[pairs > 0] / pairs[pairs > 0]  # [active features]
    low, high = FIXED_BOUNDS
    counts = ((mds < low).sum(), ((mds >= low) & (mds <= high)).sum(), (mds > high).sum())
    return [float(count) / max(1, len(mds)) for count in counts]


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then constant, then linearly to zero over the last fifth."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    left = (config.steps - step) / max(1.0, DECAY_SHARE * config.steps)
    return config.learning_rate * min(warm, left)


def _training_batches(
    store: ActivationStore, config: TrainConfig, first: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(step, image, text) without the held-out pairs, from step `first` on, epoch after epoch."""
    per_epoch = math.ceil(len(store) / config.batch_size)
    for epoch in count(first // per_epoch):
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        batches = store.shuffled_batches(config.batch_size, generator)
        for step, (image, text) in enumerate(batches, start=epoch * per_epoch):
            if step >= config.steps:
                return
            if step >= first:
                kept = ~is_held_out(image)
                yield step, image[kept], text[kept]


def _training_means(store: ActivationStore) -> tuple[Tensor, int]:
    """Mean image and mean text of the training pairs `[2, dim]` float64, and their count."""
    total = torch.zeros(2, store.dim, dtype=torch.float64)
    pairs = 0
    for image, text in store.batches(EVALUATION_BATCH):
        kept = ~is_held_out(image)
        total += torch.stack([image[kept].double().sum(0), text[kept].double().sum(0)])
        pairs += int(kept.sum())
    return total / max(1, pairs), pairs


def _finished(out: Path, made_from: dict[str, Any]) -> bool:
    """Whether `out` holds the dictionary of these settings; what a kill left beside it is removed.

    Raises:
        UserError: it holds another.
    """
    if not (out / "config.json").is_file():
        return False
    if load_dictionary(out).config.training != made_from:
        raise UserError(
            f"{out}: holds a dictionary of other settings; name another folder or remove it"
        )
    (out / CHECKPOINT).unlink(missing_ok=True)
    return True
