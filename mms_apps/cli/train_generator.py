"""`mms train-generator`: a small Stable unCLIP generator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mms_apps.cli.options import MOST_SEED


def train_generator(
    out: Annotated[Path, typer.Option(help="Folder for the pipeline.")],
    encoder: Annotated[
        str, typer.Option(help="Embedded encoder whose image embeddings condition it.")
    ] = "embedded-ssl",
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Of the denoiser; more than before trains on [default: the recipe's]."
        ),
    ] = None,
    refinement: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Steps in which its own drawings teach it, at last; more than before goes on "
            "[default: the recipe's].",
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            help="Generator to start from, embedded or a folder: its autoencoder and its denoiser "
            "are kept, and refined."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED)] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda ...")] = "cpu",
) -> None:
    """Train the small image generator on the embedded world; run again to go on."""
    from features.extras import require

    require("steering")
    import logging

    from mms_apps.steering.generator_training.settings import (
        DenoiserTraining,
        GeneratorTraining,
        RefinementTraining,
    )
    from mms_apps.steering.generator_training.train import train_generator as train

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    denoiser = DenoiserTraining() if steps is None else DenoiserTraining(steps=steps)
    last = RefinementTraining() if refinement is None else RefinementTraining(steps=refinement)
    training = GeneratorTraining(
        encoder, denoiser=denoiser, refinement=last, seed=seed, start=start
    )
    train(out, training, device)
    typer.echo(f"generator -> {out}; use it as --generator {out}")
