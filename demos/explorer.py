"""Explorer: find features by words, class and scores; see what they stand for; compare them.

python -m demos.explorer
"""

from __future__ import annotations

import html
from typing import Any

from demos.common import (
    ONE_AT_A_TIME,
    add_encoder,
    errors_in_words,
    gr,
    launch,
    options,
    page,
    run_in_words,
)
from demos.features_html import Key, cards_html, picked_html
from features.analysis.compare import FIGURES, Comparison, cell, compare
from features.analysis.search import Filter, find, rows_of
from features.embedded import SPACE_NAMES
from features.modality import CROSS_MODAL, UNSCORED
from features.reports.layers import switch
from features.reports.page import (
    CLASS_NAMES,
    MODALITY_CLASSES,
    NOT_SHARED,
    SHARED,
    histogram,
)
from features.space.several import load_spaces
from features.space.space import FeatureSpace

ZONES = 10
"""Parts of the histogram that can be clicked."""
CARDS = 24
"""Features that are shown at once."""
ORDERS = [
    ("Best named first", "telling"),
    ("Most monosemantic first", "monosemanticity"),
    ("Most image-dominant first", "image"),
    ("Most text-dominant first", "text"),
    ("Images and texts agree most first", "agreement"),
    ("By number", "number"),
]
SHARINGS = {"CrossD/shared": True, "CrossD/not shared": False}
"""Parts of the cross-modal class, by what the choice of the class gives."""
INTRO = """
# Explorer: what does each feature stand for?
The **Modality Dominance Score (MDS)** is 0 where only texts drive a feature and 1 where only images
do. A **monosemantic** feature is about one thing. A cross-modal one is **shared** where images and
texts drive it in the same pairs, as its **agreement** says. Click in the histogram to see the
features there.
"""
CSS = """
.mds-chart { position: relative; height: 190px; margin: .3rem 0 1.6rem;
  border-bottom: 1px solid var(--border-color-primary); }
.mds-chart svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.mds-chart .zones { position: absolute; inset: 0; display: flex; }
.mds-chart .zones button { flex: 1; padding: 0; border: 0; background: none; cursor: pointer;
  box-shadow: none; }
.mds-chart .zones button:hover, .mds-chart .zones [aria-pressed=true] {
  background: color-mix(in srgb, var(--body-text-color) 12%, transparent); }
.mds-chart .axis { position: absolute; top: 100%; inset-inline: 0; display: flex;
  justify-content: space-between; font-size: .8rem; padding-top: .2rem; }
.mds-legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .85rem; }
.mds-legend span::before { content: ""; display: inline-block; width: .75em; height: .75em;
  border-radius: 3px; margin-right: .4em; background: currentColor; }
.bar-ImgD { fill: var(--ImgD); } .bar-CrossD { fill: var(--CrossD); }
.bar-TextD { fill: var(--TextD); }
.ImgD { color: var(--ImgD); } .CrossD { color: var(--CrossD); } .TextD { color: var(--TextD); }
.unscored { color: var(--unscored); }
#explorer-cards .cards { display: grid; gap: .5rem; max-height: 640px; overflow-y: auto;
  padding: 3px; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); }
#explorer-cards button { display: flex; flex-direction: column; gap: .15rem; padding: .5rem;
  text-align: left; cursor: pointer; border-radius: 8px; overflow-wrap: anywhere;
  color: var(--body-text-color); background: var(--background-fill-primary);
  border: 1px solid var(--border-color-primary); }
#explorer-cards button:hover { border-color: var(--color-accent); }
#explorer-cards strong { font-size: .9rem; } #explorer-cards small { font-size: .78rem; }
#explorer-cards .thumbs { display: grid; grid-template-columns: repeat(2, 56px); gap: 4px;
  margin-top: auto; padding-top: .3rem; }
#explorer-cards img { width: 56px; height: 56px; object-fit: cover; margin: 0; border-radius: 4px; }
#explorer-picked .side-by-side { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 270px), 1fr)); }
#explorer-picked article { padding: .9rem; border-radius: 8px; min-width: 0;
  border: 1px solid var(--border-color-primary); background: var(--background-fill-primary); }
#explorer-picked h2 { font-size: 1.15rem; margin: 0; overflow-wrap: anywhere; }
#explorer-picked h3 { font-size: .95rem; margin: .9rem 0 .3rem; }
#explorer-picked dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .8rem;
  margin: .5rem 0 0; font-size: .88rem; }
#explorer-picked dd { margin: 0; }
#explorer-picked ul { margin: 0; padding-left: 1.1rem; font-size: .88rem; }
#explorer-picked .images { display: grid; gap: .5rem; font-size: .78rem; line-height: 1.25;
  grid-template-columns: repeat(auto-fill, minmax(110px, 1fr)); }
#explorer-picked figure { margin: 0; overflow-wrap: anywhere; }
#explorer-picked figcaption span { display: -webkit-box; -webkit-line-clamp: 3; overflow: hidden;
  -webkit-box-orient: vertical; }
#explorer-picked figcaption small { display: block; color: var(--body-text-color-subdued);
  font-size: .68rem; }
#explorer-picked img { width: 96px; height: 96px; object-fit: contain; margin: 0 0 .2rem; }
#explorer-picked .alike { display: flex; flex-wrap: wrap; gap: .4rem; }
#explorer-picked .alike button { padding: .25rem .6rem; border-radius: 8px; font-size: .82rem;
  cursor: pointer; color: var(--body-text-color); background: none;
  border: 1px solid var(--border-color-primary); }
#explorer-table table { width: 100%; border-collapse: collapse; font-size: .9rem; }
#explorer-table :is(th, td) { text-align: left; padding: .3rem .4rem;
  border-bottom: 1px solid var(--border-color-primary); }
#explorer-charts .two { display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); }
"""
PICK = """
element.addEventListener('click', (event) => {
  const chosen = event.target.closest('[data-feature]');
  if (!chosen) return;
  trigger('select', {feature: Number(chosen.dataset.feature)});
  document.querySelector('#explorer-picked').scrollIntoView({block: 'nearest'});
});
"""
PICK_ZONE = """
element.addEventListener('click', (event) => {
  const chosen = event.target.closest('[data-zone]');
  if (chosen) trigger('select', {zone: Number(chosen.dataset.zone)});
});
"""


def fill(spaces: dict[str, FeatureSpace]) -> None:
    """Put the Explorer of the spaces, by what each is called, on the page that is being built."""
    names = list(spaces)
    classes = [("any", ""), *((CLASS_NAMES[c], c) for c in (*MODALITY_CLASSES, UNSCORED))]
    classes += zip((SHARED, NOT_SHARED), SHARINGS, strict=True)

    def search(
        name: str,
        words: str,
        modality_class: str,
        least: float,
        order: Any,
        low: float,
        high: float,
    ) -> tuple[str, str, str, list[int], int, Any]:
        space = spaces[name]
        low, high = sorted((low, high))
        with errors_in_words():
            shared = SHARINGS.get(modality_class)
            wanted = (CROSS_MODAL if modality_class in SHARINGS else modality_class) or None
            anywhere = find(space, Filter(words, wanted, 0, 1, least, shared=shared), order)
            kept = Filter(words, wanted, low, high, least, shared=shared)
            found = find(space, kept, order)
        said = f"**{len(found):,}** of {len(space):,} features"
        chart = chart_html(space, anywhere, zones_html(space, anywhere, low, high))
        left = gr.update(**what_is_left(found, CARDS))
        return chart, said, cards_html(space, found[:CARDS]), found, CARDS, left

    def show_more(name: str, found: list[int], count: int) -> tuple[str, int, Any]:
        count += CARDS
        left = gr.update(**what_is_left(found, count))
        return cards_html(spaces[name], found[:count]), count, left

    def zone(event: gr.EventData) -> tuple[float, float]:
        return event.zone / ZONES, (event.zone + 1) / ZONES

    def pick(name: str, kept: Key | None, event: gr.EventData) -> tuple[str, Key]:
        picked = (name, event.feature)
        return picked_html(spaces, picked, kept, layers=False, marks=False), picked

    def keep(picked: Key) -> tuple[str, Key, Any]:
        return picked_html(spaces, picked, picked), picked, gr.update(interactive=True)

    def let_go(picked: Key) -> tuple[str, None, Any]:
        return picked_html(spaces, picked, None), None, gr.update(interactive=False)

    def first_of(name: str, order: Any) -> tuple[str, Key, None, Any]:
        picked = (name, find(spaces[name], Filter(), order)[0])
        shown = picked_html(spaces, picked, None, layers=False, marks=False)
        return shown, picked, None, gr.update(interactive=False)

    def with_layers(picked: Key, kept: Key | None) -> str:
        return picked_html(spaces, picked, kept, marks=False)

    def with_marks(picked: Key, kept: Key | None) -> str:
        return picked_html(spaces, picked, kept)

    start = search(names[0], "", "", 0.0, ORDERS[0][1], 0.0, 1.0)
    opened = (names[0], start[3][0])
    gr.Markdown(INTRO)
    with gr.Tab("Features"):
        found, count = gr.State(start[3]), gr.State(CARDS)
        picked, kept = gr.State(opened), gr.State(None)
        with gr.Row():
            with gr.Column(scale=2):
                space = gr.Radio(names, value=names[0], label="Space", visible=len(names) > 1)
                words = gr.Textbox(label="Words or number", placeholder="car, or 42")
                modality_class = gr.Radio(classes, value="", label="Class")
                least = gr.Slider(0, 1, 0.0, step=0.05, label="Monosemanticity at least")
            with gr.Column(scale=3):
                chart = gr.HTML(start[0], elem_id="explorer-chart", js_on_load=PICK_ZONE)
                with gr.Row():
                    low = gr.Slider(0, 1, 0.0, step=0.05, label="MDS from")
                    high = gr.Slider(0, 1, 1.0, step=0.05, label="MDS to")
                order = gr.Dropdown(ORDERS, value=ORDERS[0][1], label="Order")
        with gr.Row():
            with gr.Column(scale=2):
                with gr.Row():
                    said = gr.Markdown(start[1])
                    reset = gr.Button("Reset filters", size="sm", scale=0, min_width=130)
                cards = gr.HTML(start[2], elem_id="explorer-cards", js_on_load=PICK)
                more = gr.Button(size="sm", **what_is_left(start[3], CARDS))
            with gr.Column(scale=3, elem_classes="layers-scope"):
                gr.HTML(switch())
                detail = gr.HTML(
                    picked_html(spaces, opened, None), elem_id="explorer-picked", js_on_load=PICK
                )
                with gr.Row():
                    hold = gr.Button("Compare with the next one picked", size="sm")
                    drop = gr.Button("Stop comparing", size="sm", interactive=False)
    filters = [space, words, modality_class, least, order, low, high]
    results = [chart, said, cards, found, count, more]
    latest: dict[str, Any] = {"trigger_mode": "always_last", "show_progress": "hidden"}
    gr.on(
        [
            words.submit,
            words.blur,
            modality_class.input,
            low.release,
            high.release,
            least.release,
            order.input,
        ],
        search,
        filters,
        results,
        api_name="search",
        **latest,
    )
    hidden: dict[str, Any] = {"api_visibility": "private", **latest}
    modelled: dict[str, Any] = {**hidden, **ONE_AT_A_TIME}
    again: dict[str, Any] = {"fn": search, "inputs": filters, "outputs": results, **hidden}
    chart.select(zone, None, [low, high], **hidden).then(**again)
    reset.click(
        lambda: ("", "", 0.0, 0.0, 1.0), None, [words, modality_class, least, low, high], **hidden
    ).then(**again)
    of_picked: dict[str, Any] = {"inputs": [picked, kept], "outputs": detail, **modelled}
    chosen = space.input(first_of, [space, order], [detail, picked, kept, drop], **hidden)
    chosen.then(**again).then(with_layers, **of_picked).then(with_marks, **of_picked)
    more.click(show_more, [space, found, count], [cards, count, more], **hidden)
    for offered in (cards, detail):
        shown = offered.select(pick, [space, kept], [detail, picked], **hidden)
        shown.then(with_layers, **of_picked).then(with_marks, **of_picked)
    hold.click(keep, picked, [detail, kept, drop], **modelled)
    drop.click(let_go, picked, [detail, kept, drop], **modelled)
    if len(spaces) > 1:
        with gr.Tab("Two spaces"):
            compare_page(spaces)


def compare_page(spaces: dict[str, FeatureSpace]) -> None:
    """Two spaces side by side."""
    names = list(spaces)

    def differences(first: str, second: str) -> tuple[str, str, str]:
        found = compare([spaces[first], spaces[second]], [first, second])
        words = "\n".join(f"- {sentence}" for sentence in found.differences[0])
        charts = ""
        for name in (first, second):
            chart = chart_html(spaces[name], list(range(len(spaces[name]))))
            charts += f"<div><h3>{html.escape(name)}</h3>{chart}</div>"
        return words, f'<div class="two">{charts}</div>', table_html(found)

    with gr.Row():
        first = gr.Dropdown(names, value=names[0], label="Space")
        second = gr.Dropdown(names, value=names[1], label="Beside")
        start = gr.Button("Compare", variant="primary", scale=0, min_width=160)
    words = gr.Markdown()
    charts = gr.HTML(elem_id="explorer-charts")
    table = gr.HTML(elem_id="explorer-table")
    start.click(differences, [first, second], [words, charts, table], api_name="compare")


def table_html(found: Comparison) -> str:
    """The figures of the spaces with their intervals, a space a column."""
    heads = "".join(f'<th scope="col">{html.escape(s.label)}</th>' for s in found.spaces)
    rows = "".join(
        f'<tr><th scope="row">{f.label}</th>'
        + "".join(f"<td>{cell(s.estimates[f.key], f.percent)}</td>" for s in found.spaces)
        + "</tr>"
        for f in FIGURES
    )
    return (
        '<table><caption class="sr-only">Figures with 95% intervals</caption><thead><tr>'
        f"<td></td>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    )


def what_is_left(found: list[int], shown: int) -> dict[str, Any]:
    """Of the button that shows more."""
    left = len(found) - shown
    return {"value": f"Show more ({left:,} left)", "visible": left > 0}


def zones_html(space: FeatureSpace, numbers: list[int], low: float, high: float) -> str:
    """The parts of some features' histogram that can be clicked, those of the range shaded."""
    mds = space.features["mds"].to_numpy()[numbers]
    zones = []
    for place in range(ZONES):
        begin, end = place / ZONES, (place + 1) / ZONES
        last = place == ZONES - 1
        inside = int(((mds >= begin) & ((mds <= end) if last else (mds < end))).sum())
        pressed = (low, high) != (0, 1) and begin >= low - 1e-9 and end <= high + 1e-9
        said = f"MDS {begin:.1f} to {end:.1f}: {inside} features"
        zones.append(
            f'<button type="button" data-zone="{place}" aria-pressed="{str(pressed).lower()}" '
            f'aria-label="{said}" title="{said}"></button>'
        )
    return f'<div class="zones">{"".join(zones)}</div>'


def chart_html(space: FeatureSpace, numbers: list[int], zones: str = "") -> str:
    """The MDS histogram of some features, with what lies over it."""
    rows = rows_of(space, numbers)
    bars = "".join(
        f'<rect class="bar-{b.modality_class}" x="{1000 * b.x + 1.5:.1f}" y="{1000 * b.y:.1f}" '
        f'width="{1000 * b.width - 3:.1f}" height="{1000 * b.height:.1f}"></rect>'
        for b in histogram(rows)
    )
    said = f"Histogram of the Modality Dominance Score of {len(rows)} features"
    legend = "".join(f'<span class="{c}">{CLASS_NAMES[c]}</span>' for c in MODALITY_CLASSES)
    return (
        '<div class="mds-chart"><svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" '
        f'aria-label="{said}">{bars}</svg>{zones}<div class="axis"><span>0: only texts</span>'
        "<span>MDS</span><span>1: only images</span></div></div>"
        f'<div class="mds-legend">{legend}</div>'
    )


def build(spaces: dict[str, FeatureSpace]) -> gr.Blocks:
    """The page."""
    with page("Explorer") as demo:
        fill(spaces)
    return demo


def main() -> None:
    parser = options(__doc__)
    parser.add_argument(
        "--space",
        action="append",
        help="folder, hub id or one that ships; once for each [default: all that ship]",
    )
    add_encoder(parser, "once for each", action="append")
    arguments = parser.parse_args()
    names = arguments.space or list(SPACE_NAMES)
    spaces = load_spaces(names, arguments.encoder, arguments.device)
    launch(build(dict(zip(names, spaces, strict=True))), port=arguments.port, css=CSS)


if __name__ == "__main__":
    run_in_words(main)
