"""The Explorer's features as HTML: cards to pick from, and all that is known of one."""

from __future__ import annotations

import html
from functools import lru_cache
from typing import Any

from demos.common import layered_html, picture_html
from features.analysis.search import Described, describe, exemplars, rows_of, similarities
from features.errors import UserError
from features.reports.layers import Layer, Marked, marked_captions, picture_layers
from features.reports.page import class_in_words, figure
from features.space.space import FeatureSpace
from features.store.credits import credit_line

CARD_IMAGES = 4
IMAGES = 8
CAPTIONS = 5
Key = tuple[str, int]
"""A space's name and the number of a feature in it."""


def cards_html(space: FeatureSpace, numbers: list[int]) -> str:
    """Features to pick from."""
    if not numbers:
        return "<p>No feature is like this. Loosen a filter, or try another word.</p>"
    rows = rows_of(space, numbers)
    images = exemplars(space, numbers, CARD_IMAGES)
    cards = "".join(
        f'<button type="button" data-feature="{row["feature"]}"><strong>{title(row)}</strong>'
        f'<small class="{row["class"]}">{class_in_words(row)}, MDS {figure(row["mds"])}'
        '</small><span class="thumbs">'
        f"{''.join(map(small_html, images[row['feature']]))}"
        "</span></button>"
        for row in rows
    )
    return f'<div class="cards">{cards}</div>'


def picked_html(
    spaces: dict[str, FeatureSpace],
    picked: Key,
    kept: Key | None,
    *,
    layers: bool = True,
    marks: bool = True,
) -> str:
    """The picked feature, and beside it the one that is kept to compare it with.

    Args:
        layers, marks: find what they rest on in images, and in texts, which runs the encoder;
            texts take longer.
    """
    shown = [picked] if kept is None else [kept, picked]
    articles = "".join(
        article_html(
            spaces[name],
            describe(spaces[name], number, shown=IMAGES),
            name,
            layers=layers,
            marks=marks,
        )
        for name, number in shown
    )
    said = ""
    if kept is not None and kept != picked and kept[0] == picked[0]:
        cosine = similarities(spaces[kept[0]], kept[1])[picked[1]]
        said = f"<p>Cosine of the two directions: {cosine:.2f}</p>"
    elif kept == picked:
        said = "<p>Now pick another feature.</p>"
    return f'{said}<div class="side-by-side">{articles}</div>'


def article_html(
    space: FeatureSpace, found: Described, name: str, *, layers: bool, marks: bool
) -> str:
    """One feature."""
    row = found.row
    scores = {
        "Class": f'<span class="{row["class"]}">{class_in_words(row)}</span>'
        + (" (uncertain)" if row["uncertain"] else ""),
        "MDS": f"{figure(row['mds'])} ({figure(row['mds_low'])} to {figure(row['mds_high'])})",
        "Agreement": f"{figure(row['agreement'])} ({figure(row['agreement_low'])} to "
        f"{figure(row['agreement_high'])}), other pairs reach {figure(row['agreement_floor'])}",
        "Monosemanticity": f"{figure(row['ms_image'])} on images, "
        f"{figure(row['ms_text'])} on texts",
        "Active on": f"{row['image_density']:.1%} of the images, {row['text_density']:.1%} of the "
        "texts",
        "Space": html.escape(name),
    }
    listed = "".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in scores.items())
    captions = tuple(dict.fromkeys(text["caption"] for text in found.texts))[:CAPTIONS]
    thumbnails = tuple(image["thumbnail"] for image in found.images)
    drawn: tuple[Layer | None, ...] = (None,) * len(thumbnails)
    marked = tuple(Marked(html.escape(caption), "") for caption in captions)
    unknown = ""
    try:
        if layers:
            drawn = layers_of(space, row["feature"], thumbnails)
        if marks:
            marked = marks_of(space, row["feature"], captions)
    except UserError as error:  # the encoder is not at hand
        unknown = f"<p>What it rests on cannot be shown: {html.escape(str(error))}</p>"
    images = "".join(map(figure_html, found.images, drawn))
    texts = "".join(f'<li class="marked">{one.html}{aside(one.said)}</li>' for one in marked)
    others = rows_of(space, [n for n, _ in found.alike])
    alike = "".join(
        f'<button type="button" data-feature="{other["feature"]}">{title(other)} ({cosine:.2f})'
        "</button>"
        for other, (_, cosine) in zip(others, found.alike, strict=True)
    )
    return (
        f"<article><h2>{title(row)}</h2><dl>{listed}</dl>"
        f'{unknown}<h3>Top images</h3><div class="images">{images or "none"}</div>'
        f"<h3>Top texts</h3>{f'<ul>{texts}</ul>' if texts else 'none'}"
        f'<h3>Most similar directions</h3><div class="alike">{alike}</div></article>'
    )


@lru_cache(maxsize=512)
def layers_of(
    space: FeatureSpace, feature: int, thumbnails: tuple[bytes, ...]
) -> tuple[Layer, ...]:
    """What a feature rests on in images, found once."""
    return tuple(picture_layers(space, [feature], thumbnails))


@lru_cache(maxsize=512)
def marks_of(space: FeatureSpace, feature: int, captions: tuple[str, ...]) -> tuple[Marked, ...]:
    """What a feature rests on in texts, found once."""
    return tuple(marked_captions(space, [feature], captions))


def small_html(row: dict[str, Any]) -> str:
    """An exemplar among others."""
    return picture_html(row["thumbnail"], row["caption"], credit_line(row))


def figure_html(row: dict[str, Any], layer: Layer | None) -> str:
    """An exemplar with what the feature rests on in it, its caption, and whose it is."""
    credit = credit_line(row)
    under = f"<span>{html.escape(row['caption'])}</span>"
    if credit:
        under += f"<small>Image: {html.escape(credit)}</small>"
    picture = layered_html(row["thumbnail"], row["caption"], layer)
    return f"<figure>{picture}<figcaption>{under}</figcaption></figure>"


def aside(said: str) -> str:
    """What marks show, for those who do not see them."""
    return f'<span class="sr-only"> The feature {html.escape(said)}.</span>' if said else ""


def title(row: dict[str, Any]) -> str:
    """A feature's name and number."""
    return f"{html.escape(row['name'] or 'unnamed')} · {row['feature']}"
