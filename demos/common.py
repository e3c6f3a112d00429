"""What the demos share: one look, the queue's and uploads' limits, and how a page is served."""

from __future__ import annotations

import argparse
import html
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Before gradio is imported: nothing leaves the machine.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

from features.errors import UserError
from features.extras import require

try:
    require("demos")
except UserError as error:
    raise SystemExit(f"Error: {error}") from None

import gradio as gr
import PIL.Image

from features.pairs.images import read_image
from features.reports.layers import CSS as LAYERS_CSS
from features.reports.layers import Layer
from features.reports.page import picture_url

QUEUE = 32
"""Calls that wait at most."""
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
"""For every event that runs a model."""
UPLOAD = "10mb"
MEGAPIXELS = 40
KEPT = 3600
"""Seconds for which the server keeps pictures that were uploaded or made."""
FONT = ["system-ui", "DejaVu Sans", "sans-serif"]
CSS = """
.gradio-container { max-width: min(1180px, 100vw) !important; margin: 0 auto !important; }
.gradio-container :is(.column, .row, .tabs, .tabitem) { min-width: 0; }
.dark .js-plotly-plot .main-svg { background: transparent !important;
  filter: invert(.92) hue-rotate(180deg); }
.dark .js-plotly-plot .bg { fill-opacity: 0 !important; }
.gradio-container .table-wrap { --font-mono: var(--font); }
.gradio-container .secondary-wrap input { padding-right: 1.7rem; text-overflow: ellipsis; }
.gallery-of-pictures .grid-container {
  grid-template-columns: repeat(auto-fill, minmax(72px, 1fr)) !important; }
.gallery-of-pictures .thumbnail-item { aspect-ratio: 1; height: auto; }
.gallery-of-pictures .caption-label { display: none; }
:root { --ImgD: #b8500f; --CrossD: #6447b8; --TextD: #1a68a6; --unscored: #566271; }
.dark { --ImgD: #f0955a; --CrossD: #ac98f0; --TextD: #6db3ee; --unscored: #a3afbd;
  --color-accent: var(--primary-400); }
"""
CSS += LAYERS_CSS
# Gradio labels the place of a missing value without a role that may have a label, and its tables
# scroll where no key can reach them.
HEAD = """<script>
new MutationObserver(() => {
  for (const empty of document.querySelectorAll('div.empty[aria-label]:not([role])'))
    empty.setAttribute('role', 'img');
  for (const head of document.querySelectorAll('[role=columnheader]:not([tabindex="0"])'))
    head.tabIndex = 0;
}).observe(document, {childList: true, subtree: true});
</script>"""

# Pillow refuses a picture of twice this, before it decodes it.
PIL.Image.MAX_IMAGE_PIXELS = MEGAPIXELS * 1_000_000 // 2


def page(title: str) -> gr.Blocks:
    """An empty page."""
    return gr.Blocks(title=title, analytics_enabled=False, delete_cache=(KEPT, KEPT))


def picture_input(value: PIL.Image.Image | None = None, **options: Any) -> gr.Image:
    """A picture to upload; one that is too large or cannot be read is refused in words."""
    given = gr.Image(
        value,
        type="pil",
        sources=["upload", "clipboard"],
        buttons=[],
        alt_text="The picture you gave",
        **options,
    )

    def preprocess(payload: Any) -> PIL.Image.Image | None:
        if payload is None:
            return None
        try:
            return read_image(payload.path)
        except UserError as error:
            if "too large" in str(error):
                raise gr.Error(f"The picture has more than {MEGAPIXELS} megapixels.") from None
            raise gr.Error("The file cannot be read as a picture; give a PNG or JPEG.") from None

    given.preprocess = preprocess  # type: ignore[method-assign]
    return given


def picture_gallery(value: Any = None, **options: Any) -> gr.Gallery:
    """Pictures to pick from."""
    return gr.Gallery(
        value,
        label="Pictures to pick from",
        show_label=False,
        elem_classes="gallery-of-pictures",
        allow_preview=False,
        buttons=[],
        **options,
    )


def picture_html(thumbnail: bytes, caption: str, credit: str = "", said: str = "") -> str:
    """An exemplar's thumbnail within a page; its caption, and what is `said` of it beside, is the
    text for those who do not see it, the caption with its credit what a pointer over it shows."""
    title = f"{caption} ({credit})" if credit else caption
    return (
        f'<img class="picture" alt="{html.escape(caption + said)}" title="{html.escape(title)}" '
        f'src="{picture_url(thumbnail)}">'
    )


def layered_html(thumbnail: bytes, caption: str, layer: Layer | None, credit: str = "") -> str:
    """A thumbnail with what a feature rests on in it, drawn and said."""
    said, drawn = "", ""
    if layer is not None:
        said = f"; the feature {layer.said}"
        drawn = f'<img class="layer" alt="" src="{layer.url}">'
    return f'<span class="stack">{picture_html(thumbnail, caption, credit, said)}{drawn}</span>'


@contextmanager
def errors_in_words() -> Iterator[None]:
    """Shows a user's mistake on the page."""
    try:
        yield
    except UserError as error:
        raise gr.Error(str(error)) from None


def run_in_words(main: Callable[[], None]) -> None:
    """Run a demo's command line; a user's mistake is one line and exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)


def options(doc: str) -> argparse.ArgumentParser:
    """The options that all demos take; the help is the first line of `doc`."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--port", type=int)
    return parser


def add_encoder(parser: argparse.ArgumentParser, more: str = "", **options: Any) -> None:
    """The option that says where the encoder of a FeatureSpace lies now."""
    said = "encoder of the space, where it lay in a local folder [default: the one it names]"
    parser.add_argument("--encoder", help=f"{said}; {more}" if more else said, **options)


def theme() -> gr.themes.Base:
    """The colours and fonts; texts contrast with what they stand on by 4.5 to 1."""
    soft = gr.themes.Soft(primary_hue="indigo", font=FONT, font_mono=["monospace"])
    return soft.set(
        block_title_text_color="*primary_700",
        block_label_text_color="*primary_700",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_700",
        checkbox_label_background_fill_selected="*primary_600",
        color_accent="*primary_600",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_300",
    )


def launch(demo: gr.Blocks, *, port: int | None = None, css: str = "", **given: Any) -> Any:
    """Serve a demo on this machine; `css` is added to what all pages have.

    Raises:
        UserError: no such port is free.
    """
    try:
        return demo.queue(max_size=QUEUE).launch(
            theme=theme(),
            css=CSS + css,
            head=HEAD,
            server_port=port,
            max_file_size=UPLOAD,
            ssr_mode=False,
            footer_links=[],
            **given,
        )
    except (OSError, OverflowError) as error:
        if port is not None:
            raise UserError(f"--port {port}: cannot be taken; name another ({error})") from None
        raise UserError(f"no port for the page; name a free one as --port ({error})") from None
