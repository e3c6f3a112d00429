"""The loop that all parts are trained by."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from features.checkpoint import load_checkpoint, save_checkpoint

Module = TypeVar("Module", bound=nn.Module)
CHECKPOINT_STEPS = 250
SHOW_EVERY = 100
log = logging.getLogger(__name__)


def cosine(learning_rate: float, step: int, steps: int) -> float:
    """A learning rate that falls to zero."""
    return learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))


def constant_then_falling(learning_rate: float, step: int, steps: int, fall: float) -> float:
    """A learning rate that is constant, and falls linearly to zero in the last share `fall`."""
    return learning_rate * min(1.0, (1 - step / steps) / fall)


def optimise(
    modules: dict[str, nn.Module],
    loss: Callable[[int], Tensor],
    checkpoint: Path,
    steps: int,
    learning_rate: Callable[[int], float],
    settings: str,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """Adam on the first module, its learning rate warmed up, checkpointed."""
    model = next(iter(modules.values()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate(0), weight_decay=0.01)
    first = load_checkpoint(checkpoint, modules, optimizer, settings)
    model.train()
    running = 0.0
    for step in range(first, steps):
        warm = min(1.0, (step + 1) / 100)
        for group in optimizer.param_groups:
            group["lr"] = warm * learning_rate(step)
        value = loss(step)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        after_step()
        running += float(value.detach())
        if (step + 1) % SHOW_EVERY == 0:
            log.info("%s step %d, loss %.4f", checkpoint.stem, step + 1, running / SHOW_EVERY)
            running = 0.0
        if (step + 1) % CHECKPOINT_STEPS == 0 or step + 1 == steps:
            save_checkpoint(checkpoint, modules, optimizer, step + 1, settings)


def optimise_average(
    model: Module,
    loss: Callable[[int], Tensor],
    checkpoint: Path,
    steps: int,
    learning_rate: Callable[[int], float],
    settings: str,
    decay: float,
    **others: nn.Module,
) -> Module:
    """As `optimise`: the moving average of the model's weights.

    Args:
        others: whose state is checkpointed with the model's.
    """
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    optimise(
        {"unet": model, "average": average, **others},
        loss,
        checkpoint,
        steps,
        learning_rate,
        settings,
        after_step=lambda: average.update_parameters(model),
    )
    averaged: Any = average.module
    return averaged


def step_generator(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step, the same ones in a training that goes on."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)
