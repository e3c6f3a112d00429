"""The sum of squared differences in one pass, forwards and backwards."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def squared_error(estimate: Tensor, x: Tensor) -> Tensor:
    """Sum of the squared differences of two tensors of one shape, with its gradient for the first
    alone.

    Nothing but the differences is held, where `torch.nn.functional.mse_loss` holds their squares
    too.
    """
    return _SquaredError.apply(estimate, x)


class _SquaredError(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, estimate: Tensor, x: Tensor) -> Tensor:
        difference = estimate - x
        ctx.save_for_backward(difference)
        return difference.flatten().dot(difference.flatten())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (difference,) = ctx.saved_tensors
        return difference * (2 * gradient), None
