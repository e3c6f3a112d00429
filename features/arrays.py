"""Numbers that a user hands over, as tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from features.errors import UserError

NO_NUMBERS = "OSUV"
"""numpy's kinds of types that hold something else."""


def holds_numbers(values: Any) -> bool:
    """Whether they are a tensor or an array of numbers, not one of texts or of objects."""
    if isinstance(values, np.ndarray):
        return values.dtype.kind not in NO_NUMBERS
    return isinstance(values, Tensor)


def tensor_of(values: Any, what: str) -> Tensor:
    """Numbers as a tensor: a tensor as it is, or whatever numpy takes for an array, in any order of
    bytes and rows.

    Args:
        what: they are, for the message.

    Raises:
        UserError: they are no numbers.
    """
    if isinstance(values, Tensor):
        return values
    try:
        array = np.asarray(values)
        native = array.dtype.newbyteorder("=")
        return torch.from_numpy(np.require(array, native, ["C", "W"]))
    except (TypeError, ValueError, RuntimeError):  # of numpy and of torch
        raise UserError(
            f"{what} are a {type(values).__name__} that is no array of numbers; give a tensor or "
            "an array [n, dim]"
        ) from None
