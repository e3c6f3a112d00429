"""What the demos share: the theme, the queue's limits and how a page is served."""

from __future__ import annotations

import os
from typing import Any

# Before gradio is imported: nothing leaves the machine.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr

QUEUE = 32
"""Calls that wait at most."""
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
"""For every event that runs a model."""
FONT = ["system-ui", "DejaVu Sans", "sans-serif"]


def launch(demo: gr.Blocks, *, port: int | None = None, css: str = "", **options: Any) -> Any:
    """Serve a demo on this machine."""
    theme = gr.themes.Soft(primary_hue="indigo", font=FONT, font_mono=["monospace"])
    return demo.queue(max_size=QUEUE).launch(
        theme=theme, css=css, server_port=port, ssr_mode=False, footer_links=[], **options
    )
