"""`mms run`: pairs -> store -> dictionary -> FeatureSpace -> report."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from features.errors import UserError
from features.files import read_json, write_json
from features.modality import CROSS_MODAL
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
    Out,
    Pairs,
    Patience,
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

if TYPE_CHECKING:
    from features.space.space import FeatureSpace
    from features.store.store import ActivationStore

JUDGES = {"embedded": "embedded-ssl", "embedded-ssl": "embedded"}
"""The default judge of each embedded encoder's features."""
RUN_SETTINGS = "run.json"


def run(
    pairs: Pairs,
    out: Out,
    encoder: EncoderId = "embedded",
    dictionary: Kind = None,
    judge: Annotated[
        str | None,
        typer.Option(
            help="Encoder that judges monosemanticity, or timm:NAME+text:ID, an image model and a "
            "text model [default: the other embedded one, else the encoder itself]."
        ),
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(
            help="Take the dictionary of this FeatureSpace (folder, hub id or embedded) instead of "
            "fitting one."
        ),
    ] = None,
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
    vocabulary: Vocabulary = None,
    device: Device = "auto",
    batch_size: BatchSize = 256,
    workers: Workers = None,
    strict: Strict = False,
    seed: Seed = 0,
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
) -> None:
    """All of it: extract, fit, score and report. Run it again to go on after an interruption."""
    from features.dictionary import (
        DICTIONARIES,
        fit_dictionary,
        load_dictionary,
        resolve_dictionary,
    )
    from features.dictionary.history import require_tracker
    from features.distributed import from_main_process
    from features.encoders.fingerprint import same_encoder
    from features.encoders.load import load_encoder
    from features.pairs.open import open_pairs
    from features.reports.report import write_report
    from features.scores.terms import read_vocabulary
    from features.space.score import score as score_features
    from features.space.space import FeatureSpace, require_replaceable
    from features.store.extract import extract as extract_pairs

    is_kind = dictionary is None or dictionary in DICTIONARIES
    folder = dictionary if not is_kind and Path(str(dictionary)).is_dir() else None
    training = {
        "kind": None if folder else dictionary,
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
    config = train_config(seed, training)
    fixed = f"--space {space}" if space is not None else f"--dictionary {folder}"
    if (space or folder) and any(value is not None for value in training.values()):
        raise UserError(
            f"{fixed}: brings its own dictionary; leave out --dictionary, --features, --k, "
            "--modality-bias and how to train"
        )
    require_tracker(tracker)
    require_replaceable(out / "space")
    source = open_pairs(pairs, image_column=image_column, caption_column=caption_column)
    model = load_encoder(encoder, device=device)
    fitted = None
    if space is not None:
        fitted = FeatureSpace.load(space, device="cpu").dictionary
    elif folder:
        fitted = load_dictionary(folder)
    else:
        resolve_dictionary(config, model.dim)
    made_for = fitted.config.encoder_fingerprint if fitted else ""
    if fitted and made_for and not same_encoder(made_for, model.fingerprint):
        raise UserError(
            f"{fixed}: made for the encoder {fitted.config.encoder}, not for {encoder}; "
            "give that encoder or another dictionary"
        )
    if fitted and fitted.config.dim != model.dim:
        raise UserError(
            f"{fixed}: for embeddings of {fitted.config.dim} dimensions, {encoder} makes "
            f"{model.dim}; give the encoder that it was fitted on, or another dictionary"
        )
    terms = None if vocabulary is None else read_vocabulary(vocabulary)
    judge = judge or JUDGES.get(encoder, encoder)
    judge_model = model if judge == encoder else load_encoder(judge, device=device)
    settings = {
        "schema": 1,
        "pairs": source.fingerprint(),
        "encoder": model.fingerprint,
        "judge": judge_model.fingerprint,
        "dictionary": fitted.fingerprint() if fitted else dataclasses.asdict(config),
        "vocabulary": None if terms is None else _sha256("\n".join(terms)),
        "seed": seed,
    }
    scored_before = _scored_before(out, settings)
    store = extract_pairs(
        source, model, out / "store", batch_size=batch_size, workers=workers, strict=strict
    )
    require_pairs(store)
    judge_store = None
    if judge_model is not model:
        judge_store = extract_pairs(
            source, judge_model, out / "judge-store", batch_size=batch_size, workers=workers
        )
    if fitted is None:
        fitted = fit_dictionary(store, config, out / "dictionary", device=device, tracker=tracker)
    if scored_before is not None and scored_before.config.store_fingerprint == store.fingerprint:
        typer.echo("Finished before with these settings: nothing is computed again.")
        scored = scored_before
    else:
        scored = score_features(
            store, fitted, judge_store, source, terms=terms, seed=seed, device=str(model.device)
        )

    def finish() -> None:
        if scored is not scored_before:
            scored.save(out / "space")
            write_json(out / RUN_SETTINGS, settings)
        parts = (scored.config, scored.dictionary, scored.features, scored.exemplars)
        write_report(FeatureSpace(*parts, encoder=model), out / "report.html")
        _summarise(scored, store, out)

    from_main_process(finish)


def _scored_before(out: Path, settings: dict[str, Any]) -> FeatureSpace | None:
    """The FeatureSpace that an earlier run with these settings left in `out`; None where it left
    none.

    Raises:
        UserError: the earlier run had other settings.
    """
    from features.space.space import SCHEMA, FeatureSpace

    if not (out / RUN_SETTINGS).is_file():
        if out.is_dir() and any(out.iterdir()):
            typer.echo(f"Going on with what {out} holds.")
        return None
    earlier = read_json(out / RUN_SETTINGS)
    changed = [name for name, value in settings.items() if earlier.get(name) != value]
    if changed:
        raise UserError(
            f"{out}: holds a run with other settings ({', '.join(changed)}); name another folder "
            "or remove this one"
        )
    if not (out / "space" / "config.json").is_file():
        typer.echo(f"Going on with what {out} holds.")
        return None
    saved = read_json(out / "space" / "config.json")
    if saved.get("schema") != SCHEMA:
        typer.echo(f"{out / 'space'} was scored by another version: it is scored again.")
        return None
    return FeatureSpace.load(out / "space", device="cpu")


def _sha256(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def _summarise(space: FeatureSpace, store: ActivationStore, out: Path) -> None:
    """Print the class counts and where things lie."""
    from rich.console import Console
    from rich.table import Table

    from features.space.advice import few_pairs

    relative, fixed = space.config.classes["relative"], space.config.classes["fixed"]
    table = Table(title=f"{len(space)} features of {space.config.encoder}")
    for heading in ("class", "relative bounds", "fixed bounds"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for name, count in relative["counts"].items():
        table.add_row(name, str(count), str(fixed["counts"][name]))
        if name == CROSS_MODAL:
            table.add_row("  shared", str(relative["shared"]), str(fixed["shared"]))
            balanced = (str(rule["counts"][name] - rule["shared"]) for rule in (relative, fixed))
            table.add_row("  balanced, not shared", *balanced)
    console = Console()
    console.print(table)
    independent = "" if space.config.judge_independent else " (not independent)"
    console.print(
        f"{len(store)} pairs, {quality(space.config.dictionary['held_out'])}, "
        f"judge {space.config.judge}{independent}"
    )
    report_skipped(store)
    if advice := few_pairs(space):
        typer.echo(advice)
    typer.echo(f"FeatureSpace: {out / 'space'}")
    typer.echo(f"report: {out / 'report.html'}")
