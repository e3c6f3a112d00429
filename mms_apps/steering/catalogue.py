"""Features to pick from: search by word, class and number, with their exemplars."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from features.analysis.search import exemplars
from features.errors import UserError
from features.space.space import FeatureSpace
from mms_apps.steering.choosing import features_of

UNNAMED = "unnamed"
SHOWN = 4
"""Exemplars of each modality, at most."""


@dataclass(frozen=True)
class Card:
    """What is shown of a feature.

    title: number, name, class and MDS in one line.
    images: its most activating images, the strongest first.
    captions: its most activating captions.
    """

    feature: int
    title: str
    name: str
    modality_class: str
    images: list[Image.Image]
    captions: list[str]


def search(
    space: FeatureSpace, query: str, modality_class: str | None = None, limit: int = 12
) -> list[Card]:
    """Features of a number or a word, the best first; all of the class where the query is empty,
    those that fit their name best first.

    Raises:
        UserError: nothing is found.
    """
    query = query.strip()
    if query.isdecimal():
        found = [n for n in range(len(space)) if n == float(query)]
    elif query:
        named = space.select(name=query).tolist()
        best = [feature for feature, _ in features_of(space, query)]
        found = list(dict.fromkeys([*best, *named]))
    else:
        fit = space.features["name_score"].to_pylist()
        found = sorted(range(len(space)), key=lambda f: -(fit[f] if fit[f] == fit[f] else 0.0))
    if modality_class:
        of_class = set(space.select(modality_class).tolist())
        found = [feature for feature in found if feature in of_class]
    if not found:
        raise UserError(f"{query}: no feature found; try another word or class")
    return cards(space, found[:limit])


def title(space: FeatureSpace, feature: int) -> str:
    """A feature's number, name, class and MDS in one line."""
    name, modality_class, mds = (
        space.features[column][feature].as_py() for column in ("name", "class", "mds")
    )
    return f"{feature}: {name or UNNAMED} ({modality_class}, MDS {mds:.2f})"


def cards(space: FeatureSpace, features: Sequence[int]) -> list[Card]:
    """The cards of features, in their order."""
    images = exemplars(space, features, SHOWN)
    texts = exemplars(space, features, SHOWN, "text")
    return [
        Card(
            feature,
            title(space, feature),
            space.features["name"][feature].as_py() or UNNAMED,
            space.features["class"][feature].as_py(),
            [Image.open(io.BytesIO(row["thumbnail"])).convert("RGB") for row in images[feature]],
            [row["caption"] for row in texts[feature]],
        )
        for feature in features
    ]
