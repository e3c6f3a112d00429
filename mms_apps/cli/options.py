"""Options that several commands of `mms` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

KINDS = ("identity", "topk", "batchtopk", "matryoshka", "group", "ncl")
Pairs = Annotated[
    str,
    typer.Option(
        help="Folder of images with metadata or of classes, .csv, .tsv, .jsonl, .parquet or .tar "
        "files (globs and braces too), URLs of .tar files, embedded, or "
        "photos."
    ),
]
ImageColumn = Annotated[
    str | None,
    typer.Option(help="Column that names or holds the images [default: the usual names]."),
]
CaptionColumn = Annotated[
    str | None,
    typer.Option(help="Column of the captions; of a folder of classes: label."),
]
EncoderId = Annotated[
    str,
    typer.Option(
        help="architecture/tag or architecture/checkpoint file as open_clip has them, "
        "hf-hub:org/name, local-dir:path, transformers:ID or folder, embedded, embedded-ssl or "
        "photos; hub ids may end in @REVISION; for a judge's store also timm:NAME+text:ID."
    ),
]
Out = Annotated[Path, typer.Option(help="Folder for the results.")]
Kind = Annotated[
    str | None,
    typer.Option(
        "--dictionary",
        help=f"One of {', '.join(KINDS)} or a kind that was registered; in mms run also the folder "
        "of a dictionary [default: topk].",
    ),
]
FeatureCount = Annotated[
    int | None, typer.Option("--features", help="Features of the dictionary [default: 4 x dim].")
]
ActiveCount = Annotated[
    int | None, typer.Option("--k", help="Features active for one sample [default: 16].")
]
ModalityBias = Annotated[
    bool | None,
    typer.Option(
        "--modality-bias/--no-modality-bias",
        help="Centre images and texts by their own means [default: as the kind does].",
    ),
]
Steps = Annotated[int | None, typer.Option(help="Steps to train the dictionary [default: 3000].")]
Samples = Annotated[
    int | None, typer.Option(help="In place of --steps: pairs to train on, over all epochs.")
]
Epochs = Annotated[
    float | None, typer.Option(help="In place of --steps: times to go through all pairs.")
]
TrainBatchSize = Annotated[
    int | None, typer.Option("--train-batch-size", help="Pairs a step of training [default: 256].")
]
LearningRate = Annotated[
    float | None, typer.Option(help="Learning rate of the dictionary [default: 0.001].")
]
DeadSamples = Annotated[
    int | None,
    typer.Option(help="Pairs after which an inactive feature is dead [default: 12800]."),
]
Patience = Annotated[
    int | None,
    typer.Option(
        help="Stop after so many measurements, one every 250 steps, without a better FVU on "
        "held-out pairs, and keep the best weights [default: go on to the end]."
    ),
]
Selection = Annotated[
    str | None,
    typer.Option(
        help="How a sample's features are found in training: exact, bf16 (products in bf16 choose "
        "candidates) or auto [default: auto, the faster]."
    ),
]
Tracker = Annotated[
    str | None,
    typer.Option(help="tensorboard, wandb or trackio; metrics.jsonl is written anyhow."),
]
Sample = Annotated[
    int | None,
    typer.Option(help="Take so many pairs of the store, drawn at random by --seed [default: all]."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
BatchSize = Annotated[int, typer.Option(min=1, help="Pairs encoded at once.")]
Workers = Annotated[
    int | None, typer.Option(min=0, help="Decoding processes [default: by the cores].")
]
Strict = Annotated[bool, typer.Option(help="Stop at the first pair that cannot be read.")]
MovedEncoder = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        help="The space's encoder, where it lay in a local folder [default: the one that the "
        "space names].",
    ),
]
Encoders = Annotated[
    list[str] | None,
    typer.Option(
        "--encoder",
        help="Encoder of a space, where it lay in a local folder; once for each [default: the one "
        "that the space names].",
    ),
]
Vocabulary = Annotated[
    Path | None,
    typer.Option(help="Terms to name features by, one a line [default: the captions' own]."),
]
MOST_SEED = 2**32 - 1
"""The largest that numpy and scikit-learn take."""
Seed = Annotated[
    int,
    typer.Option(min=0, max=MOST_SEED, help="Seed of the dictionary and of the intervals."),
]
