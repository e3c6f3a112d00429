"""CW: the nearest adversarial in L2 (Carlini and Wagner 2017, arXiv 1608.04644)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mms_apps.robustness.attacks.base import AttackConfig
from mms_apps.robustness.distances import distances
from mms_apps.robustness.models import correct

CW_CONSTANTS = (1.0, 10.0, 100.0)


def cw(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, config: AttackConfig
) -> Tensor:
    import torchattacks

    nearest = images.clone()
    shortest = torch.full((len(images),), torch.inf, device=images.device)
    for constant in CW_CONSTANTS:
        found = torchattacks.CW(model, c=constant, steps=config.steps)(images, labels)
        length = distances(images, found, config.norm)
        better = ~correct(model, found, labels) & (length < shortest)
        nearest[better], shortest[better] = found[better], length[better]
    return nearest
