"""`mms train-encoder`: a small open_clip encoder, or heads on two models that are there already."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from features.errors import UserError
from mms_apps.cli.options import MOST_SEED, Out, Pairs


def train_encoder(
    pairs: Pairs,
    out: Out,
    image_tower: Annotated[
        str | None,
        typer.Option(
            help="Image model to put under a head: timm:NAME, or a folder with timm's config.json."
        ),
    ] = None,
    text_tower: Annotated[
        str | None,
        typer.Option(
            help="Text model to put under a head: a folder or a hub id of a transformers model."
        ),
    ] = None,
    class_names: Annotated[
        bool | None,
        typer.Option(
            "--class-names/--no-class-names",
            help="Whether the image tower's own classes name each picture too [default: where "
            "it has any].",
        ),
    ] = None,
    ssl: Annotated[
        bool, typer.Option(help="Add self-supervision of images and texts; not with towers.")
    ] = False,
    dim: Annotated[
        int | None,
        typer.Option(min=1, help="Dimensions of an embedding [default: 128; with towers 256]."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="[default: 1500; with towers at most 2000]")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=2, help="[default: 256; with towers 512]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED)] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda ...")] = "cpu",
) -> None:
    """Train an open_clip encoder on pairs.

    A small one from scratch (of `embedded`, name the split: embedded:train); or, with
    --image-tower and --text-tower, heads on two pretrained models that stay as they are: minutes
    on a laptop, from a few hundred pairs on.
    """
    import logging

    from features.embedded.evaluate import EVALUATIONS, write_evaluation

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    given = {"dim": dim, "steps": steps, "batch_size": batch_size}
    settings: dict[str, Any] = {k: v for k, v in given.items() if v is not None} | {"seed": seed}
    if image_tower is None and text_tower is None:
        if class_names is not None:
            raise UserError("--class-names: needs --image-tower, whose classes are meant")
        _from_scratch(pairs, out, settings | {"ssl": ssl}, device)
    elif image_tower is None or text_tower is None:
        missing, there = ("--image-tower", "--text-tower")[:: 1 if image_tower is None else -1]
        raise UserError(f"{there}: needs {missing} beside it; give both, or neither")
    elif ssl:
        raise UserError("--ssl: trains towers, but those of --image-tower and --text-tower stay")
    else:
        if class_names is not None:
            settings["class_names"] = class_names
        _on_towers(pairs, image_tower, text_tower, out, settings, device)
    if pairs in EVALUATIONS:
        for name, row in write_evaluation(out, pairs, device=device).items():
            typer.echo(f"{name}: {row['value']:.3f} ({row['ci_low']:.3f} to {row['ci_high']:.3f})")
    typer.echo(f"encoder -> {out}; use it as --encoder local-dir:{out}")


def _from_scratch(pairs: str, out: Path, settings: dict[str, Any], device: str) -> None:
    from features.encoders.train_encoder import EncoderTraining
    from features.encoders.train_encoder import train_encoder as train
    from features.pairs.open import open_pairs

    train(open_pairs(pairs), out, EncoderTraining(**settings), device=device)


def _on_towers(
    pairs: str,
    image_tower: str,
    text_tower: str,
    out: Path,
    settings: dict[str, Any],
    device: str,
) -> None:
    from features.encoders.locked_tuning import LockedTuning, tune_locked_towers
    from features.pairs.open import open_pairs

    tuning = LockedTuning(**settings)
    record = tune_locked_towers(
        open_pairs(pairs), image_tower, text_tower, out, tuning, device=device
    )
    best = record["choice"]
    typer.echo(
        f"{best['steps']} steps; among {best['n']} pictures held out to choose this by: "
        f"image to text R@1 {best['i2t_r1']:.3f}, R@5 {best['i2t_r5']:.3f}, "
        f"text to image R@1 {best['t2i_r1']:.3f}, R@5 {best['t2i_r5']:.3f}"
    )
