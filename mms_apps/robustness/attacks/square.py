"""Square: random search without gradients (Andriushchenko et al. 2020, arXiv 1912.00049)."""

from __future__ import annotations

from torch import Tensor, nn

from mms_apps.robustness.attacks.base import AttackConfig


def square(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, config: AttackConfig
) -> Tensor:
    import torchattacks

    return torchattacks.Square(
        model,
        norm=config.norm,
        eps=eps,
        n_queries=config.queries,
        n_restarts=config.restarts,
        seed=config.seed,
    )(images, labels)
