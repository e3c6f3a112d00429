"""What features rest on, drawn: a layer over an exemplar's picture, marks on a caption's words.

Orange speaks for the feature, which would fall without it, purple against it: colours that
colour-blind people tell apart. A switch of the class `layers-switch` shows those that stand with it
in an element of the class `layers-scope`.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from features.evidence.pictures import PictureEvidence, picture_evidence
from features.evidence.reading import strongest_words, where
from features.evidence.targets import Source, Target
from features.evidence.words import WordEvidence, word_evidence
from features.pairs.images import decode_image

FOR, AGAINST = (230, 97, 0), (93, 58, 155)
LAYER_SIDE = 48
"""Longer side of a layer in pixels; the page scales it up smoothly."""
OPACITY = 0.9
"""Of a layer at the strongest place."""
FAINT = 0.15
"""Of the strongest word's evidence; weaker words are not marked."""
CSS = """
.stack { position:relative; display:block; }
.stack img { display:block; }
.stack .layer { position:absolute; top:0; left:0; opacity:0; pointer-events:none;
  background:none !important; border-color:transparent !important; }
.layers-scope:has(.layers-switch:checked) .stack .layer { opacity:1; }
.layers-scope:has(.layers-switch:checked) .stack:has(.layer) .picture {
  filter:grayscale(1) contrast(.7) brightness(1.12); }
.marked mark { background:none; color:inherit; }
.layers-scope:has(.layers-switch:checked) .marked mark { border-radius:3px; padding:0 .1em;
  color:var(--ink, var(--body-text-color));
  background:color-mix(in srgb, var(--tint) calc(var(--strength) * 45%), transparent);
  text-decoration:underline 2px var(--tint); text-underline-offset:2px; }
.marked mark.for { --tint:rgb(230 97 0); }
.marked mark.against { --tint:rgb(125 85 190); text-decoration-style:dashed !important; }
.layers-scale { display:none; flex-wrap:wrap; align-items:center; gap:.3rem .6rem;
  font-size:.85rem; }
.layers-scope:has(.layers-switch:checked) .layers-scale { display:flex; }
.layers-scale i { width:9rem; height:.8em; border-radius:3px; border:1px solid currentColor;
  background:linear-gradient(to right, rgb(93 58 155), rgb(255 255 255), rgb(230 97 0)); }
.layers-choice { display:flex; flex-wrap:wrap; align-items:center; gap:.4rem 1.2rem;
  margin:.5rem 0 1rem; }
.layers-choice label { display:inline-flex; align-items:center; gap:.5rem; cursor:pointer; }
.layers-choice input { flex:none; width:1.15rem; height:1.15rem; margin:0; }
"""


FULL = "the strongest place of each picture, the strongest word of each text"
"""What has the full colour."""


def switch(what: str = "feature", *, full: str = FULL, on: bool = False) -> str:
    """The switch between pictures and layers, with their scale, as HTML.

    Args:
        full: what has the full colour.
        on: whether layers are shown from the start.
    """
    return (
        '<div class="layers-choice"><label><input type="checkbox" class="layers-switch"'
        f"{' checked' if on else ''}> Show what each {what} rests on</label>"
        '<span class="layers-scale"><span>against it</span><i></i>'
        f"<span>for it: it would fall without this. Full colour: {full}.</span></span></div>"
    )


@dataclass(frozen=True)
class Layer:
    """Of one picture: the layer as a URL that needs no network, and what it shows, in words."""

    url: str
    said: str


@dataclass(frozen=True)
class Marked:
    """Of one caption: HTML with its words marked, and what the marks show, in words."""

    html: str
    said: str


def picture_layers(source: Source, target: Target, thumbnails: Sequence[bytes]) -> list[Layer]:
    """What one target rests on in exemplars, by the fast method, found on their thumbnails."""
    images = [decode_image(thumbnail) for thumbnail in thumbnails]
    found = picture_evidence(source, images, target, "fast")
    return [layer_of(one, image.size) for one, image in zip(found, images, strict=True)]


def layer_of(
    found: PictureEvidence, size: tuple[int, int], target: int = 0, peak: float | None = None
) -> Layer:
    """The layer of one target over a picture of a size (width, height).

    Args:
        peak: evidence that has the full colour; None for the strongest in the picture.
    """
    return Layer(
        layer_url(found, size, target, peak), f"rests most on {where(found.cells[target])}"
    )


def layers_beside(
    found: Sequence[PictureEvidence], size: tuple[int, int], target: int = 0
) -> list[Layer]:
    """The layers of one target over pictures of one size, on one scale."""
    peak = max(float(one.cells[target].abs().max()) for one in found)
    return [layer_of(one, size, target, peak) for one in found]


def marked_captions(source: Source, target: Target, captions: Sequence[str]) -> list[Marked]:
    """Captions with the words marked on which one target rests; one without words stays bare."""
    worded = [caption for caption in captions if caption.strip()]
    found = {one.caption: one for one in word_evidence(source, worded, target)}
    return [
        marked(found[caption]) if caption in found else Marked(html.escape(caption), "")
        for caption in captions
    ]


def add_layers(source: Source, target: Target, rows: Sequence[dict[str, Any]]) -> None:
    """Give exemplars' rows with a thumbnail their `layer`."""
    shown = [row for row in rows if row["thumbnail"] is not None]
    layers = picture_layers(source, target, [row["thumbnail"] for row in shown])
    for row, layer in zip(shown, layers, strict=True):
        row["layer"] = layer


def layer_url(
    found: PictureEvidence, size: tuple[int, int], target: int = 0, peak: float | None = None
) -> str:
    """A target's evidence as a transparent picture of the proportions of `size` (width, height)."""
    scale = LAYER_SIDE / max(size)
    width, height = (max(1, round(side * scale)) for side in size)
    drawn = found.upsampled((width, height))[target].numpy()  # [height, width]
    if peak is None:
        peak = float(found.cells[target].abs().max())
    pixels = np.empty((height, width, 4), np.uint8)
    pixels[..., :3] = np.where((drawn >= 0)[..., None], FOR, AGAINST)
    pixels[..., 3] = np.rint(255 * OPACITY * np.clip(np.abs(drawn) / max(peak, 1e-12), 0, 1))
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def marked(found: WordEvidence, target: int = 0) -> Marked:
    """A caption with its words marked by their sign and their share of the strongest one's."""
    words = found.words[target]
    peak = max(float(words.abs().max()), 1e-12)
    parts, end = [], 0
    for place, (start, stop) in enumerate(found.spans):
        strength = abs(float(words[place])) / peak
        parts.append(html.escape(found.caption[end:start]))
        word = html.escape(found.caption[start:stop])
        if strength >= FAINT:
            sign = "for" if words[place] > 0 else "against"
            word = f'<mark class="{sign}" style="--strength:{strength:.2f}">{word}</mark>'
        parts.append(word)
        end = stop
    parts.append(html.escape(found.caption[end:]))
    strongest = " and ".join(f"“{word}”" for word in strongest_words(found, target))
    return Marked("".join(parts), f"rests most on {strongest or 'no word of it'}")
