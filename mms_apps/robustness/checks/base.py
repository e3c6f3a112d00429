"""What a check is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

SLACK = 0.01
"""One image in a hundred: by so much accuracies may differ the wrong way by the luck of a start."""


@dataclass(frozen=True)
class Check:
    """One check."""

    name: str
    passed: bool
    value: float | None
    """None where it could not be measured."""
    threshold: float
    """What the value may be at most."""
    advice: str
    """What it means, and what to do if it failed."""


def check(name: str, value: float, threshold: float, advice: str) -> Check:
    """A check that passes up to the threshold; what cannot be measured fails."""
    known = math.isfinite(value)
    passed = known and value <= threshold + 1e-9
    return Check(name, passed, float(value) if known else None, threshold, advice)


def all_passed(checks: Iterable[Check]) -> bool:
    """Whether a result may be relied on."""
    return all(check.passed for check in checks)
