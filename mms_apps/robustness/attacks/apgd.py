"""APGD on the cross-entropy or DLR loss, and targeted (Croce and Hein 2020, arXiv 2003.01690)."""

from __future__ import annotations

from torch import Tensor, nn

from mms_apps.robustness.attacks.adaptive import adaptive_settings, target_count
from mms_apps.robustness.attacks.base import AttackConfig, Run


def apgd(loss: str) -> Run:
    def run(
        model: nn.Module, images: Tensor, labels: Tensor, eps: float, config: AttackConfig
    ) -> Tensor:
        import torchattacks

        return torchattacks.APGD(
            model,
            **adaptive_settings(eps, config),
            loss=loss,
        )(images, labels)

    return run


def apgd_targeted(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, config: AttackConfig
) -> Tensor:
    import torchattacks

    return torchattacks.APGDT(
        model,
        **adaptive_settings(eps, config),
        n_classes=target_count(model, images),
    )(images, labels)
