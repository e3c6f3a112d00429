"""The `mms` command: pairs -> store -> dictionary -> FeatureSpace -> report.

Heavy libraries are imported inside the commands, so that `mms --help` stays fast.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from features.errors import UserError
from features.files import write_json
from mms_apps.attributes.cli import attributes
from mms_apps.robustness.cli import robustness
from mms_apps.steering.cli import steer, train_generator

if TYPE_CHECKING:
    from features.dictionary import TrainConfig
    from features.space.space import FeatureSpace
    from features.store.store import ActivationStore

# Threads that wait for work sleep: spinning starves what else runs on the machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(
    name="mms",
    help="Which features of a CLIP-like model are driven by images, which by text, which by both.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

KINDS = ("identity", "topk", "batchtopk", "matryoshka", "group", "ncl")
JUDGES = {"embedded": "embedded-ssl", "embedded-ssl": "embedded"}
"""The default judge of each embedded encoder's features."""
RUN_SETTINGS = "run.json"
INTERRUPTED = 130

Pairs = Annotated[
    str,
    typer.Option(
        help="Folder with metadata.jsonl, .csv, .tsv, .parquet, .tar files or URLs, or embedded."
    ),
]
EncoderId = Annotated[
    str,
    typer.Option(
        help="architecture/tag, hf-hub:org/name, local-dir:path, embedded or embedded-ssl; "
        "for a judge's store also timm:NAME+text:ID."
    ),
]
Out = Annotated[Path, typer.Option(help="Folder for the results.")]
Kind = Annotated[
    str | None,
    typer.Option("--dictionary", help=f"One of {', '.join(KINDS)} [default: topk]."),
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
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
BatchSize = Annotated[int, typer.Option(min=1, help="Pairs encoded at once.")]
Workers = Annotated[
    int | None, typer.Option(min=0, help="Decoding processes [default: by the cores].")
]
Strict = Annotated[bool, typer.Option(help="Stop at the first pair that cannot be read.")]
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
Seed = Annotated[int, typer.Option(help="Seed of the dictionary and of the intervals.")]


@app.command()
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
    vocabulary: Vocabulary = None,
    device: Device = "auto",
    batch_size: BatchSize = 256,
    workers: Workers = None,
    strict: Strict = False,
    seed: Seed = 0,
) -> None:
    """All of it: extract, fit, score and report. Run it again to go on after an interruption."""
    from features.dictionary import fit_dictionary
    from features.distributed import from_main_process
    from features.encoders.load import load_encoder
    from features.pairs.open import open_pairs
    from features.reports.report import write_report
    from features.scores.naming import read_vocabulary
    from features.space.score import score as score_features
    from features.space.space import FeatureSpace
    from features.store.extract import extract as extract_pairs

    config = _train_config(dictionary, features, k, modality_bias, seed)
    source = open_pairs(pairs)
    model = load_encoder(encoder, device=device)
    fitted = None
    if space is not None:
        if (dictionary, features, k, modality_bias) != (None, None, None, None):
            raise UserError(
                "--space brings its own dictionary; leave out --dictionary, --features, --k and "
                "--modality-bias"
            )
        fitted = FeatureSpace.load(space, device="cpu").dictionary
    if fitted is not None and fitted.config.encoder_fingerprint != model.fingerprint:
        raise UserError(
            f"--space {space}: made for the encoder {fitted.config.encoder}, not for {encoder}; "
            "give that encoder or leave --space out"
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
    _require_pairs(store)
    judge_store = None
    if judge_model is not model:
        judge_store = extract_pairs(
            source, judge_model, out / "judge-store", batch_size=batch_size, workers=workers
        )
    if fitted is None:
        fitted = fit_dictionary(store, config, out / "dictionary", device=device)
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
        write_report(scored, out / "report.html")
        _summarise(scored, store, out)

    from_main_process(finish)


@app.command()
def extract(
    pairs: Pairs,
    out: Out,
    encoder: EncoderId = "embedded",
    device: Device = "auto",
    batch_size: BatchSize = 256,
    workers: Workers = None,
    strict: Strict = False,
) -> None:
    """Encode pairs into an activation store."""
    from features.encoders.load import load_encoder
    from features.pairs.open import open_pairs
    from features.store.extract import extract as extract_pairs

    source = open_pairs(pairs)
    model = load_encoder(encoder, device=device)
    store = extract_pairs(source, model, out, batch_size=batch_size, workers=workers, strict=strict)
    typer.echo(f"{len(store)} pairs of {store.dim} dimensions -> {out}")
    _report_skipped(store)


@app.command()
def fit(
    store: Annotated[Path, typer.Option(help="Activation store to fit on.")],
    out: Out,
    dictionary: Kind = None,
    features: FeatureCount = None,
    k: ActiveCount = None,
    modality_bias: ModalityBias = None,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Fit a dictionary on an activation store."""
    from features.dictionary import fit_dictionary
    from features.store.store import ActivationStore

    config = _train_config(dictionary, features, k, modality_bias, seed)
    opened = ActivationStore.open(store)
    _require_pairs(opened)
    fitted = fit_dictionary(opened, config, out, device=device)
    typer.echo(f"{fitted.config.features} features, {_quality(fitted.config.held_out)} -> {out}")


@app.command()
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
    device: Device = "cpu",
    seed: Seed = 0,
) -> None:
    """Score, name and illustrate a dictionary's features; write the FeatureSpace."""
    from features.dictionary import load_dictionary
    from features.distributed import from_main_process
    from features.pairs.open import open_pairs
    from features.scores.naming import read_vocabulary
    from features.space.score import score as score_features
    from features.store.store import ActivationStore

    opened = ActivationStore.open(store)
    judge = None if judge_store is None else ActivationStore.open(judge_store)
    source = None if pairs is None else open_pairs(pairs)
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


@app.command()
def report(
    space: Annotated[str, typer.Argument(help="Folder or hub id of a FeatureSpace, or embedded.")],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")],
) -> None:
    """Write a FeatureSpace's report, one HTML file."""
    from features.reports.report import write_report
    from features.space.space import FeatureSpace

    write_report(FeatureSpace.load(space, device="cpu"), out)
    typer.echo(f"report -> {out}")


@app.command()
def compare(
    spaces: Annotated[
        list[str], typer.Argument(help="Folders or hub ids of FeatureSpaces, or embedded.")
    ],
    out: Out,
    pairs: Annotated[
        str | None,
        typer.Option(help="Pairs on which to match features, as `run` takes them [default: none]."),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="What a space is called, once each [default: encoder and dictionary]."),
    ] = None,
    encoder: Encoders = None,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Compare FeatureSpaces with the first of them: a table, histograms, matched features."""
    from features.analysis.compare import compare as compare_spaces
    from features.analysis.matching import match_features
    from features.reports.comparison import write_comparison

    if len(spaces) < 2:
        raise UserError(f"{len(spaces)} space given; a comparison needs at least two")
    if label and len(label) != len(spaces):
        raise UserError(f"{len(label)} labels for {len(spaces)} spaces; give one each, or none")
    loaded = _load_spaces(spaces, encoder, device)
    labels = label or _labels(spaces, loaded)
    matchings = []
    if pairs is not None:
        stores = [_store_for(space, pairs, out) for space in loaded]
        matchings = [
            match_features(loaded[0], stores[0], space, store, seed=seed)
            for space, store in zip(loaded[1:], stores[1:], strict=True)
        ]
    comparison = compare_spaces(loaded, labels, matchings, seed=seed)
    page = write_comparison(comparison, loaded, out)
    for sentences in comparison.differences:
        for sentence in sentences:
            typer.echo(sentence)
    typer.echo(f"comparison: {page}")


@app.command()
def drift(
    old: Annotated[str, typer.Argument(help="FeatureSpace from before the update.")],
    new: Annotated[str, typer.Argument(help="FeatureSpace from after it.")],
    out: Annotated[Path, typer.Option(help="Folder for drift.json.")],
    pairs: Annotated[
        str | None,
        typer.Option(
            help="Pairs on which to match features, as `run` takes them; needed where the encoder "
            "or the dictionary changed."
        ),
    ] = None,
    threshold: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Exit with 1 if more than this share is gone, moved or lost."
        ),
    ] = 0.1,
    encoder: Encoders = None,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """What changed in the features when a model or the data were updated."""
    from features.analysis.drift import find_drift, same_dictionary
    from features.analysis.matching import match_features

    before, after = _load_spaces([old, new], encoder, device)
    matching = None
    if pairs is not None and not same_dictionary(before, after):
        stores = [_store_for(space, pairs, out) for space in (before, after)]
        matching = match_features(before, stores[0], after, stores[1], seed=seed)
    found = find_drift(before, after, matching)
    out.mkdir(parents=True, exist_ok=True)
    record = found.record() | {"threshold": threshold, "exceeded": found.share > threshold}
    write_json(out / "drift.json", record)
    for change in found.changes:
        number = change.old if change.old is not None else change.new
        typer.echo(f"{change.kind}: {number} {change.name}: {change.what}")
    counts = ", ".join(f"{count} {kind}" for kind, count in found.counts.items())
    typer.echo(
        f"{found.share:.1%} of {found.old_scored} features are gone, moved or lost "
        f"({counts}; compared by {found.compared_by}) -> {out / 'drift.json'}"
    )
    if found.judges_differ:
        typer.echo("The judges differ, so monosemanticity was not compared.", err=True)
    if found.share > threshold:
        typer.echo(f"That is more than the threshold of {threshold:.1%}.", err=True)
        raise typer.Exit(1)


@app.command()
def concepts(
    space: Annotated[str, typer.Option(help="Folder or hub id of a FeatureSpace, or embedded.")],
    pairs: Pairs,
    out: Out,
    concepts: Annotated[
        Path | None,
        typer.Option(help="File of concepts, one a line: words, tags or `attribute: value`."),
    ] = None,
    attribute: Annotated[
        list[str] | None,
        typer.Option(help="Attribute of the pairs; each of its values is a concept."),
    ] = None,
    encoder: Encoders = None,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Which modality supports each concept, and where better data would help most."""
    from features.analysis.concepts import attribute_concepts, concept_support
    from features.reports.concepts import write_concepts
    from features.scores.naming import read_vocabulary

    if concepts is None and not attribute:
        raise UserError("name concepts: --concepts FILE, --attribute NAME, or both")
    wanted = [] if concepts is None else read_vocabulary(concepts)
    [loaded] = _load_spaces([space], encoder, device)
    store = _store_for(loaded, pairs, out)
    _require_pairs(store)
    for name in attribute or []:
        wanted += attribute_concepts(store, name)
    found = concept_support(loaded, store, list(dict.fromkeys(wanted)), seed=seed)
    page = write_concepts(found, loaded, out)
    for concept in found:
        typer.echo(f"{concept.name}: {concept.verdict}. {concept.advice}")
    typer.echo(f"concepts: {page}")


@app.command("train-encoder")
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


app.command()(robustness)
app.command()(steer)
app.command("train-generator")(train_generator)
app.add_typer(attributes)


def _scored_before(out: Path, settings: dict[str, Any]) -> FeatureSpace | None:
    """The FeatureSpace that an earlier run with these settings left in `out`; None where it left
    none.

    Raises:
        UserError: the earlier run had other settings.
    """
    from features.space.space import FeatureSpace

    if not (out / RUN_SETTINGS).is_file():
        if out.is_dir() and any(out.iterdir()):
            typer.echo(f"Going on with what {out} holds.")
        return None
    earlier = json.loads((out / RUN_SETTINGS).read_text(encoding="utf-8"))
    changed = [name for name, value in settings.items() if earlier.get(name) != value]
    if changed:
        raise UserError(
            f"{out}: holds a run with other settings ({', '.join(changed)}); name another folder "
            "or remove this one"
        )
    if not (out / "space" / "config.json").is_file():
        typer.echo(f"Going on with what {out} holds.")
        return None
    return FeatureSpace.load(out / "space", device="cpu")


def _load_spaces(names: list[str], encoders: list[str] | None, device: str) -> list[FeatureSpace]:
    """FeatureSpaces, each with the one of the encoders that it belongs to.

    Raises:
        UserError: a space or an encoder cannot be loaded, or an encoder belongs to no space.
    """
    from features.encoders.load import load_encoder
    from features.space.space import FeatureSpace

    models = {name: load_encoder(name, device=device) for name in encoders or []}
    spaces = []
    used = set()
    for name in names:
        space = FeatureSpace.load(name, device=device)
        for encoder, model in models.items():
            if model.fingerprint == space.config.encoder_fingerprint:
                space = FeatureSpace.load(name, device=device, encoder=model)
                used.add(encoder)
        spaces.append(space)
    for encoder in models.keys() - used:
        raise UserError(f"--encoder {encoder}: none of the spaces belongs to it")
    return spaces


def _store_for(space: FeatureSpace, pairs: str, out: Path) -> ActivationStore:
    """The pairs encoded by a space's encoder, one store an encoder, in `out`."""
    from features.pairs.open import open_pairs
    from features.store.extract import extract as extract_pairs

    folder = out / f"store-{space.config.encoder_fingerprint[:12]}"
    return extract_pairs(open_pairs(pairs), space.encoder, folder)


def _labels(names: list[str], spaces: list[FeatureSpace]) -> list[str]:
    """What spaces are called: encoder and dictionary, or where that doesn't tell them apart, as
    the user wrote them."""
    labels = [f"{space.config.encoder}, {space.config.dictionary['kind']}" for space in spaces]
    return labels if len(set(labels)) == len(labels) else names


def _train_config(
    kind: str | None, features: int | None, k: int | None, modality_bias: bool | None, seed: int
) -> TrainConfig:
    """The dictionary's settings, with the defaults for what was not given."""
    from features.dictionary import TrainConfig

    return TrainConfig(
        kind=kind or TrainConfig.kind,
        features=features,
        k=TrainConfig.k if k is None else k,
        modality_bias=modality_bias,
        seed=seed,
    )


def _sha256(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def _require_pairs(store: ActivationStore) -> None:
    """Raise a UserError for a store without pairs."""
    if len(store) == 0:
        raise UserError(
            f"{store.path}: none of the {store.config.skipped} records could be read; see "
            "skipped.jsonl there for the reasons"
        )


def _report_skipped(store: ActivationStore) -> None:
    config = store.config
    if config.skipped:
        reasons = ", ".join(f"{reason} ({n})" for reason, n in config.skipped_reasons.items())
        path = store.path / "skipped.jsonl"
        typer.echo(f"{config.skipped} pairs skipped: {reasons}; listed in {path}", err=True)


def _quality(held_out: dict[str, dict[str, float | None]] | None) -> str:
    figures = (held_out or {}).get("overall", {})
    fvu, l0 = figures.get("fvu"), figures.get("l0")
    return "-" if fvu is None or l0 is None else f"held-out FVU {fvu:.3f}, L0 {l0:.1f}"


def _summarise(space: FeatureSpace, store: ActivationStore, out: Path) -> None:
    """Print the class counts and where things lie."""
    from rich.console import Console
    from rich.table import Table

    relative, fixed = space.config.classes["relative"], space.config.classes["fixed"]
    table = Table(title=f"{len(space)} features of {space.config.encoder}")
    for heading in ("class", "relative bounds", "fixed bounds"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for name, count in relative["counts"].items():
        table.add_row(name, str(count), str(fixed["counts"][name]))
    console = Console()
    console.print(table)
    independent = "" if space.config.judge_independent else " (not independent)"
    console.print(
        f"{len(store)} pairs, {_quality(space.config.dictionary['held_out'])}, "
        f"judge {space.config.judge}{independent}"
    )
    _report_skipped(store)
    typer.echo(f"FeatureSpace: {out / 'space'}")
    typer.echo(f"report: {out / 'report.html'}")


def main() -> None:
    """Run the command line; a user's mistake is one line and exit code 2."""
    try:
        app()
    except UserError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        if error.filename is None:
            raise
        typer.echo(f"Error: {error.filename}: {error.strerror}", err=True)
        sys.exit(2)
    except SystemExit as stopped:  # typer turns a KeyboardInterrupt into this exit code
        if stopped.code == INTERRUPTED:
            typer.echo("Interrupted; run the same command again to go on.", err=True)
        raise


if __name__ == "__main__":
    main()
