"""Checks of controls of groups, and of defences attacked through themselves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mms_apps.robustness.checks.base import SLACK, Check, check

ENERGY_MISMATCH = 0.1
MIN_CONTROL_SEEDS = 5
CONTROL_KINDS = ("size", "energy", "pca")
"""Random features of the same number, of the same activation energy; principal components of the
same number as the group has active features an image."""


@dataclass(frozen=True)
class ControlGroup:
    """What stands beside a group."""

    group: str
    kind: str
    seed: int
    energy: float
    """Sum of the members' mean squared activations; for pca the rank."""


def attacked_through(adaptive: Mapping[str, float], nonadaptive: Mapping[str, float]) -> Check:
    """Every defence was attacked through itself too, and no worse than without: by how much the
    adaptive accuracy is above the non-adaptive one.

    Args:
        adaptive: accuracy by defence, attacked through it.
        nonadaptive: accuracy by defence under images made against the undefended model.
    """
    gaps = [adaptive.get(name, math.nan) - nonadaptive[name] for name in nonadaptive]
    worst = max((math.inf if math.isnan(gap) else gap for gap in gaps), default=math.nan)
    return check(
        "defences are attacked through themselves",
        worst,
        SLACK,
        "Images made without knowing the defence hurt it more than those that know it, or those "
        "are missing: gradients through it are masked, so attack through a differentiable "
        "stand-in.",
    )


def square_not_stronger_through(
    square: Mapping[str, float], adaptive: Mapping[str, float]
) -> Check:
    """Square does not beat the gradients that go through a defence: by how much it is stronger.

    Args:
        square: accuracy by defence under Square.
        adaptive: accuracy by defence, attacked through it by gradients.
    """
    return check(
        "Square does not beat gradients through a defence",
        max((adaptive[name] - square[name] for name in square), default=math.nan),
        SLACK,
        "An attack that sees no gradient finds more than those that go through the defence, so it "
        "hides gradients: take the worst case, and attack through a differentiable stand-in.",
    )


def against_controls(group_energy: Mapping[str, float], controls: Iterable[ControlGroup]) -> Check:
    """Every group stands beside random groups of its size, random groups of its energy and PCA of
    its rank, five seeds each: the largest relative error of the matched energy.

    Args:
        group_energy: by group.
        controls: all of them.
    """
    kinds: dict[tuple[str, str], list[float]] = {}
    for control in controls:
        kinds.setdefault((control.group, control.kind), []).append(control.energy)
    worst = 0.0
    for group, energy in group_energy.items():
        for kind in CONTROL_KINDS:
            drawn = kinds.get((group, kind), [])
            if len(drawn) < MIN_CONTROL_SEEDS:
                worst = math.inf
            elif kind == "energy" and energy > 0:
                worst = max(worst, *(abs(e - energy) / energy for e in drawn))
    return check(
        "groups stand beside controls",
        worst,
        ENERGY_MISMATCH,
        "Without controls of the same size, energy and rank, what a group does may be what any "
        "group does: run them over at least five seeds.",
    )
