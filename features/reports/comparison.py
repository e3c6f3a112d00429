"""The report of a comparison of FeatureSpaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from features.analysis.compare import FIGURES, SCHEMA, Comparison, cell
from features.files import jsonable, write_json, write_whole
from features.reports.page import CLASS_NAMES, MODALITY_CLASSES, histogram, templates
from features.space.space import FeatureSpace

SHOWN_MATCHES = 24


def write_comparison(
    comparison: Comparison, spaces: Sequence[FeatureSpace], out: str | Path
) -> Path:
    """Write `comparison.json`, `comparison.md` and the report `comparison.html` to a folder.

    Args:
        spaces: the first of each label.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "comparison.json", jsonable({"schema": SCHEMA, **asdict(comparison)}))
    write_whole(out / "comparison.md", markdown_table(comparison).encode())
    features = [space.features.to_pylist() for space in spaces]
    page = (
        templates()
        .get_template("comparison.html.j2")
        .render(
            comparison=comparison,
            figures=FIGURES,
            histograms=[histogram(rows, "class_fixed") for rows in features],
            class_names=CLASS_NAMES,
            classes=MODALITY_CLASSES,
            shown_matches=SHOWN_MATCHES,
        )
    )
    write_whole(out / "comparison.html", page.encode())
    return out / "comparison.html"


def markdown_table(comparison: Comparison) -> str:
    """The figures with their intervals, one row a space."""
    lines = [
        "| | " + " | ".join(figure.label for figure in FIGURES) + " |",
        "|---" * (len(FIGURES) + 1) + "|",
    ]
    for space in comparison.spaces:
        cells = [cell(space.estimates[figure.key], figure.percent) for figure in FIGURES]
        lines.append(f"| {space.label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
