"""FGSM: one step along the gradient (Goodfellow et al. 2015, arXiv 1412.6572)."""

from __future__ import annotations

from torch import Tensor, nn

from mms_apps.robustness.attacks.base import AttackConfig


def fgsm(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, config: AttackConfig
) -> Tensor:
    import torchattacks

    if config.norm == "Linf":
        return torchattacks.FGSM(model, eps=eps)(images, labels)
    one = torchattacks.PGDL2(model, eps=eps, alpha=eps, steps=1, random_start=False)
    return one(images, labels)
