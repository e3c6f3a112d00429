"""Sparse products against dense ones."""

from __future__ import annotations

import torch
from torch import Tensor

from features.dictionary.sparse import ActivePlaces, active_outputs, weighted_rows

N, K, FEATURES, DIM = 7, 3, 10, 4


def made(*shape: int, seed: int = 0) -> Tensor:
    values = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return values.requires_grad_()


def code_indices() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randperm(FEATURES - 1, generator=generator)[:K] for _ in range(N)]
    return torch.stack(rows)  # the last feature is never active


def dense(values: Tensor, indices: Tensor) -> Tensor:
    return torch.zeros(N, FEATURES, dtype=values.dtype).scatter(1, indices, values)


def gradients(output: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    weights = torch.arange(output.numel(), dtype=output.dtype).view_as(output).cos()
    return torch.autograd.grad((output * weights).sum(), inputs)


def test_weighted_rows_and_their_gradients_are_the_dense_products() -> None:
    values, rows, indices = made(N, K), made(FEATURES, DIM, seed=2), code_indices()
    ours = weighted_rows(values, rows, ActivePlaces(indices, FEATURES))
    theirs = dense(values, indices) @ rows
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients(ours, values, rows), gradients(theirs, values, rows))


def test_active_outputs_have_the_linear_layers_gradients() -> None:
    x, weight, bias = made(N, DIM), made(FEATURES, DIM, seed=2), made(FEATURES, seed=3)
    indices = code_indices()
    theirs = (x @ weight.T + bias).gather(1, indices)
    expected = gradients(theirs, x, weight, bias)
    places = ActivePlaces(indices, FEATURES)
    ours = active_outputs(x, weight, bias, theirs.detach(), places)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients(ours, x, weight, bias), expected)
    detached = active_outputs(x.detach(), weight, bias, theirs.detach(), places)
    torch.testing.assert_close(gradients(detached, weight, bias), expected[1:])


def test_a_feature_that_is_active_twice_in_a_sample_counts_twice() -> None:
    values, rows = made(1, 2), made(3, DIM, seed=2)
    indices = torch.tensor([[1, 1]])
    ours = weighted_rows(values, rows, ActivePlaces(indices, 3))
    torch.testing.assert_close(ours, values.sum() * rows[1:2])
    values_gradient, rows_gradient = gradients(ours, values, rows)
    assert torch.equal(values_gradient[0, 0], values_gradient[0, 1])
    assert not rows_gradient[[0, 2]].any()
