"""Values as users give them, of Python, numpy or torch."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable
from numbers import Real
from typing import Any, TypeVar

from features.errors import UserError

Kind = TypeVar("Kind")
LEAST_SEED, MOST_SEED = -(2**63), 2**64 - 1
"""What torch takes."""


def plain(value: Any) -> Any:
    """A number of numpy or torch as Python's own; all else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def number(name: str, value: Any) -> float:
    """A finite number.

    Raises:
        UserError: it is none.
    """
    found = plain(value)
    try:
        good = isinstance(found, Real) and not isinstance(found, bool) and math.isfinite(found)
    except OverflowError:  # an integer that no float holds
        good = False
    if not good:
        raise UserError(f"{name} {_shown(value)}: must be a finite number")
    return float(found)


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """A whole number.

    Raises:
        UserError: it is none, or out of its range.
    """
    found = plain(value)
    good = isinstance(found, int) and not isinstance(found, bool) and found >= least
    if not good or (most is not None and found > most):
        span = f"{least} or more" if most is None else f"from {least} to {most}"
        raise UserError(f"{name} {_shown(value)}: must be a whole number, {span}")
    return int(found)


def seed_of(value: Any) -> int:
    """A seed.

    Raises:
        UserError: it is no whole number that torch takes as one.
    """
    return whole("seed", value, LEAST_SEED, MOST_SEED)


def numbers(name: str, values: Any) -> tuple[float, ...]:
    """Finite numbers, of a list or an array.

    Raises:
        UserError: they are none.
    """
    found = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(found, list | tuple):
        raise UserError(f"{name} {_shown(values)}: give a tuple of numbers")
    return tuple(number(name, value) for value in found)


def several(name: str, values: Any, kind: type[Kind], written: str) -> tuple[Kind, ...]:
    """Objects of one kind, from whatever can be gone through once.

    Args:
        written: how one is made, for the message.

    Raises:
        UserError: they are none.
    """
    found = tuple(values) if isinstance(values, Iterable) else None
    if found is None or not all(isinstance(one, kind) for one in found):
        given = values if found is None else found
        raise UserError(f"{name} {_shown(given)}: give a tuple of {written}")
    return found


def _shown(value: Any) -> str:
    """A value, shortened where it is long."""
    return str(value) if isinstance(value, float) else reprlib.repr(value)
