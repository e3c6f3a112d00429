"""`mms convert`: dictionaries from other libraries, and for SAELens."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from features.errors import UserError
from mms_apps.cli.options import Device, Out

if TYPE_CHECKING:
    from features.dictionary import Dictionary


class Target(StrEnum):
    """What is written."""

    DICTIONARY = "dictionary"
    SAELENS = "saelens"


class Side(StrEnum):
    """A modality, for typer."""

    IMAGE = "image"
    TEXT = "text"


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="A sparse autoencoder of SAELens, sparsify, dictionary_learning, sae-for-vlm, "
            "overcomplete, MSAE or saev, file or folder as it was written; with --to saelens also "
            "the folder of a dictionary or of a FeatureSpace."
        ),
    ],
    out: Out,
    to: Annotated[
        Target, typer.Option(help="A dictionary of this suite, or SAELens's format.")
    ] = Target.DICTIONARY,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="Encoder whose embeddings the autoencoder was trained on, as mms extract takes it "
            "[default: any of its dimensions]."
        ),
    ] = None,
    k: Annotated[
        int | None,
        typer.Option(help="Features active for one sample, where the file does not say."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Threshold of the activations, where the file does not hold it."),
    ] = None,
    modality: Annotated[
        Side | None,
        typer.Option(
            help="For SAELens: of which modality, where images and texts are centred apart."
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Read a dictionary of another library, or write one for SAELens."""
    from features.dictionary.convert import same_means, write_saelens

    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: is not empty; name another folder")
    dictionary = _opened(source, encoder, k, threshold, device)
    config = dictionary.config
    if to is Target.SAELENS:
        if modality is None and not same_means(dictionary):
            raise UserError(
                "SAELens knows one mean: this dictionary has one for images and one for texts; say "
                "which with --modality image or --modality text"
            )
        write_saelens(dictionary, out, (modality or Side.IMAGE).value)
    else:
        dictionary.save(out)
    typer.echo(
        f"{config.kind}, {config.features} features of {config.dim} dimensions, "
        f"{dictionary.sparsity} -> {out}"
    )


def _opened(
    source: Path, encoder: str | None, k: int | None, threshold: float | None, device: str
) -> Dictionary:
    """A dictionary of this suite, or made of another library's files."""
    from features.dictionary import load_dictionary
    from features.dictionary.base import WEIGHTS
    from features.dictionary.foreign import read_autoencoder
    from features.encoders.load import load_encoder

    if (source / WEIGHTS).is_file():
        return load_dictionary(source)
    found = read_autoencoder(source, k=k, threshold=threshold)
    if encoder is None:
        return found.dictionary()
    model = load_encoder(encoder, device=device)
    if model.dim != found.encoder.shape[1]:
        raise UserError(
            f"{source}: reads embeddings of {found.encoder.shape[1]} dimensions, {encoder} makes "
            f"{model.dim}; name the encoder that it was trained on"
        )
    return found.dictionary(model.id, model.fingerprint)
