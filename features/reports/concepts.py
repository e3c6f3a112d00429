"""The report of what carries each concept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from features.analysis.concepts import GOOD, SCHEMA, TOO_FEW, Concept
from features.files import write_json, write_whole
from features.reports.page import CLASS_NAMES, templates
from features.space.space import FeatureSpace


def write_concepts(concepts: Sequence[Concept], space: FeatureSpace, out: str | Path) -> Path:
    """Write `concepts.json` and the report `concepts.html` to a folder."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    record = {"schema": SCHEMA, "encoder": space.config.encoder, "good": GOOD}
    write_json(out / "concepts.json", {**record, "concepts": [asdict(c) for c in concepts]})
    page = (
        templates()
        .get_template("concepts.html.j2")
        .render(
            concepts=concepts,
            config=space.config,
            class_names=CLASS_NAMES,
            good=GOOD,
            too_few=TOO_FEW,
        )
    )
    write_whole(out / "concepts.html", page.encode())
    return out / "concepts.html"
