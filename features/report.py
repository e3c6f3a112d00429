"""The report of a FeatureSpace: one HTML file that needs no network."""

from __future__ import annotations

import base64
import math
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from features.dominance import CROSS_MODAL, IMAGE_DOMINANT, TEXT_DOMINANT
from features.space import FeatureSpace

BINS = 40
SHOWN_EACH = 12
"""Features of each class in the opened part of the gallery."""
SHOWN_EXEMPLARS = 6
MODALITY_CLASSES = (IMAGE_DOMINANT, CROSS_MODAL, TEXT_DOMINANT)
CLASS_NAMES = {
    IMAGE_DOMINANT: "image-dominant",
    CROSS_MODAL: "cross-modal",
    TEXT_DOMINANT: "text-dominant",
}
MEASURES = {"embsim": "EmbSim", "winrate": "WinRate", "ms": "Monosemanticity Score"}


@dataclass(frozen=True)
class Bar:
    """One class's share of one histogram bin, in units of the chart (0 to 1 both ways)."""

    x: float
    y: float
    width: float
    height: float
    modality_class: str
    title: str


def write_report(space: FeatureSpace, out: str | Path) -> Path:
    """Write the report of a FeatureSpace to the HTML file `out`."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("features"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["figure"] = _figure
    environment.filters["percent"] = _percent
    features = space.features.to_pylist()
    exemplars = _exemplars_by_feature(space)
    scored = [f for f in features if f["class"] in MODALITY_CLASSES]
    page = environment.get_template("report.html.j2").render(
        config=space.config,
        class_names=CLASS_NAMES,
        count=len(features),
        scored=len(scored),
        classes=[_class_card(space, name, len(scored)) for name in MODALITY_CLASSES],
        bars=histogram(features),
        peak=_peak(features),
        monosemanticity=_monosemanticity_rows(space, features),
        held_out=space.config.dictionary.get("held_out") or {},
        gallery=_gallery(scored, exemplars),
        shown_exemplars=SHOWN_EXEMPLARS,
    )
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(out.name + ".tmp")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, out)
    return out


def histogram(features: list[dict[str, Any]]) -> list[Bar]:
    """The MDS histogram's bars, the classes stacked; unscored features are left out."""
    counts = _bin_counts(features)
    peak = max(1, counts.sum(axis=0).max())
    bars = []
    for place in range(BINS):
        below = 0
        for row, name in enumerate(MODALITY_CLASSES):
            number = int(counts[row, place])
            if number:
                below += number
                low, high = place / BINS, (place + 1) / BINS
                title = f"{number} {CLASS_NAMES[name]}, MDS {low:.3f} to {high:.3f}"
                bars.append(Bar(low, 1 - below / peak, 1 / BINS, number / peak, name, title))
    return bars


def _bin_counts(features: list[dict[str, Any]]) -> np.ndarray:
    """`[classes, bins]`"""
    return np.stack(
        [
            np.histogram(
                [f["mds"] for f in features if f["class"] == name], bins=BINS, range=(0, 1)
            )[0]
            for name in MODALITY_CLASSES
        ]
    )


def _peak(features: list[dict[str, Any]]) -> int:
    return int(_bin_counts(features).sum(axis=0).max())


def _class_card(space: FeatureSpace, name: str, scored: int) -> dict[str, Any]:
    rows = space.features.select(["class", "class_fixed", "uncertain"]).to_pylist()
    own = [row for row in rows if row["class"] == name]
    return {
        "key": name,
        "name": CLASS_NAMES[name],
        "count": len(own),
        "share": len(own) / scored if scored else 0.0,
        "uncertain": sum(row["uncertain"] for row in own),
        "fixed": sum(row["class_fixed"] == name for row in rows),
    }


def _monosemanticity_rows(
    space: FeatureSpace, features: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Median by class, one row a measure and modality, with the floor of random features."""
    rows = []
    for measure, label in MEASURES.items():
        for modality in ("image", "text"):
            column = f"{measure}_{modality}"
            medians = {}
            for name in MODALITY_CLASSES:
                values = [f[column] for f in features if f["class"] == name]
                known = [v for v in values if v is not None and math.isfinite(v)]
                medians[name] = float(np.median(known)) if known else None
            rows.append(
                {
                    "label": label,
                    "modality": f"{modality}s",
                    "medians": medians,
                    "floor": space.config.floors.get(column),
                }
            )
    return rows


def _exemplars_by_feature(space: FeatureSpace) -> dict[int, dict[str, list[dict[str, Any]]]]:
    """Exemplars by feature and modality, most activating first; thumbnails as data URIs."""
    found: dict[int, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in sorted(space.exemplars.to_pylist(), key=lambda row: row["rank"]):
        if row["rank"] < SHOWN_EXEMPLARS:
            if row["thumbnail"] is not None:
                encoded = base64.b64encode(row["thumbnail"]).decode()
                row["uri"] = f"data:image/png;base64,{encoded}"
            found[row["feature"]][row["modality"]].append(row)
    return found


def _gallery(
    scored: list[dict[str, Any]], exemplars: dict[int, dict[str, list[dict[str, Any]]]]
) -> list[dict[str, Any]]:
    """All scored features; the most monosemantic of each class come first, and open."""
    by_class: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for feature in sorted(scored, key=_quality, reverse=True):
        by_class[feature["class"]].append(feature)
    ordered = [f for name in MODALITY_CLASSES for f in by_class[name][:SHOWN_EACH]]
    opened = {f["feature"] for f in ordered}
    ordered += [f for f in scored if f["feature"] not in opened]
    for feature in ordered:
        own = exemplars[feature["feature"]]
        feature["images"], feature["texts"] = own["image"], own["text"]
        feature["opened"] = feature["feature"] in opened
        words = [feature["name"], *(row["caption"] for row in own["image"] + own["text"])]
        feature["search"] = " ".join(words).lower()
    return ordered


def _quality(feature: dict[str, Any]) -> float:
    """MS in the modality that drives the feature, or the mean of both."""
    image, text = (
        v if math.isfinite(v) else 0.0 for v in (feature["ms_image"], feature["ms_text"])
    )
    if feature["class"] == IMAGE_DOMINANT:
        return image
    return text if feature["class"] == TEXT_DOMINANT else (image + text) / 2


def _figure(value: float | None, digits: int = 2) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"  # noqa: RUF001


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"  # noqa: RUF001
