"""`mms import`: an activation store from embeddings that are there already."""

from __future__ import annotations

from typing import Annotated

import typer

from features.errors import UserError
from mms_apps.cli.options import CaptionColumn, Device, Out


def import_store(
    out: Out,
    source: Annotated[
        str | None,
        typer.Argument(
            help="Folder of clip-retrieval's (img_emb, text_emb, metadata) or of DataComp's (.npz "
            "beside .parquet), or files that hold images and texts: .npz, .parquet, .safetensors."
        ),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            help="In place of SOURCE: the images' embeddings, .npy, .npz, .parquet or "
            ".safetensors; a file, a folder or a glob."
        ),
    ] = None,
    texts: Annotated[str | None, typer.Option(help="The texts' embeddings, as many files.")] = None,
    metadata: Annotated[
        str | None,
        typer.Option(help=".parquet with captions and attributes, as many files."),
    ] = None,
    image_key: Annotated[
        str | None,
        typer.Option(help="Array or column of the images' embeddings [default: the usual names]."),
    ] = None,
    text_key: Annotated[
        str | None,
        typer.Option(help="Array or column of the texts' embeddings [default: the usual names]."),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="Encoder that made them, as mms extract takes it: it is loaded, and some captions "
            "are embedded to check."
        ),
    ] = None,
    encoder_name: Annotated[
        str | None,
        typer.Option(
            help="Name of an encoder that is not loaded: stores of one name go together "
            "[default: unknown]."
        ),
    ] = None,
    caption_column: CaptionColumn = None,
    device: Device = "auto",
) -> None:
    """Make an activation store from embeddings of others. Run it again to go on."""
    from features.encoders.load import load_encoder
    from features.store.import_embeddings import UNKNOWN, import_embeddings
    from features.store.layouts import open_embeddings

    if encoder is not None and encoder_name is not None:
        raise UserError("--encoder and --encoder-name: give one of them")
    files = open_embeddings(
        source,
        images=images,
        texts=texts,
        metadata=metadata,
        image_key=image_key,
        text_key=text_key,
    )
    made_by = encoder_name or UNKNOWN
    store = import_embeddings(
        files,
        out,
        encoder=made_by if encoder is None else load_encoder(encoder, device=device),
        caption_column=caption_column,
    )
    typer.echo(f"{len(store)} pairs of {store.dim} dimensions -> {out}")
    if store.config.normalised:
        typer.echo(
            f"{store.config.normalised} embeddings had another length than 1 and were normalised",
            err=True,
        )
    if store.config.uncaptioned:
        typer.echo(
            f"{store.config.uncaptioned} pairs have no text: mms score refuses them", err=True
        )
