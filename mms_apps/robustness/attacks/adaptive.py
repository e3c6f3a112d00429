"""What APGD, its targeted form and FAB share."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mms_apps.robustness.attacks.base import AttackConfig
from mms_apps.robustness.models import batched

MAX_TARGETS = 10
"""Classes that targeted attacks go for, the likeliest first, as in AutoAttack."""


def adaptive_settings(eps: float, config: AttackConfig) -> dict[str, Any]:
    """What APGD, its targeted form and FAB all take."""
    return {
        "norm": config.norm,
        "eps": eps,
        "steps": config.steps,
        "n_restarts": config.restarts,
        "seed": config.seed,
    }


def adaptive_passes(config: AttackConfig) -> int:
    return config.steps * config.restarts


def target_count(model: nn.Module, images: Tensor) -> int:
    """Classes that a targeted attack goes for, the right one counted."""
    return min(batched(model, images[:1]).shape[1], MAX_TARGETS)
