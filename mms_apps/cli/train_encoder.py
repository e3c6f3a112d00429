"""`mms train-encoder`: a small open_clip encoder."""

from __future__ import annotations

from typing import Annotated

import typer

from mms_apps.cli.options import Out, Pairs


def train_encoder(
    pairs: Pairs,
    out: Out,
    ssl: Annotated[bool, typer.Option(help="Add self-supervision of images and texts.")] = False,
    steps: Annotated[int, typer.Option(min=1)] = 1500,
    batch_size: Annotated[int, typer.Option(min=2)] = 256,
    seed: Annotated[int, typer.Option()] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda ...")] = "cpu",
) -> None:
    """Train a small open_clip encoder on pairs; of `embedded`, name the split: embedded:train."""
    import logging

    from features.embedded.evaluate import write_evaluation
    from features.encoders.train_encoder import EncoderTraining
    from features.encoders.train_encoder import train_encoder as train
    from features.pairs.open import open_pairs

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    training = EncoderTraining(ssl=ssl, steps=steps, batch_size=batch_size, seed=seed)
    train(open_pairs(pairs), out, training, device=device)
    if pairs == "embedded:train":
        for name, row in write_evaluation(out, device=device).items():
            typer.echo(f"{name}: {row['value']:.3f} ({row['ci_low']:.3f} to {row['ci_high']:.3f})")
    typer.echo(f"encoder -> {out}; use it as --encoder local-dir:{out}")
