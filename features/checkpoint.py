"""Training checkpoints without pickle: one safetensors file, written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from features.errors import UserError
from features.files import write_tensors


def save_checkpoint(
    path: Path,
    modules: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    step: int,
    settings: str,
) -> None:
    """Write the modules' and the optimizer's state after `step` steps.

    `settings` is a string (JSON, say) of all that must be equal for the training to go on.
    """
    tensors = {
        f"{name}/{key}": value
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            tensors[f"optimizer/{index}/{key}"] = torch.as_tensor(value)
    write_tensors(
        path,
        {key: value.clone() for key, value in tensors.items()},
        {"step": str(step), "settings": settings},
    )


def load_checkpoint(
    path: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer, settings: str
) -> int:
    """Restore what `save_checkpoint` wrote and return its step.

    Returns 0 and changes nothing where there is no checkpoint.

    Raises:
        UserError: it was made with other settings.
    """
    if not path.is_file():
        return 0
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        if metadata["settings"] != settings:
            raise UserError(
                f"{path}: an unfinished training with other settings or pairs; name another folder "
                "or remove this file"
            )
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    for name, module in modules.items():
        prefix = f"{name}/"
        module.load_state_dict(
            {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
        )
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer/"):
            _, index, field = key.split("/")
            state.setdefault(int(index), {})[field] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    return int(metadata["step"])
