"""The HTML report of a correction: each group of wrong predictions with its pictures, what made
them wrong, the proposed edit, what it mends and breaks, and the advice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.errors import UserError
from features.reports.layers import CSS, Layer, picture_layers, switch
from features.reports.page import picture_url
from features.space.tables import thumbnail
from features.store.credits import credits_of
from mms_apps.attributes.correction.correcting import Correction, GroupCorrection, confusion
from mms_apps.attributes.report import pictures_of, write_page

if TYPE_CHECKING:
    from PIL import Image

    from features.pairs.base import PairSource
    from features.store.store import ActivationStore

SHOWN_MISTAKES = 12
"""Wrong predictions of a group that are shown, those first on which the feature did most."""


@dataclass(frozen=True)
class Mistake:
    """A wrong prediction as the page shows it.

    pushed: as `MistakeGroup` has it.
    """

    image: Image.Image | None
    caption: str
    label: str
    predicted: str
    pushed: float
    credit: str = ""


def mistakes_of(
    correction: Correction,
    found: GroupCorrection,
    source: PairSource,
    store: ActivationStore,
    count: int = SHOWN_MISTAKES,
) -> list[Mistake]:
    """The first wrong predictions of a group, with their pictures.

    Args:
        store: from which the corrected samples were read, of the source's pairs.
    """
    rows = found.mistakes.rows[:count]
    some = correction.half.take(rows)
    assert some.rows is not None
    places = some.rows.tolist()
    table = store.sample_rows(places, ["location", "caption"]).to_pylist()
    images = dict(source.images([row["location"] for row in table]))
    labels = some.columns[correction.model.config.attribute].astype(str)
    predicted = correction.model.predict(some.embeddings)
    return [
        Mistake(
            images.get(row["location"]),
            row["caption"] or "",
            str(label),
            str(taken),
            float(pushed),
            credit,
        )
        for row, label, taken, pushed, credit in zip(
            table,
            labels,
            predicted,
            found.mistakes.pushed[:count],
            credits_of(store, places),
            strict=True,
        )
    ]


def write_correction_report(
    correction: Correction,
    shown: Sequence[Sequence[Mistake]],
    edits: Sequence[str | None],
    out: Path,
) -> Path:
    """Write the page of a correction.

    Args:
        shown: wrong predictions by group.
        edits: where each group's edit was saved; None where it was not.
    """
    space = correction.model.space
    table = space.features.select(["name", "class", "mds"]).to_pylist()
    parts = list(zip(correction.groups, edits, strict=True))
    drawn = [
        drawn_mistakes(correction, found.mistakes.feature, mistakes)
        for found, mistakes in zip(correction.groups, shown, strict=True)
    ]
    used = {f for found in correction.groups for f in _features(found)}
    pictures = pictures_of(space, used)
    groups: list[dict[str, Any]] = [
        {
            "found": found,
            "confusion": confusion(correction.model, correction.half, found.mistakes.rows),
            "features": [{"feature": f, **table[f]} for f in _features(found)],
            "mistakes": [
                {"mistake": one, "image": small and picture_url(small), "layer": layer}
                for one, (small, layer) in zip(mistakes, rows, strict=True)
            ],
            "edit": edit,
        }
        for (found, edit), mistakes, rows in zip(parts, shown, drawn, strict=True)
    ]
    grouped = sum(found.mistakes.size for found in correction.groups)
    return write_page(
        "correction.html.j2",
        out,
        correction=correction,
        config=correction.model.config,
        groups=groups,
        others=correction.wrong - grouped,
        pictures=pictures,
        layers=any(layer for rows in drawn for _, layer in rows),
        layers_css=CSS,
        layers_switch=switch(),
    )


def drawn_mistakes(
    correction: Correction, feature: int, mistakes: Sequence[Mistake]
) -> list[tuple[bytes | None, Layer | None]]:
    """Each mistake's picture as a thumbnail, and on it what the feature rests on; None where there
    is no picture, or the encoder's tower has no map to look at."""
    small = [None if one.image is None else thumbnail(one.image) for one in mistakes]
    known = [place for place, one in enumerate(small) if one is not None]
    layers: list[Layer | None] = [None] * len(small)
    if known and correction.model.config.modality == "image":
        thumbnails = [one for one in small if one is not None]
        try:
            found = picture_layers(correction.model.space, [feature], thumbnails)
        except UserError:
            found = []
        for place, layer in zip(known, found, strict=False):
            layers[place] = layer
    return list(zip(small, layers, strict=True))


def _features(found: GroupCorrection) -> list[int]:
    """The group's own feature, then the others that its edit weakens."""
    others = found.proposal.features if found.proposal else ()
    return list(dict.fromkeys([found.mistakes.feature, *others]))
