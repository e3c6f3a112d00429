"""Products with codes in which few features are active, forwards and backwards.

A dense decoder and its gradient cost samples x features x dim operations; these cost samples x
active x dim, and hold nothing dense of `[samples, features]`. They run wherever
`torch.nn.functional.embedding_bag` does, on the CPU and on CUDA.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class ActivePlaces:
    """Where each feature is active in a code: the code's transpose, sorted once for all products.

    Args:
        indices: the code's, `[n, k]`.
        features: how many there are.
    """

    def __init__(self, indices: Tensor, features: int) -> None:
        flat = indices.flatten().int()  # [n * k]; sorted faster than int64
        self.indices = indices
        self._order = flat.argsort(stable=True)  # [n * k]
        self._samples = self._order // indices.shape[1]  # [n * k]
        counts = torch.bincount(flat, minlength=features)
        self._starts = counts.cumsum(0) - counts  # [features]

    def sums(self, values: Tensor, rows: Tensor) -> Tensor:
        """For each feature the sum of values times rows over the samples: `[features, dim]`.

        Args:
            values: `[n, k]`, at the code's places.
            rows: one a sample, `[n, dim]`.
        """
        return F.embedding_bag(
            self._samples,
            rows,
            self._starts,
            per_sample_weights=values.flatten()[self._order],
            mode="sum",
        )

    def totals(self, values: Tensor) -> Tensor:
        """For each feature the sum of values `[n, k]` over the samples: `[features]`."""
        zeros = values.new_zeros(len(self._starts))
        return zeros.index_add(0, self.indices.flatten(), values.flatten())


def outputs_at(x: Tensor, weight: Tensor, indices: Tensor) -> Tensor:
    """Each sample's products with a few rows of a weight: `[n, k]`; no gradient is asked of them.

    By the kernel behind embedding_bag's gradient by its weights, which is this product; gathering
    the rows would take several times as long.

    Args:
        x: `[n, dim]`.
        weight: `[features, dim]`.
        indices: of the rows, `[n, k]`.
    """
    n, k = indices.shape
    starts = torch.arange(0, n * k, k, device=x.device)
    samples = torch.arange(n, device=x.device).repeat_interleave(k)
    products = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        x, weight, indices.flatten(), starts, samples, 0
    )
    return products.view(n, k)


def weighted_rows(values: Tensor, rows: Tensor, places: ActivePlaces) -> Tensor:
    """Each sample's sum of its active rows, weighted: `[n, dim]`.

    Args:
        values: `[n, k]`, at the code's places.
        rows: one a feature, `[features, dim]`.
    """
    return _WeightedRows.apply(values, rows, places)


def active_outputs(
    x: Tensor, weight: Tensor, bias: Tensor, outputs: Tensor, places: ActivePlaces
) -> Tensor:
    """The active ones of a linear layer's outputs `[n, k]`, with their gradient.

    Args:
        x: `[n, dim]`.
        weight: `[features, dim]`.
        bias: `[features]`.
        outputs: (x @ weight.T + bias) at the places, computed without a gradient: `[n, k]`.
    """
    return _ActiveOutputs.apply(x, weight, bias, outputs, places)


class _WeightedRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, rows: Tensor, places: ActivePlaces) -> Tensor:
        ctx.save_for_backward(values, rows)
        ctx.places = places
        return F.embedding_bag(places.indices, rows, per_sample_weights=values, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        values, rows = ctx.saved_tensors
        values_gradient = outputs_at(gradient, rows, ctx.places.indices)
        return values_gradient, ctx.places.sums(values, gradient), None


class _ActiveOutputs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, outputs: Tensor, places: ActivePlaces
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.places = places
        return outputs.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        x, weight = ctx.saved_tensors
        places = ctx.places
        x_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = F.embedding_bag(
                places.indices, weight, per_sample_weights=gradient, mode="sum"
            )
        return x_gradient, places.sums(gradient, x), places.totals(gradient), None, None
