"""`mms attributes`: predict, audit and de-bias attributes over a FeatureSpace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mms_apps.cli.attribute_inputs import (
    Columns,
    edited,
    explain_some,
    fitted_among,
    load_or_fit,
    load_space,
    not_fitted_on,
    open_store,
    read_method,
    read_modality,
    read_prompts,
    say_if_unknown,
    without,
)
from mms_apps.cli.options import MOST_SEED, CaptionColumn, Device, ImageColumn, MovedEncoder, Out

attributes = typer.Typer(
    name="attributes",
    help="Predict attributes, explain and audit the predictions, take biases out.",
    no_args_is_help=True,
)

Space = Annotated[str, typer.Option(help="Folder or hub id of a FeatureSpace, or embedded.")]
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
    Path | None,
    typer.Option("--edit", help="Edit that `debias` left in OUT/edit, or `correct` in OUT/edits."),
]
Modality = Annotated[str, typer.Option(help="image or text.")]
MaxFeatures = Annotated[int, typer.Option(min=1, help="Features of a sparse probe at most.")]
Seed = Annotated[
    int,
    typer.Option(min=0, max=MOST_SEED, help="Seed of folds, random features and intervals."),
]


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
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
    explain: Annotated[int, typer.Option(min=0, help="Predictions to explain on the page.")] = 12,
    encoder: MovedEncoder = None,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Predict an attribute of all pairs; explain some of the predictions on a page."""
    import dataclasses

    from features.files import write_json
    from mms_apps.attributes.predict import write_predictions
    from mms_apps.attributes.report import write_predictions_report

    loaded = load_space(space, encoder, device)
    columns = Columns(image_column, caption_column)
    used = load_or_fit(
        loaded, out, model, attribute, method, train, pairs, columns, value, prompts, modality,
        max_features, seed,
    )  # fmt: skip
    behind, taken = edited(used, edit)
    source, store = open_store(loaded, pairs, out / "store", columns, used.config.modality)
    summary = write_predictions(behind, store, out / "predictions.csv", edit=taken)
    if summary.labelled:
        say_if_unknown(train, used)
        fitted = fitted_among(store.path, out / "train-store" if train else None, used)
        summary = dataclasses.replace(summary, fitted_on=fitted)
    used.save(out / "model")
    write_json(out / "summary.json", dataclasses.asdict(summary))
    shown = explain_some(behind, source, store, taken, explain)
    page = write_predictions_report(used.config, summary, shown, loaded, out / "predictions.html")
    counts = ", ".join(f"{count} {name}" for name, count in summary.predicted.items())
    typer.echo(f"{summary.pairs} predictions: {counts} -> {out / 'predictions.csv'}")
    if summary.labelled:
        right = summary.correct / summary.labelled
        known = f"; the model was fitted on {summary.fitted_on} of them" * (summary.fitted_on > 0)
        typer.echo(f"{right:.1%} of {summary.labelled} labelled pairs are right{known}")
    typer.echo(f"report: {page}")


@attributes.command()
def audit(
    pairs: Pairs,
    attribute: Attribute,
    group: Annotated[
        list[str],
        typer.Option(
            help="Attribute of the pairs whose values are groups; given again, the groups are the "
            "combinations of the values."
        ),
    ],
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
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
    encoder: MovedEncoder = None,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Audit a model by group: gaps, rates, leakage, modality classes, leanings."""
    from features.extras import require

    require("attributes")
    from mms_apps.attributes.audit import audit as audit_model
    from mms_apps.attributes.audit import require_groups, require_other_groups
    from mms_apps.attributes.labels import read_samples
    from mms_apps.attributes.report import summary_of, write_audit_report
    from mms_apps.attributes.tables import write_audit_tables

    require_other_groups(attribute, group)
    loaded = load_space(space, encoder, device)
    columns = Columns(image_column, caption_column)
    used = load_or_fit(
        loaded, out, model, attribute, method, train, pairs, columns, value, prompts, modality,
        max_features, seed,
    )  # fmt: skip
    behind, taken = edited(used, edit)
    names = [used.config.attribute, *group, *([role] if role else [])]
    _, store = open_store(loaded, pairs, out / "store", columns, used.config.modality, names)
    samples = read_samples(store, names, used.config.modality, seed=seed)
    say_if_unknown(train, used)
    samples = not_fitted_on(samples, out / "train-store" if train else None, used)
    require_groups(samples, group)
    found = audit_model(
        behind, samples, group, role=role, unspecified=unspecified, edit=taken, seed=seed
    )
    write_audit_tables(found, out)
    used.save(out / "model")
    page = write_audit_report(found, used.config, out / "audit.html")
    typer.echo(summary_of(found))
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
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
    encoder: MovedEncoder = None,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Take a factor out by features, and compare with six other methods on the same splits."""
    from features.extras import require

    require("attributes")
    from mms_apps.attributes.debias.debiasing import debias as debias_model
    from mms_apps.attributes.debias.debiasing import require_three
    from mms_apps.attributes.debias.files import save_edit
    from mms_apps.attributes.labels import classes_of, read_samples
    from mms_apps.attributes.report import against_chance, write_debias_report
    from mms_apps.attributes.tables import write_debias_tables

    require_three(attribute, factor, unrelated)
    loaded = load_space(space, encoder, device)
    kind = read_modality(modality)
    columns = Columns(image_column, caption_column)
    names = [attribute, factor, unrelated]
    _, train_store = open_store(loaded, train, out / "train-store", columns, kind, names)
    _, test_store = open_store(loaded, pairs, out / "store", columns, kind, names)
    samples, test = (read_samples(s, names, kind, seed=seed) for s in (train_store, test_store))
    found = debias_model(
        loaded,
        samples,
        without(test, samples),
        attribute,
        classes_of(samples, attribute, value),
        factor,
        classes_of(samples, factor, factor_value),
        unrelated,
        classes_of(samples, unrelated),
        read_method(method),
        modality=kind,
        prompts=read_prompts(prompts),
        max_features=max_features,
        seed=seed,
    )
    write_debias_tables(found, out)
    save_edit(found.choice, found.edit, found.model, out / "edit")
    found.model.save(out / "model")
    page = write_debias_report(
        found.methods, found.choice, found.model.config, factor, unrelated, loaded,
        out / "debias.html",
    )  # fmt: skip
    for row in found.methods:
        typer.echo(
            f"{row.method}: accuracy {row.accuracy.value:.1%}, worst group "
            f"{row.worst_group.value:.1%}, gap {against_chance(row.gap)}"
            f"{'; ' + row.setting if row.setting else ''}"
        )
    typer.echo(f"report: {page}")


@attributes.command()
def correct(
    pairs: Annotated[
        str, typer.Option(help="Labelled pairs, not among TRAIN: halved, to find and to check.")
    ],
    attribute: Attribute,
    out: Out,
    held_out: Annotated[
        str | None, typer.Option(help="Other labelled pairs, for a further check.")
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            help="Attribute of the pairs whose values are groups to protect [default: the label]."
        ),
    ] = None,
    space: Space = "embedded",
    method: Method = "sparse_probe",
    train: Train = None,
    value: Values = None,
    prompts: Prompts = None,
    model: ModelFolder = None,
    modality: Modality = "image",
    max_features: MaxFeatures = 20,
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
    encoder: MovedEncoder = None,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Group wrong predictions by what made them wrong; propose edits, and check them elsewhere."""
    import dataclasses

    from mms_apps.attributes.correction.correcting import correct as correct_model
    from mms_apps.attributes.correction.files import MadeFrom, save_accepted
    from mms_apps.attributes.correction.report import mistakes_of, write_correction_report
    from mms_apps.attributes.labels import read_samples
    from mms_apps.attributes.tables import write_correction_tables

    loaded = load_space(space, encoder, device)
    columns = Columns(image_column, caption_column)
    used = load_or_fit(
        loaded, out, model, attribute, method, train, pairs, columns, value, prompts, modality,
        max_features, seed,
    )  # fmt: skip
    kind = used.config.modality
    names = [attribute, *([group] if group else [])]
    fitted_on = out / "train-store" if train else None
    source, store = open_store(loaded, pairs, out / "store", columns, kind, names)
    say_if_unknown(train, used)
    samples = not_fitted_on(read_samples(store, names, kind, seed=seed), fitted_on, used)
    made_from, checked = MadeFrom(store.config.pairs, store.config.pairs_fingerprint), None
    if held_out is not None:
        _, other = open_store(loaded, held_out, out / "held-out-store", columns, kind, names)
        checked = not_fitted_on(read_samples(other, names, kind, seed=seed), fitted_on, used)
        checked = without(checked, samples, "they are among --pairs", "--held-out")
        made_from = dataclasses.replace(
            made_from,
            held_out=other.config.pairs,
            held_out_fingerprint=other.config.pairs_fingerprint,
        )
    found = correct_model(used, samples, checked, group=group, seed=seed)
    edits = save_accepted(found, made_from, out)
    used.save(out / "model")
    write_correction_tables(found, edits, out)
    shown = [mistakes_of(found, one, source, store) for one in found.groups]
    page = write_correction_report(found, shown, edits, out / "correction.html")
    typer.echo(f"{found.wrong} of {len(found.half)} predictions on the half searched are wrong")
    if not found.groups:
        typer.echo("no feature made enough of them wrong to propose an edit")
    for place, (one, edit) in enumerate(zip(found.groups, edits, strict=True), start=1):
        name = loaded.features["name"][one.mistakes.feature].as_py()
        typer.echo(f"{place}: {one.mistakes.size} by feature {one.mistakes.feature} ({name})")
        if one.proposal is not None:
            typer.echo(f"   {one.proposal.in_words()}")
        advice = f"accept -> {out / edit}" if edit else "advised against"
        typer.echo(f"   {advice}: {one.advice.why}")
    typer.echo(f"report: {page}")
