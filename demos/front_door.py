"""One page with a tab for each demo, over what ships with the package or over one's own spaces."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from demos import attributes, explorer, robustness, steering
from demos.common import gr, launch, page
from features.errors import UserError
from features.space.space import FeatureSpace
from mms_apps.front_door import FrontDoor, open_front_door
from mms_apps.robustness.session import Session
from mms_apps.steering.generator import SteeredGenerator

CSS = explorer.CSS + attributes.CSS + steering.CSS + robustness.CSS


def serve(
    spaces: Sequence[str],
    *,
    pairs: str | None = None,
    generator: str | None = None,
    encoder: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    device: str = "auto",
    port: int | None = None,
) -> None:
    """Serve the page until it is stopped.

    Args:
        spaces: as `open_front_door` takes them, with what follows; none for those that ship.

    Raises:
        UserError: something cannot be opened, or there is something to open beside no space.
    """
    beside = {"--pairs": pairs, "--generator": generator, "--encoder": encoder}
    given = [option for option, value in beside.items() if value is not None]
    if given and not spaces:
        raise UserError(f"{given[0]}: name the FeatureSpace that it goes with")
    with tempfile.TemporaryDirectory() as work:
        if spaces:
            opened = open_front_door(
                spaces,
                Path(work),
                pairs=pairs,
                generator=generator,
                encoder=encoder,
                image_column=image_column,
                caption_column=caption_column,
                device=device,
            )
            demo = own_page(opened, generator or "")
        else:
            demo = shipped_page(device, Path(work))
        launch(demo, port=port, css=CSS)


def own_page(opened: FrontDoor, generator: str = "") -> gr.Blocks:
    """Every app that there is enough for; of the others, what they need.

    Args:
        generator: what the drawer was loaded from, to be saved with edits.
    """
    with page(", ".join(opened.spaces)) as demo, gr.Tabs(overflow_behavior="wrap"):
        with gr.Tab("Explorer"):
            explorer.fill(opened.spaces)
        with gr.Tab("Attributes") as tab:
            if isinstance(opened.workbench, str):
                say_what_it_needs("Attributes", opened.workbench)
            else:
                attributes.fill(opened.workbench, tab.select)
        with gr.Tab("Steering"):
            drawer = opened.drawer
            if isinstance(drawer, str):
                say_what_it_needs("Steering", drawer)
            else:
                steering.fill(drawer.space, lambda: drawer, generator)
        with gr.Tab("Robustness"):
            if isinstance(opened.session, str):
                say_what_it_needs("Robustness", opened.session)
            else:
                robustness.fill(opened.session, opened.labels or robustness.LABELS)
    return demo


def say_what_it_needs(title: str, words: str) -> None:
    """A tab of an app that there is not enough for."""
    gr.Markdown(f"# {title}: not opened\n\n{words}")


def shipped_page(device: str, work: Path) -> gr.Blocks:
    """All apps over what ships with the package. Each FeatureSpace is loaded once, and models
    when a tab first needs them.

    Args:
        work: folder for embeddings.
    """
    contrastive = FeatureSpace.load("embedded", device=device)
    with_ssl = FeatureSpace.load("embedded-ssl", device=device)
    photos = FeatureSpace.load("photos", device=device)
    of_garments = FeatureSpace.load("garments", device=device)
    shipped = {
        "photos": photos,
        "garments": of_garments,
        "embedded": contrastive,
        "embedded-ssl": with_ssl,
    }
    drawer = cache(lambda: SteeredGenerator.load("embedded", with_ssl, device))
    emoji, garments = attributes.EMOJI, attributes.GARMENTS
    with page("mms-apps") as demo, gr.Tabs(overflow_behavior="wrap"):
        with gr.Tab("Explorer"):
            explorer.fill(shipped)
        with gr.Tab("Garments") as tab:
            bench = garments.workbench(of_garments, work / "garments")
            attributes.fill(bench, tab.select, garments.title, garments.said)
        with gr.Tab("Attributes") as tab:
            bench = emoji.workbench(contrastive, work / "emoji")
            attributes.fill(bench, tab.select, emoji.title, emoji.said)
        with gr.Tab("Steering"):
            steering.fill(with_ssl, drawer)
        with gr.Tab("Robustness"):
            robustness.fill(Session.load(contrastive))
    return demo
