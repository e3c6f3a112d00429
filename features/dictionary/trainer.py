"""Fitting a dictionary on the embeddings of a store, images and texts together."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from features.checkpoint import load_checkpoint, save_checkpoint
from features.dictionary.base import (
    Dictionary,
    DictionaryConfig,
    dictionary_class,
    load_dictionary,
    trained_kinds,
)
from features.dictionary.held_out import (
    evaluated_pairs,
    held_out_figures,
    is_held_out,
    training_means,
)
from features.dictionary.history import History, require_tracker
from features.dictionary.reconstruction import fvu_within
from features.dictionary.selection import resolve_selection
from features.dictionary.train_config import TrainConfig
from features.distributed import (
    from_main_process,
    in_all_processes,
    resolve_device,
    this_process,
)
from features.errors import UserError
from features.files import read_json
from features.modality import FIXED_BOUNDS, MODALITIES
from features.store.store import ActivationStore

SHOW_EVERY = 20
SHOWN_PAIRS = 64
CHECKPOINT = "checkpoint.safetensors"
ADDED_SETTINGS = {"selection": "auto"}
"""Settings that are younger than some dictionaries, and what they count as there."""


def fit_dictionary(
    store: ActivationStore,
    config: TrainConfig,
    out: str | Path,
    *,
    device: torch.device | str = "auto",
    tracker: str | None = None,
    progress: bool = True,
) -> Dictionary:
    """Fit a dictionary and save it, with its figures on the held-out pairs, to the folder `out`.

    What is measured on the way is written to metrics.jsonl there.

    A tenth of the pairs is held out (`is_held_out`). Under `accelerate launch` each process takes
    its share of every batch. A run that was cut off goes on from its last checkpoint and ends in
    the same result; a finished one is loaded.

    Args:
        device: as `resolve_device` takes it.
        tracker: tensorboard, wandb or trackio, which is told too (through accelerate).

    Returns:
        The dictionary, on the CPU.

    Raises:
        UserError: the settings don't fit the store, `out` holds another dictionary, or the tracker
            is not there.
    """
    out = Path(out)
    require_tracker(tracker)
    made_from = dataclasses.asdict(config) | {
        "store_fingerprint": store.fingerprint,
        "pairs": store.config.pairs,
    }
    if from_main_process(lambda: _finished(out, made_from)):
        return load_dictionary(out)
    dictionary = new_dictionary(store, config)
    means, pairs = training_means(store)
    if pairs < 2:
        raise UserError(f"{store.path}: {pairs} pairs to train on; a dictionary needs at least two")
    dictionary.set_means(*means.float())
    ended: dict[str, Any] = {}
    if list(dictionary.parameters()):
        ended = _train(dictionary, store, config, out, made_from, device, tracker, progress)
    dictionary = dictionary.cpu().eval().requires_grad_(False)
    dictionary.config = dataclasses.replace(
        dictionary.config, training=made_from | ended, held_out=held_out_figures(dictionary, store)
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
    cls, features, k = resolve_dictionary(config, store.dim)
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


def resolve_dictionary(config: TrainConfig, dim: int) -> tuple[type[Dictionary], int, int]:
    """The kind, the number of features and the k of a dictionary for embeddings of so many
    dimensions.

    Raises:
        UserError: a setting is out of its range, or they don't fit together.
    """
    cls = dictionary_class(config.kind)
    if not cls.trained_here:
        raise UserError(
            f"{config.kind}: not trained here; fit one of {', '.join(trained_kinds())}, or use mms "
            "convert"
        )
    config.total_steps(config.batch_size)
    if config.kind == "identity":
        features = k = dim
    else:
        features = 4 * dim if config.features is None else config.features
        k = config.k
    if config.features not in (None, features):
        raise UserError(f"features {config.features}: identity has {features}; leave it out")
    if features < 1:
        raise UserError(f"features {features}: must be at least 1")
    if not 1 <= k <= features:
        raise UserError(f"k {k}: must be at least 1 and at most the {features} features")
    return cls, features, k


class _Activity(nn.Module):
    """For how many pairs each feature has been inactive."""

    idle: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("idle", torch.zeros(features, dtype=torch.long))

    def update(self, active: Tensor, pairs: int) -> None:
        """Count a step of so many pairs, in which the features of `active` `[features]` bool were
        active."""
        self.idle += pairs
        self.idle[active] = 0


class _Best(nn.Module):
    """The best weights so far by the FVU on held-out pairs, and how many measurements came after.

    Args:
        dictionary: its state is kept.
    """

    fvu: Tensor
    since: Tensor

    def __init__(self, dictionary: Dictionary) -> None:
        super().__init__()
        self.register_buffer("fvu", torch.full((), math.inf, dtype=torch.float64))
        self.register_buffer("since", torch.zeros((), dtype=torch.long))
        self.kept = copy.deepcopy(dictionary)

    def update(self, fvu: float, dictionary: Dictionary) -> None:
        """Take a measurement."""
        if fvu < self.fvu:
            self.fvu.fill_(fvu)
            self.since.zero_()
            self.kept.load_state_dict(dictionary.state_dict())
        else:
            self.since += 1


def _train(
    dictionary: Dictionary,
    store: ActivationStore,
    config: TrainConfig,
    out: Path,
    made_from: dict[str, Any],
    device: torch.device | str,
    tracker: str | None,
    progress: bool,
) -> dict[str, Any]:
    """The training loop; the dictionary is changed in place.

    Returns:
        How it ended: the steps that it took, accelerate's mixed precision, and the selection.
    """
    from accelerate import Accelerator
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    accelerator = Accelerator(
        device_placement=False,
        cpu=this_process().device.type == "cpu",
        log_with=tracker,
        project_dir=out,
    )
    target = resolve_device(device)
    dictionary.to(target)
    selection = resolve_selection(config.selection, dictionary, target)
    dictionary.exact_selection = selection == "exact"
    activity = _Activity(dictionary.config.features).to(target)
    model, optimizer = accelerator.prepare(
        dictionary, torch.optim.Adam(dictionary.parameters(), lr=config.learning_rate, fused=True)
    )
    modules: dict[str, nn.Module] = {"dictionary": dictionary, "activity": activity}
    best = None
    if config.patience is not None:
        best = modules["best"] = _Best(dictionary).requires_grad_(False)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / CHECKPOINT
    settings = json.dumps(made_from)
    steps = config.total_steps(len(store))
    finished = load_checkpoint(checkpoint, modules, optimizer, settings)
    history = in_all_processes(lambda: History(out, finished, accelerator, made_from))
    share = slice(accelerator.process_index, None, accelerator.num_processes)
    held_out = [side[share].to(target) for side in evaluated_pairs(store)]
    bar = Progress(
        TextColumn("fitting the dictionary"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("FVU {task.fields[fvu]}, TextD | CrossD | ImgD {task.fields[classes]}"),
        disable=not (progress and accelerator.is_main_process),
    )
    with bar:
        task = bar.add_task("", total=steps, completed=finished, fvu="-", classes="-")
        for step, image, text in _training_batches(store, config, finished):
            if best is not None and best.since >= (config.patience or 0):
                break
            whole = len(image) // accelerator.num_processes * accelerator.num_processes
            measured: dict[str, float | None] = {}
            if whole:
                rate = config.rate(step, steps)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                dead = activity.idle >= config.dead_samples
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
                active = accelerator.reduce(result.active.int(), "sum") > 0
                activity.update(active, config.batch_size)
                if step % SHOW_EVERY == 0:
                    shown = (batch[:SHOWN_PAIRS].to(target) for batch in (image, text))
                    shares = " | ".join(f"{s:.0%}" for s in class_shares(dictionary, *shown))
                    loss, fvu_of_batch = accelerator.reduce(
                        torch.stack([result.loss.detach(), result.fvu]), "mean"
                    ).tolist()
                    if not math.isfinite(loss):
                        raise _diverged(out, f"loss {loss} in step {step}", config)
                    bar.update(task, fvu=f"{fvu_of_batch:.3f}", classes=shares)
                    measured = {
                        "pairs": (step + 1) * config.batch_size,
                        "loss": loss,
                        "fvu": fvu_of_batch,
                        "dead": dead.float().mean().item(),
                        "learning_rate": rate,
                    }
            finished = step + 1
            bar.update(task, completed=finished)
            if finished % config.evaluate_steps == 0 or finished == steps:
                fvu = fvu_within(dictionary, *held_out)
                measured["held_out_fvu"] = fvu
                if best is not None and fvu is not None:
                    best.update(fvu, dictionary)
            if measured:
                history.add(step, measured)
            if finished % config.checkpoint_steps == 0 and accelerator.is_main_process:
                save_checkpoint(checkpoint, modules, optimizer, finished, settings)
    history.end()
    if not all(weight.isfinite().all() for weight in dictionary.parameters()):
        raise _diverged(out, "weights that are not finite", config)
    if best is not None and torch.isfinite(best.fvu):
        dictionary.load_state_dict(best.kept.state_dict())
    accelerator.wait_for_everyone()
    return {
        "steps_taken": finished,
        "mixed_precision": accelerator.mixed_precision,
        "selected": selection,
    }


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


def _training_batches(
    store: ActivationStore, config: TrainConfig, first: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(step, image, text) without the held-out pairs, from step `first` on, epoch after epoch."""
    per_epoch = math.ceil(len(store) / config.batch_size)
    steps = config.total_steps(len(store))
    for epoch in count(first // per_epoch):
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        batches = store.shuffled_batches(config.batch_size, generator)
        for step, (image, text) in enumerate(batches, start=epoch * per_epoch):
            if step >= steps:
                return
            if step >= first:
                kept = ~is_held_out(image)
                yield step, image[kept], text[kept]


def _diverged(out: Path, seen: str, config: TrainConfig) -> UserError:
    return UserError(
        f"{out}: the training diverged ({seen}); lower the learning rate, {config.learning_rate}"
    )


def _finished(out: Path, made_from: dict[str, Any]) -> bool:
    """Whether `out` holds the dictionary of these settings; what a kill left beside it is removed.

    Raises:
        UserError: it holds another, or something else.
    """
    if not (out / "config.json").is_file():
        return False
    if "kind" not in read_json(out / "config.json"):
        raise UserError(f"{out}: exists already and is no dictionary; name another folder")
    training = ADDED_SETTINGS | (load_dictionary(out).config.training or {})
    if any(key not in training or training[key] != made_from[key] for key in made_from):
        raise UserError(
            f"{out}: holds a dictionary of other settings; name another folder or remove it"
        )
    (out / CHECKPOINT).unlink(missing_ok=True)
    return True
