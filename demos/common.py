"""What the demos share: the theme, the queue's limits and how a page is served."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Before gradio is imported: nothing leaves the machine.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr

from features.errors import UserError

QUEUE = 32
"""Calls that wait at most."""
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
"""For every event that runs a model."""
CSS = ".gradio-container { max-width: 1180px !important; margin: 0 auto !important; }\n"
FONT = ["system-ui", "DejaVu Sans", "sans-serif"]


def launch(demo: gr.Blocks, *, port: int | None = None, css: str = "", **options: Any) -> Any:
    """Serve a demo on this machine; `css` is added to what all pages have."""
    theme = gr.themes.Soft(primary_hue="indigo", font=FONT, font_mono=["monospace"])
    return demo.queue(max_size=QUEUE).launch(
        theme=theme, css=CSS + css, server_port=port, ssr_mode=False, footer_links=[], **options
    )


@contextmanager
def errors_in_words() -> Iterator[None]:
    """Shows a user's mistake on the page."""
    try:
        yield
    except UserError as error:
        raise gr.Error(str(error)) from None
