"""This process among those that `accelerate launch` or torchrun started."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState

PATIENCE = timedelta(days=7)
"""How long a process waits for the others to finish their parts."""

Made = TypeVar("Made")


def wants_cpu() -> bool:
    """Whether the user said that no accelerator is to be used (`accelerate launch --cpu`)."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")


def this_process() -> PartialState:
    """Its rank, the number of processes, and waiting for the others."""
    import torch
    from accelerate import PartialState

    cpu = wants_cpu() or not torch.accelerator.is_available()
    return PartialState(cpu=cpu, timeout=PATIENCE)


def from_main_process(make: Callable[[], Made]) -> Made:
    """What `make` returns in the main process, in every process."""
    return broadcast(make() if this_process().is_main_process else None, 0)


def broadcast(held: Any, process: int) -> Any:
    """What one process holds, in every process."""
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([held], from_process=process)[0]


def resolve_device(device: str | torch.device) -> torch.device:
    """`auto`: the GPU of this process's local rank, or the CPU."""
    import torch

    if device != "auto":
        return torch.device(device)
    if wants_cpu():
        return torch.device("cpu")
    if torch.cuda.is_available():
        rank = int(os.environ.get("LOCAL_RANK", 0))
        return torch.device("cuda", rank % torch.cuda.device_count())
    return torch.device("cpu")
