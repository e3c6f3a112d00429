"""`mms attributes`: predict, audit and de-bias attributes over a FeatureSpace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from features.errors import UserError

if TYPE_CHECKING:
    from features.modality import Modality as ModalityName
    from features.pairs.base import PairSource
    from features.space.space import FeatureSpace
    from features.store.store import ActivationStore
    from mms_apps.attributes.edits import Edit
    from mms_apps.attributes.explain import Explanation
    from mms_apps.attributes.labels import Samples
    from mms_apps.attributes.model import AttributeModel
    from mms_apps.attributes.model import Method as MethodName
    from mms_apps.attributes.report import Explained

attributes = typer.Typer(
    name="attributes",
    help="Predict attributes, explain and audit the predictions, take biases out.",
    no_args_is_help=True,
)

Space = Annotated[str, typer.Option(help="Folder or hub id of a FeatureSpace, or embedded.")]
EncoderId = Annotated[
    str | None,
    typer.Option("--encoder", help="The space's encoder, where its folder has moved."),
]
Pairs = Annotated[
    str, typer.Option(help="What to work on: a folder, a table, .tar files, or embedded:heldout.")
]
Train = Annotated[
    str | None, typer.Option(help="Labelled pairs to fit a probe on, such as embedded:train.")
]
Attribute = Annotated[str, typer.Option(help="Attribute of the pairs to predict.")]
Values = Annotated[
    list[str] | None,
    typer.Option("--value", help="Value to tell apart, once for each [default: all that occur]."),
]
Method = Annotated[str, typer.Option(help="zero_shot, linear_probe or sparse_probe.")]
Prompts = Annotated[
    Path | None,
    typer.Option(help='JSON of zero-shot prompts by value: {"man": ["a picture of a man"], ...}.'),
]
ModelFolder = Annotated[
    Path | None, typer.Option("--model", help="Model that an earlier run left in OUT/model.")
]
EditFolder = Annotated[
    Path | None, typer.Option("--edit", help="Edit that `debias` left in OUT/edit.")
]
Modality = Annotated[str, typer.Option(help="image or text.")]
MaxFeatures = Annotated[int, typer.Option(min=1, help="Features of a sparse probe at most.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
Seed = Annotated[int, typer.Option(help="Seed of folds, random features and intervals.")]
Out = Annotated[Path, typer.Option(help="Folder for the results.")]


@attributes.command()
def predict(
    pairs: Pairs,
    attribute: Attribute,
    out: Out,
    space: Space = "embedded",
    method: Method = "sparse_probe",
    train: Train = None,
    value: Values = None,
    prompts: Prompts = None,
    model: ModelFolder = None,
    edit: EditFolder = None,
    modality: Modality = "image",
    max_features: MaxFeatures = 20,
    explain: Annotated[int, typer.Option(min=0, help="Predictions to explain on the page.")] = 12,
    encoder: EncoderId = None,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Predict an attribute of all pairs; explain some of the predictions on a page."""
    import dataclasses

    from features.files import write_json
    from mms_apps.attributes.predict import write_predictions
    from mms_apps.attributes.report import write_predictions_report

    loaded = _space(space, encoder, device)
    used = _model(
        loaded, out, model, attribute, method, train, pairs, value, prompts, modality,
        max_features, seed,
    )  # fmt: skip
    source, store = _store(loaded, pairs, out / "store")
    taken = _edit(loaded, edit, used.config.modality)
    summary = write_predictions(used, store, out / "predictions.csv", edit=taken)
    used.save(out / "model")
    write_json(out / "summary.json", dataclasses.asdict(summary))
    shown = _explained(used, source, store, taken, explain)
    page = write_predictions_report(used.config, summary, shown, loaded, out / "predictions.html")
    counts = ", ".join(f"{count} {name}" for name, count in summary.predicted.items())
    typer.echo(f"{summary.pairs} predictions: {counts} -> {out / 'predictions.csv'}")
    if summary.labelled:
        right = summary.correct / summary.labelled
        typer.echo(f"{right:.1%} of {summary.labelled} labelled pairs are right")
    typer.echo(f"report: {page}")


@attributes.command()
def audit(
    pairs: Pairs,
    attribute: Attribute,
    group: Annotated[str, typer.Option(help="Attribute of the pairs whose values are groups.")],
    out: Out,
    space: Space = "embedded",
    method: Method = "sparse_probe",
    train: Train = None,
    value: Values = None,
    prompts: Prompts = None,
    model: ModelFolder = None,
    edit: EditFolder = None,
    role: Annotated[
        str | None,
        typer.Option(help="Attribute by which to list how unspecified pairs are predicted."),
    ] = None,
    unspecified: Annotated[
        str, typer.Option(help="Value that unspecified pairs have as their attribute.")
    ] = "unspecified",
    modality: Modality = "image",
    max_features: MaxFeatures = 20,
    encoder: EncoderId = None,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Audit a model by group: gaps, rates, leakage, modality classes, leanings."""
    from mms_apps.attributes.audit import audit as audit_model
    from mms_apps.attributes.audit import require_groups
    from mms_apps.attributes.labels import read_samples
    from mms_apps.attributes.report import write_audit_report
    from mms_apps.attributes.tables import write_audit_tables

    loaded = _space(space, encoder, device)
    used = _model(
        loaded, out, model, attribute, method, train, pairs, value, prompts, modality,
        max_features, seed,
    )  # fmt: skip
    _, store = _store(loaded, pairs, out / "store")
    columns = [used.config.attribute, group, *([role] if role else [])]
    samples = read_samples(store, columns, used.config.modality, seed=seed)
    samples = _not_fitted_on(samples, out / "train-store" if train else None, used)
    require_groups(samples, group)
    taken = _edit(loaded, edit, used.config.modality)
    found = audit_model(
        used, samples, group, role=role, unspecified=unspecified, edit=taken, seed=seed
    )
    write_audit_tables(found, out)
    used.save(out / "model")
    page = write_audit_report(found, used.config, out / "audit.html")
    m = found.measures
    typer.echo(
        f"accuracy {m.accuracy.value:.1%}; worst group {m.worst_group or 'n/a'} "
        f"{m.worst_accuracy.value:.1%}; smallest group {m.smallest_group} "
        f"({m.smallest_samples} samples)"
    )
    typer.echo(f"report: {page}")


@attributes.command()
def debias(
    train: Annotated[str, typer.Option(help="Labelled pairs to fit a probe and choose on.")],
    pairs: Annotated[str, typer.Option(help="Labelled pairs to test on, not among TRAIN.")],
    attribute: Attribute,
    factor: Annotated[str, typer.Option(help="Attribute that the prediction should not rest on.")],
    unrelated: Annotated[
        str, typer.Option(help="Attribute whose prediction should stay as good as it is.")
    ],
    out: Out,
    space: Space = "embedded",
    method: Method = "linear_probe",
    value: Values = None,
    factor_value: Annotated[
        list[str] | None,
        typer.Option(help="Value of the factor, once for each [default: all that occur]."),
    ] = None,
    prompts: Prompts = None,
    modality: Modality = "image",
    max_features: MaxFeatures = 20,
    encoder: EncoderId = None,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Take the features of a factor out of the embeddings, and compare with baselines."""
    from mms_apps.attributes.debias import debias as debias_model
    from mms_apps.attributes.debias import save_edit
    from mms_apps.attributes.labels import classes_of, read_samples
    from mms_apps.attributes.report import write_debias_report
    from mms_apps.attributes.tables import write_debias_tables

    loaded = _space(space, encoder, device)
    kind = _modality(modality)
    _, train_store = _store(loaded, train, out / "train-store")
    _, test_store = _store(loaded, pairs, out / "store")
    columns = [attribute, factor, unrelated]
    samples, test = (read_samples(s, columns, kind, seed=seed) for s in (train_store, test_store))
    found = debias_model(
        loaded,
        samples,
        test,
        attribute,
        classes_of(samples, attribute, value),
        factor,
        classes_of(samples, factor, factor_value),
        unrelated,
        classes_of(samples, unrelated),
        _method(method),
        modality=kind,
        prompts=_prompts(prompts),
        max_features=max_features,
        seed=seed,
    )
    write_debias_tables(found, out)
    save_edit(found.choice, found.edit, out / "edit")
    found.model.save(out / "model")
    page = write_debias_report(
        found.methods, found.choice, found.model.config, factor, unrelated, loaded,
        out / "debias.html",
    )  # fmt: skip
    for row in found.methods:
        typer.echo(
            f"{row.method}: accuracy {row.accuracy.value:.1%}, worst group "
            f"{row.worst_group.value:.1%}, gap {row.gap.value:.1%} "
            f"({row.gap.low:.1%} to {row.gap.high:.1%})"
        )
    typer.echo(f"report: {page}")


def _space(space: str, encoder: str | None, device: str) -> FeatureSpace:
    from features.space.space import FeatureSpace

    return FeatureSpace.load(space, device=device, encoder=encoder)


def _store(space: FeatureSpace, pairs: str, folder: Path) -> tuple[PairSource, ActivationStore]:
    """The pairs, and their embeddings by the space's encoder.

    Raises:
        UserError: none of them could be read.
    """
    from features.pairs.open import open_pairs
    from features.store.extract import extract

    source = open_pairs(pairs)
    store = extract(source, space.encoder, folder)
    if store.config.skipped:
        typer.echo(
            f"{store.config.skipped} pairs skipped: see {folder / 'skipped.jsonl'}", err=True
        )
    if len(store) == 0:
        raise UserError(f"{pairs}: no pair could be read; see {folder / 'skipped.jsonl'}")
    return source, store


def _model(
    space: FeatureSpace,
    out: Path,
    folder: Path | None,
    attribute: str,
    method: str,
    train: str | None,
    pairs: str,
    values: list[str] | None,
    prompts: Path | None,
    modality: str,
    max_features: int,
    seed: int,
) -> AttributeModel:
    """The saved model, or a new one: a probe fitted on `train`, or zero-shot for the values that
    occur in `pairs`."""
    from mms_apps.attributes.labels import classes_of, read_samples
    from mms_apps.attributes.model import fit_model, load_model

    if folder is not None:
        if train is not None or prompts is not None or values:
            raise UserError("--model brings its own values; leave out --train, --prompts, --value")
        loaded = load_model(folder, space)
        if loaded.config.attribute != attribute:
            raise UserError(
                f"--attribute {attribute}: the model in {folder} predicts "
                f"{loaded.config.attribute}; give that, or another model"
            )
        return loaded
    chosen, kind, texts = _method(method), _modality(modality), _prompts(prompts)
    samples: Samples | None = None
    if chosen != "zero_shot":
        if train is None:
            raise UserError(f"--method {method}: needs --train, labelled pairs; or use zero_shot")
        _, store = _store(space, train, out / "train-store")
        samples = read_samples(store, [attribute], kind, seed=seed)
        classes = classes_of(samples, attribute, values)
    elif texts is not None:
        classes = values or list(texts)
    elif values and len(set(values)) >= 2:
        classes = values
    else:
        _, store = _store(space, pairs, out / "store")
        classes = classes_of(read_samples(store, [attribute], kind, seed=seed), attribute, values)
    return fit_model(
        space, samples, attribute, classes, chosen, modality=kind, prompts=texts,
        max_features=max_features, seed=seed,
    )  # fmt: skip


def _not_fitted_on(samples: Samples, train: Path | None, model: AttributeModel) -> Samples:
    """The samples without the labelled ones of the training store, on which the model would be
    better than it is."""
    import numpy as np

    from features.store.store import ActivationStore
    from mms_apps.attributes.labels import read_samples

    if train is None or model.config.samples == 0:
        return samples
    attribute = model.config.attribute
    fitted = read_samples(ActivationStore.open(train), [attribute], model.config.modality)
    ids = fitted.having(attribute, model.classes).ids.astype(str)
    seen = np.isin(samples.ids.astype(str), ids)
    if seen.any():
        typer.echo(f"{int(seen.sum())} pairs left out: the model was fitted on them", err=True)
    return samples.take(~seen)


def _method(name: str) -> MethodName:
    from mms_apps.attributes.model import METHODS

    for method in METHODS:
        if method == name:
            return method
    raise UserError(f"--method {name}: unknown; use {', '.join(METHODS)}")


def _modality(name: str) -> ModalityName:
    from features.modality import MODALITIES

    for modality in MODALITIES:
        if modality == name:
            return modality
    raise UserError(f"--modality {name}: unknown; use {' or '.join(MODALITIES)}")


def _prompts(path: Path | None) -> dict[str, list[str]] | None:
    """Prompts by value from a JSON file.

    Raises:
        UserError: it is no such JSON.
    """
    if path is None:
        return None
    advice = f'{path}: not prompts by value; write {{"man": ["a picture of a man"], ...}}'
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{advice} ({error})") from None
    if not isinstance(found, dict) or len(found) < 2:
        raise UserError(advice)
    for texts in found.values():
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
            raise UserError(advice)
    return found


def _edit(space: FeatureSpace, folder: Path | None, modality: ModalityName) -> Edit | None:
    from mms_apps.attributes.debias import load_edit

    return None if folder is None else load_edit(folder, space, modality)


def _explained(
    model: AttributeModel,
    source: PairSource,
    store: ActivationStore,
    edit: Edit | None,
    count: int,
) -> list[Explained]:
    """Explanations of `count` pairs, spread evenly over the store."""
    import numpy as np

    from features.modality import MODALITIES
    from features.store.store import ATTRIBUTE
    from mms_apps.attributes.explain import explain
    from mms_apps.attributes.report import Explained

    rows = np.unique(np.linspace(0, len(store) - 1, min(count, len(store)))).astype(int).tolist()
    if not rows:
        return []
    column = ATTRIBUTE + model.config.attribute
    names = next(store.sample_batches(1)).column_names
    wanted = ["id", "caption", "location", *([column] if column in names else [])]
    samples = store.sample_rows(rows, wanted).to_pylist()
    embeddings = store.rows(rows)[MODALITIES.index(model.config.modality)]
    found: list[Explanation] = explain(
        model, embeddings if edit is None else edit.apply(embeddings)
    )
    images = source.images([sample["location"] for sample in samples])
    return [
        Explained(
            sample["id"],
            sample["caption"],
            sample.get(column),
            images.get(sample["location"]),
            explanation,
        )
        for sample, explanation in zip(samples, found, strict=True)
    ]
