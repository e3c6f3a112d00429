"""`mms explore`: the one page of all apps, over FeatureSpaces of one's own."""

from __future__ import annotations

from typing import Annotated

import typer

from mms_apps.cli.options import CaptionColumn, Device, ImageColumn, MovedEncoder


def explore(
    spaces: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SPACE]...",
            help="Folder, hub id or name of a FeatureSpace; of several, all of one encoder "
            "[default: those that ship].",
            show_default=False,
        ),
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option(
            help="Labelled pairs, as `run` takes them, for the tabs of attributes and robustness."
        ),
    ] = None,
    generator: Annotated[
        str | None,
        typer.Option(
            help="embedded, a Stable unCLIP folder or hub id, for the tab of steering; its image "
            "encoder is the space's."
        ),
    ] = None,
    encoder: MovedEncoder = None,
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
    device: Device = "auto",
    port: Annotated[
        int | None, typer.Option(help="Port of the page [default: the first free one from 7860].")
    ] = None,
) -> None:
    """Open a page of all apps in the browser: explorer, attributes, steering, robustness.

    A tab for which something is missing says what it needs.
    """
    from importlib import import_module

    from features.extras import require

    require("demos")
    # The pages stand above the apps, whose code imports none of them: started by name.
    import_module("demos.front_door").serve(
        spaces or [],
        pairs=pairs,
        generator=generator,
        encoder=encoder,
        image_column=image_column,
        caption_column=caption_column,
        device=device,
        port=port,
    )
