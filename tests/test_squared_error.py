"""The sum of squared differences against its definition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from features.dictionary.squared_error import squared_error


def numbers(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(), (5,), (4, 3), (2, 3, 4), (300, 40)])
def test_it_and_its_gradient_are_mse_losses(shape: tuple[int, ...]) -> None:
    x, estimate = numbers(*shape, seed=0), numbers(*shape, seed=1).requires_grad_()
    ours, theirs = squared_error(estimate, x), F.mse_loss(estimate, x, reduction="sum")
    torch.testing.assert_close(ours, theirs)
    found, expected = (torch.autograd.grad(value / 3, estimate)[0] for value in (ours, theirs))
    assert torch.equal(found, expected)  # to the bit: trainings give the same weights


def test_an_estimate_that_is_not_contiguous_counts_whole() -> None:
    x, estimate = numbers(4, 3, seed=0), numbers(3, 4, seed=1).T
    torch.testing.assert_close(squared_error(estimate, x), (estimate - x).square().sum())
