"""Whose the images are: credits and licences, which go wherever the images go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from features.store.store import ATTRIBUTE, ActivationStore

SPELLINGS = {"credit": ("credit",), "licence": ("licence", "license")}
"""The attributes of a pair that hold them."""
PREFIX = "credit:"


def rights(store: ActivationStore, rows: Sequence[int]) -> dict[str, list[str | None]]:
    """`credit` and `licence` of the pairs at `rows`, in their order; None where a pair has none."""
    names = store.sample_columns
    columns = {
        kind: next((ATTRIBUTE + s for s in spellings if ATTRIBUTE + s in names), None)
        for kind, spellings in SPELLINGS.items()
    }
    return {
        kind: [None] * len(rows)
        if name is None
        else store.sample_rows(rows, [name])[name].to_pylist()
        for kind, name in columns.items()
    }


def credit_line(row: Mapping[str, Any]) -> str:
    """`credit` and `licence` of a row, or of a pair's attributes, in one line; "" where it tells
    neither.

    >>> credit_line({"credit": "credit: “Market” by A. Jones, CC BY 2.0", "licence": "CC BY"})
    '“Market” by A. Jones, CC BY 2.0'
    >>> credit_line({"credit": "A. Jones", "licence": "CC0"})
    'A. Jones, CC0'
    """
    credit, licence = (
        str(next((row[s] for s in spellings if row.get(s)), "")).strip()
        for spellings in SPELLINGS.values()
    )
    if credit.lower().startswith(PREFIX):
        credit = credit[len(PREFIX) :].strip()
    said = licence.lower() in credit.lower()
    return credit if said else ", ".join(part for part in (credit, licence) if part)


def credits_of(store: ActivationStore, rows: Sequence[int]) -> list[str]:
    """The `credit_line` of each of the pairs at `rows`."""
    found = rights(store, rows)
    each = zip(*found.values(), strict=True)
    return [credit_line(dict(zip(found, values, strict=True))) for values in each]
