"""The stages of `mms run` one by one: extract, fit, score, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mms_apps.cli.common import quality, report_skipped, require_pairs, train_config
from mms_apps.cli.options import (
    ActiveCount,
    BatchSize,
    CaptionColumn,
    DeadSamples,
    Device,
    EncoderId,
    Epochs,
    FeatureCount,
    ImageColumn,
    Kind,
    LearningRate,
    ModalityBias,
    MovedEncoder,
    Out,
    Pairs,
    Patience,
    Sample,
    Samples,
    Seed,
    Selection,
    Steps,
    Strict,
    Tracker,
    TrainBatchSize,
    Vocabulary,
    Workers,
)


def extract(
    pairs: Pairs,
    out: Out,
    encoder: EncoderId = "embedded",
    device: Device = "auto",
    batch_size: BatchSize = 256,
    workers: Workers = None,
    strict: Strict = False,
    add: Annotated[
        bool, typer.Option("--add", help="Add those pairs that the store does not hold yet.")
    ] = False,
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
) -> None:
    """Encode pairs into an activation store."""
    from features.encoders.load import load_encoder
    from features.pairs.open import open_pairs
    from features.store.extend import extend
    from features.store.extract import extract as extract_pairs
    from features.store.store import ActivationStore

    source = open_pairs(pairs, image_column=image_column, caption_column=caption_column)
    model = load_encoder(encoder, device=device)
    before = len(ActivationStore.open(out)) if add else 0
    encode = extend if add else extract_pairs
    store = encode(source, model, out, batch_size=batch_size, workers=workers, strict=strict)
    require_pairs(store)
    added = f", {len(store) - before} of them new" if add else ""
    typer.echo(f"{len(store)} pairs of {store.dim} dimensions{added} -> {out}")
    report_skipped(store)


def fit(
    store: Annotated[Path, typer.Option(help="Activation store to fit on.")],
    out: Out,
    dictionary: Kind = None,
    features: FeatureCount = None,
    k: ActiveCount = None,
    modality_bias: ModalityBias = None,
    steps: Steps = None,
    samples: Samples = None,
    epochs: Epochs = None,
    train_batch_size: TrainBatchSize = None,
    learning_rate: LearningRate = None,
    dead_samples: DeadSamples = None,
    patience: Patience = None,
    selection: Selection = None,
    tracker: Tracker = None,
    sample: Sample = None,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Fit a dictionary on an activation store."""
    from features.dictionary import fit_dictionary
    from features.store.sample import sampled
    from features.store.store import ActivationStore

    settings = {
        "kind": dictionary,
        "features": features,
        "k": k,
        "modality_bias": modality_bias,
        "steps": steps,
        "samples": samples,
        "epochs": epochs,
        "batch_size": train_batch_size,
        "learning_rate": learning_rate,
        "dead_samples": dead_samples,
        "patience": patience,
        "selection": selection,
    }
    config = train_config(seed, settings)
    opened = ActivationStore.open(store)
    require_pairs(opened)
    fitted = fit_dictionary(
        sampled(opened, sample, seed), config, out, device=device, tracker=tracker
    )
    typer.echo(f"{fitted.config.features} features, {quality(fitted.config.held_out)} -> {out}")


def score(
    store: Annotated[Path, typer.Option(help="Activation store of the encoder.")],
    dictionary: Annotated[Path, typer.Option(help="Folder of the dictionary.")],
    out: Out,
    judge_store: Annotated[
        Path | None, typer.Option(help="The same pairs encoded by an independent encoder.")
    ] = None,
    pairs: Annotated[
        str | None, typer.Option(help="The pairs themselves, for the exemplars' thumbnails.")
    ] = None,
    vocabulary: Vocabulary = None,
    sample: Sample = None,
    device: Device = "cpu",
    seed: Seed = 0,
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
) -> None:
    """Score, name and illustrate a dictionary's features; write the FeatureSpace."""
    from features.dictionary import load_dictionary
    from features.distributed import from_main_process
    from features.pairs.open import open_pairs
    from features.scores.terms import read_vocabulary
    from features.space.score import score as score_features
    from features.space.space import require_replaceable
    from features.store.extend import sources_of
    from features.store.sample import sampled
    from features.store.store import ActivationStore

    require_replaceable(out)
    opened = sampled(ActivationStore.open(store), sample, seed)
    judge = None
    if judge_store is not None:
        judge = sampled(ActivationStore.open(judge_store), sample, seed)
    source = None
    if pairs is not None:
        source = open_pairs(pairs, image_column=image_column, caption_column=caption_column)
        if source.fingerprint() not in sources_of(opened.config):
            typer.echo(
                f"{pairs}: other pairs than {store} was made from, or in another state; thumbnails "
                "are those of the same names",
                err=True,
            )
    terms = None if vocabulary is None else read_vocabulary(vocabulary)
    scored = score_features(
        opened,
        load_dictionary(dictionary),
        judge,
        source,
        terms=terms,
        seed=seed,
        device=device,
    )
    from_main_process(lambda: scored.save(out))
    typer.echo(f"{len(scored)} features -> {out}")


def report(
    space: Annotated[str, typer.Argument(help="Folder or hub id of a FeatureSpace, or embedded.")],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")],
    evidence: Annotated[
        bool,
        typer.Option(
            help="Show which parts of pictures and which words the features rest on with which "
            "the report opens; needs the space's encoder."
        ),
    ] = True,
    encoder: MovedEncoder = None,
) -> None:
    """Write a FeatureSpace's report, one HTML file."""
    from features.reports.report import write_report
    from features.space.space import FeatureSpace

    loaded = FeatureSpace.load(space, device="cpu", encoder=encoder)
    write_report(loaded, out, evidence=evidence)
    typer.echo(f"report -> {out}")
