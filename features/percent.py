"""Shares in words."""

from __future__ import annotations

import math

DIGITS = 4
"""At most, after the point."""
EXACT = 1e-6
"""A share this near 0, 1 or -1 is what rounding left of it."""


def percent(share: float | None, digits: int = 0) -> str:
    """A share as a percentage, n/a where it is undefined: with more digits than `digits` where
    these would make all (100%) or none (0%) of what is nearly so."""
    if share is None or not math.isfinite(share):
        return "n/a"
    if abs(share - round(share)) < EXACT:
        return f"{100 * round(share):.{digits}f}%"
    while digits < DIGITS and abs(float(f"{100 * share:.{digits}f}")) in (0.0, 100.0):
        digits += 1
    return f"{100 * share:.{digits}f}%"
