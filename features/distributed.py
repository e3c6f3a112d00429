"""This process among those that `accelerate launch` or torchrun started, and its device."""

from __future__ import annotations

import atexit
import gc
import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from features.errors import UserError, first_line

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState
    from torch import Tensor

TIMEOUT = timedelta(days=7)
"""How long a process waits for the others to finish their parts."""
BF16_CAPABILITY = 8
"""Compute capability from which NVIDIA GPUs have bf16 (Ampere); older ones emulate it slowly."""
DEVICES = "use auto, cpu, cuda, cuda:N or mps"

LAUNCHER = os.getppid()
WATCH_SECONDS = 0.5
CONNECT_SECONDS = 60.0

Made = TypeVar("Made")


def wants_cpu() -> bool:
    """Whether the user said that no accelerator is to be used (`accelerate launch --cpu`)."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")


def this_process() -> PartialState:
    """Its rank, the number of processes, and waiting for the others."""
    import torch
    from accelerate import PartialState

    _end_with_launcher()
    _leave_at_exit()
    cpu = wants_cpu() or not torch.accelerator.is_available()
    return PartialState(cpu=cpu, timeout=TIMEOUT)


@cache
def _leave_at_exit() -> None:
    """Leave the others before Python ends: threads that still serve them then abort it."""
    import torch.distributed

    def leave() -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
            gc.collect()  # models that were wrapped for the processes keep their threads

    atexit.register(leave)


@cache
def _end_with_launcher() -> None:
    """Where torchrun started this process: end it soon after torchrun was killed, instead of
    waiting for processes that are gone, or writing beside those of the next start.

    Raises:
        UserError: torchrun is gone already.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        try:
            socket.create_connection(address, timeout=CONNECT_SECONDS).close()
        except OSError:
            raise UserError("torchrun, which started this process, is gone; start again") from None
    end_with(LAUNCHER)


def end_with(parent: int) -> None:
    """End this process soon after its parent, by number, is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def from_main_process(make: Callable[[], Made]) -> Made:
    """What `make` returns in the main process, in every process.

    Raises:
        Exception: what `make` raised, in every process.
    """
    if this_process().is_main_process:
        held = in_all_processes(make)
        return broadcast(held, 0)
    in_all_processes(lambda: None)
    return broadcast(None, 0)


def in_all_processes(do: Callable[[], Made]) -> Made:
    """What `do` returns, once all processes are through with it.

    Raises:
        Exception: what `do` raised in the first process where it failed, in every process, so
            that none waits for one that is gone.
    """
    if this_process().num_processes == 1:
        return do()
    failure: Exception | None = None
    try:
        made = do()
    except Exception as error:
        failure = error
    told = failure if failure is None or isinstance(failure, UserError) else first_line(failure)
    everyone = _gather(told)
    if failure is not None:
        raise failure
    for rank, other in enumerate(everyone):
        if other is not None:
            raise other if isinstance(other, UserError) else RuntimeError(f"rank {rank}: {other}")
    return made


def broadcast(held: Any, process: int) -> Any:
    """What one process holds, in every process."""
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([held], from_process=process)[0]


def own_run(count: int) -> range:
    """Of so many numbers, the consecutive ones that fall to this process."""
    rank, ranks = this_process().process_index, this_process().num_processes
    return range(count * rank // ranks, count * (rank + 1) // ranks)


def summed(held: Tensor) -> Tensor:
    """The sum of what the processes hold, in every process; they must all call it."""
    from accelerate.utils import reduce

    state = this_process()
    if state.num_processes == 1:
        return held
    return reduce(held.to(state.device), "sum").to(held.device)


def sum_of_earlier(count: int) -> int:
    """The sum of what the processes of lower rank hold; all must call it."""
    if this_process().num_processes == 1:
        return 0
    return sum(_gather(count)[: this_process().process_index])


def _gather(held: Any) -> list[Any]:
    """What each process holds, by rank, in every process."""
    from accelerate.utils import gather_object

    return gather_object([held])


def resolve_device(device: str | torch.device) -> torch.device:
    """The device that a user's word stands for: the one place that decides it.

    Args:
        device: `auto` is the GPU of this process's local rank, or the CPU where there is none (on
            Apple's GPUs too: they lack float64); `cuda` is the GPU of the local rank; `cpu`,
            `cuda:N`, `mps` are themselves.

    Raises:
        UserError: there is no such device here.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() and not wants_cpu() else "cpu"
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise UserError(f"device {device!r}: no such device; {DEVICES}") from None
    if found.type == "cpu":
        return found
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if found.index is None and count:
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % count)
        if not count or found.index >= count:
            there = f"{count} GPUs" if count else "no CUDA GPU"
            raise UserError(f"device {device}: there is {there} here; {DEVICES}")
        return found
    if found.type == "mps" and torch.backends.mps.is_available():
        return found
    raise UserError(f"device {device}: not available here; {DEVICES}")


def statistics_device(device: torch.device) -> torch.device:
    """Where float64 sums over a device's activations are kept: there, or on the CPU where the
    device has no float64 (Apple's GPUs)."""
    import torch

    return torch.device("cpu") if device.type == "mps" else device


def has_bf16(device: torch.device) -> bool:
    """Whether a device computes in bf16 itself, rather than by emulation."""
    import torch

    if device.type != "cuda":
        return False
    return torch.cuda.get_device_capability(device)[0] >= BF16_CAPABILITY


def has_bf16_products(device: torch.device) -> bool:
    """Whether a device multiplies matrices faster in bf16 than in fp32: GPUs as `has_bf16` says,
    and processors with AMX or AVX-512 for bf16."""
    import torch

    if device.type == "cpu":
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return has_bf16(device)


def mixed_precision(device: torch.device | str) -> torch.autocast:
    """For training: products in bf16 where that is faster, and fp32 elsewhere, where emulation can
    take dozens of times as long."""
    import torch

    device = torch.device(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bf16_products(device))
