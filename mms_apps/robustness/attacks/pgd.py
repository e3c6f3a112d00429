"""PGD: projected gradient steps on the cross-entropy (Madry et al. 2018, arXiv 1706.06083)."""

from __future__ import annotations

from torch import Tensor, nn

from mms_apps.robustness.attacks.base import AttackConfig
from mms_apps.robustness.projected_gradient import STEP


def pgd(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, config: AttackConfig
) -> Tensor:
    import torchattacks

    kind = torchattacks.PGD if config.norm == "Linf" else torchattacks.PGDL2
    alpha = STEP * eps / max(config.pgd_steps, 1)
    last = images
    for restart in range(config.restarts):
        attack = kind(model, eps=eps, alpha=alpha, steps=config.pgd_steps, random_start=restart > 0)
        last = attack(images, labels)
    return last
