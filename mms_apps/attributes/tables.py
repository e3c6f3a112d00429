"""Audits and comparisons as JSON and CSV. What is undefined is null in JSON and empty in CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from features.files import jsonable, write_json, write_whole
from mms_apps.attributes.audit import Audit
from mms_apps.attributes.correction.correcting import Correction, confusion
from mms_apps.attributes.debias.debiasing import Debiasing

SCHEMA = 1


def write_audit_tables(audit: Audit, out: Path) -> None:
    """Write audit.json, groups.csv, classes.csv and lean.csv."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "audit.json", jsonable({"schema": SCHEMA, **asdict(audit)}))
    write_csv(out / "groups.csv", [asdict(row) for row in audit.measures.groups])
    write_csv(out / "classes.csv", [asdict(row) for row in audit.classes])
    write_csv(out / "lean.csv", [asdict(row) for row in audit.lean])


def write_debias_tables(found: Debiasing, out: Path) -> None:
    """Write debias.json and methods.csv."""
    out.mkdir(parents=True, exist_ok=True)
    record = {
        "schema": SCHEMA,
        "attribute": found.model.config.attribute,
        "factor": found.factor,
        "unrelated": found.unrelated,
        "choice": asdict(found.choice),
        "methods": [asdict(row) for row in found.methods],
    }
    write_json(out / "debias.json", jsonable(record))
    write_csv(out / "methods.csv", [asdict(row) for row in found.methods])


def write_correction_tables(found: Correction, edits: Sequence[str | None], out: Path) -> None:
    """Write correction.json and edits.csv, one row a group and set of pairs.

    Args:
        edits: where each group's edit was saved, within `out`; None where it was not.
    """
    out.mkdir(parents=True, exist_ok=True)
    config = found.model.config
    names = found.model.space.features["name"].to_pylist()
    groups, rows = [], []
    for place, (one, edit) in enumerate(zip(found.groups, edits, strict=True), start=1):
        mistakes = one.mistakes
        groups.append(
            {
                "feature": mistakes.feature,
                "name": names[mistakes.feature],
                "size": mistakes.size,
                "ids": found.half.ids[mistakes.rows].tolist(),
                "mistakes": confusion(found.model, found.half, mistakes.rows),
                "proposal": None if one.proposal is None else asdict(one.proposal),
                "checks": {name: asdict(check) for name, check in one.checks.items()},
                "advice": asdict(one.advice),
                "edit": edit,
            }
        )
        for name, check in one.checks.items():
            head = {"place": place, "feature": mistakes.feature, "accept": one.advice.accept}
            rows.append({**head, "pairs": name, **asdict(check.counts), "gain": asdict(check.gain)})
    record = {
        "schema": SCHEMA,
        "attribute": config.attribute,
        "classes": config.classes,
        "group": found.group,
        "seed": found.seed,
        "half": len(found.half),
        "other": len(found.other),
        "wrong": found.wrong,
        "groups": groups,
    }
    write_json(out / "correction.json", jsonable(record))
    write_csv(out / "edits.csv", rows)


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows, whose nested values become columns `outer.inner`."""
    flat = [flatten(row) for row in rows]
    content = io.StringIO()
    if flat:
        writer = csv.DictWriter(content, list(flat[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
    write_whole(path, content.getvalue().encode())


def flatten(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with keys `outer.inner`; NaN becomes None."""
    flat: dict[str, Any] = {}
    for key, value in jsonable(record).items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
