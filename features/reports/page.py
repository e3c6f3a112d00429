"""What all reports share: templates, figures in words, the histogram of the MDS."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from features.modality import CROSS_MODAL, IMAGE_DOMINANT, TEXT_DOMINANT, UNSCORED
from features.percent import percent

if TYPE_CHECKING:
    from jinja2 import Environment

BINS = 40
MODALITY_CLASSES = (IMAGE_DOMINANT, CROSS_MODAL, TEXT_DOMINANT)
CLASS_NAMES = {
    IMAGE_DOMINANT: "image-dominant",
    CROSS_MODAL: "cross-modal",
    TEXT_DOMINANT: "text-dominant",
    UNSCORED: "unscored",
}


SHARED, NOT_SHARED = "shared", "balanced, not shared"


def class_in_words(feature: dict[str, Any], column: str = "class") -> str:
    """A feature's class, of a cross-modal one with whether images and texts drive it in the same
    pairs.

    Args:
        feature: row of `features.parquet`.
        column: `class` for the relative rule, `class_fixed` for the fixed bounds.
    """
    name = CLASS_NAMES[feature[column]]
    if feature[column] != CROSS_MODAL:
        return name
    return f"{name}, {SHARED if feature['shared'] else NOT_SHARED}"


@dataclass(frozen=True)
class Bar:
    """One class's share of one histogram bin, in units of the chart (0 to 1 both ways)."""

    x: float
    y: float
    width: float
    height: float
    modality_class: str
    title: str


CORE = "features.reports"


def templates(package: str = CORE) -> Environment:
    """A package's templates, which may include the core's, with the filters `figure` and
    `percent`."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in dict.fromkeys((package, CORE))]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = figure
    environment.filters["percent"] = percent
    return environment


def histogram(features: list[dict[str, Any]], column: str = "class") -> list[Bar]:
    """The MDS histogram's bars, the classes stacked; unscored features are left out.

    Args:
        column: `class` for the relative rule's classes, `class_fixed` for the fixed bounds'.
    """
    counts = _bin_counts(features, column)
    peak, _ = count_axis(features)
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


def count_axis(features: list[dict[str, Any]]) -> tuple[int, list[int]]:
    """The upper end of the histogram's count axis and its round ticks, four or fewer above 0."""
    most = max(1, int(_bin_counts(features).sum(axis=0).max()))
    power = 10 ** max(0, math.floor(math.log10(most)) - 1)
    step = next(s for s in (power * m for m in (1, 2, 5, 10, 20, 50)) if most / s <= 4)
    top = math.ceil(most / step) * step
    return top, list(range(0, top + 1, step))


def picture_url(thumbnail: bytes) -> str:
    """An exemplar's thumbnail as a URL that needs no network."""
    return f"data:image/webp;base64,{base64.b64encode(thumbnail).decode()}"


def figure(value: float | None, digits: int = 2) -> str:
    """A number in words: n/a where it is undefined."""
    return f"{value:.{digits}f}" if value is not None and math.isfinite(value) else "n/a"
