"""FAB: the nearest adversarial (Croce and Hein 2020, arXiv 1907.02044)."""

from __future__ import annotations

from torch import Tensor, nn

from mms_apps.robustness.attacks.adaptive import adaptive_settings, target_count
from mms_apps.robustness.attacks.base import AttackConfig


def fab(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, config: AttackConfig
) -> Tensor:
    import torchattacks

    return torchattacks.FAB(
        model,
        **adaptive_settings(eps, config),
        multi_targeted=True,
        n_classes=target_count(model, images),
    )(images, labels)
