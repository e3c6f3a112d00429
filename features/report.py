"""The report of a FeatureSpace: one HTML file that needs no network."""

from __future__ import annotations

import base64
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from features.browse import monosemanticity
from features.dominance import CROSS_MODAL, IMAGE_DOMINANT, TEXT_DOMINANT, UNSCORED
from features.files import write_whole
from features.space import FeatureSpace

if TYPE_CHECKING:
    from jinja2 import Environment

BINS = 40
SHOWN_EACH = 12
"""Features of each class that the gallery opens with."""
SHOWN_EXEMPLARS = 6
SHOWN_CAPTIONS = 4
GALLERY = 1000
"""Features in the gallery at most, which bounds the file's size."""
MODALITY_CLASSES = (IMAGE_DOMINANT, CROSS_MODAL, TEXT_DOMINANT)
CLASS_NAMES = {
    IMAGE_DOMINANT: "image-dominant",
    CROSS_MODAL: "cross-modal",
    TEXT_DOMINANT: "text-dominant",
    UNSCORED: "unscored",
}
MEASURES = {"embsim": "EmbSim", "winrate": "WinRate", "ms": "MS"}
MODALITIES = {"image": "images", "text": "texts", "cross": "across"}
HELD_OUT_NAMES = {"image": "images", "text": "texts", "overall": "both"}


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
    features = space.features.to_pylist()
    scored = [f for f in features if f["class"] in MODALITY_CLASSES]
    peak, ticks = _count_axis(features)
    held_out = space.config.dictionary.get("held_out") or {}
    gallery, thumbnails = _gallery(space, features)
    means = _monosemanticity_rows(space)
    page = (
        templates()
        .get_template("report.html.j2")
        .render(
            config=space.config,
            class_names=CLASS_NAMES,
            count=len(features),
            scored=len(scored),
            uncertain=sum(f["uncertain"] for f in scored),
            classes=[_class_card(features, name, len(scored)) for name in MODALITY_CLASSES],
            bars=histogram(features),
            peak=peak,
            ticks=ticks,
            monosemanticity=[row for row in means if row["m"] in (None, space.config.top_m)],
            sweep=[row for row in means if row["m"] is not None],
            held_out=[(label, held_out[key]) for key, label in HELD_OUT_NAMES.items() if held_out],
            gallery=gallery,
            gallery_limit=GALLERY,
            thumbnails=thumbnails,
        )
    )
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, page.encode())
    return out


def templates(package: str = "features") -> Environment:
    """A package's templates, which may include the core's, with the filters `figure` and
    `percent`."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in dict.fromkeys((package, "features"))]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = figure
    environment.filters["percent"] = _percent
    return environment


def histogram(features: list[dict[str, Any]], column: str = "class") -> list[Bar]:
    """The MDS histogram's bars, the classes stacked; unscored features are left out.

    Args:
        column: `class` for the relative rule's classes, `class_fixed` for the fixed bounds'.
    """
    counts = _bin_counts(features, column)
    peak, _ = _count_axis(features)
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


def _bin_counts(features: list[dict[str, Any]], column: str = "class") -> np.ndarray:
    """`[classes, bins]`"""
    return np.stack(
        [
            np.histogram(
                [f["mds"] for f in features if f[column] == name], bins=BINS, range=(0, 1)
            )[0]
            for name in MODALITY_CLASSES
        ]
    )


def _count_axis(features: list[dict[str, Any]]) -> tuple[int, list[int]]:
    """The upper end of the histogram's count axis and its round ticks, four or fewer above 0."""
    most = max(1, int(_bin_counts(features).sum(axis=0).max()))
    power = 10 ** max(0, math.floor(math.log10(most)) - 1)
    step = next(s for s in (power * m for m in (1, 2, 5, 10, 20, 50)) if most / s <= 4)
    top = math.ceil(most / step) * step
    return top, list(range(0, top + 1, step))


def _class_card(features: list[dict[str, Any]], name: str, scored: int) -> dict[str, Any]:
    own = [f for f in features if f["class"] == name]
    return {
        "key": name,
        "name": CLASS_NAMES[name],
        "count": len(own),
        "share": len(own) / scored if scored else None,
        "uncertain": sum(f["uncertain"] for f in own),
        "fixed": sum(f["class_fixed"] == name for f in features),
    }


def _monosemanticity_rows(space: FeatureSpace) -> list[dict[str, Any]]:
    """Each measure's mean by class, with its interval, one row a modality and number of samples."""
    rows: dict[tuple[str, str, int | None], dict[str, Any]] = {}
    for record in space.config.class_means:
        key = (record["measure"], record["modality"], record["m"])
        row = rows.setdefault(
            key,
            {
                "label": MEASURES[record["measure"]],
                "over": MODALITIES[record["modality"]],
                "m": record["m"],
                "floor": record["floor"],
                "means": {},
            },
        )
        row["means"][record["class"]] = record
    return list(rows.values())


def _gallery(
    space: FeatureSpace, features: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The features of the gallery, the most monosemantic first and unscored ones last, and the
    thumbnails (PNG, base64) to which their images' `thumbnail` numbers point."""
    active = [f for f in features if f["active_pairs"] > 0]
    quality = monosemanticity(space)  # [features]
    active.sort(key=lambda f: (f["class"] == UNSCORED, -quality[f["feature"]]))
    chosen = active[:GALLERY]
    exemplars = _exemplars(space, {f["feature"] for f in chosen})
    numbers: dict[bytes, int] = {}
    opened: dict[str, int] = defaultdict(int)
    for feature in chosen:
        images, texts = (exemplars[feature["feature"], m] for m in ("image", "text"))
        for row in images:
            if row["thumbnail"] is not None:
                row["number"] = numbers.setdefault(row["thumbnail"], len(numbers))
        feature["images"] = images
        feature["texts"] = list(dict.fromkeys(row["caption"] for row in texts))[:SHOWN_CAPTIONS]
        opened[feature["class"]] += 1
        feature["opened"] = feature["class"] != UNSCORED and opened[feature["class"]] <= SHOWN_EACH
        words = [feature["name"], *(row["caption"] for row in images + texts)]
        feature["search"] = " ".join(dict.fromkeys(words)).lower()
    return chosen, [base64.b64encode(png).decode() for png in numbers]


def _exemplars(
    space: FeatureSpace, wanted: set[int]
) -> dict[tuple[int, str], list[dict[str, Any]]]:
    """Exemplars by feature and modality, most activating first."""
    found: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(space.exemplars.to_pylist(), key=lambda row: row["rank"]):
        if row["rank"] < SHOWN_EXEMPLARS and row["feature"] in wanted:
            found[row["feature"], row["modality"]].append(row)
    return found


def figure(value: float | None, digits: int = 2) -> str:
    """A number in words: n/a where it is undefined."""
    return f"{value:.{digits}f}" if value is not None and math.isfinite(value) else "n/a"


def _percent(value: float | None) -> str:
    return f"{value:.0%}" if value is not None and math.isfinite(value) else "n/a"
