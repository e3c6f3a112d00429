"""Random noise, the weakest of attacks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mms_apps.robustness.attacks.base import AttackConfig


def noise(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, config: AttackConfig
) -> Tensor:
    """A random corner of the L-inf ball, or a random point on the L2 sphere."""
    noise = torch.randn_like(images)
    if config.norm == "Linf":
        return (images + eps * noise.sign()).clamp(0, 1)
    return (images + eps * noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(0, 1)
