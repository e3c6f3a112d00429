"""`mms compare`, `mms drift` and `mms concepts`: FeatureSpaces side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from features.errors import UserError
from features.files import jsonable, write_json
from mms_apps.cli.common import require_pairs
from mms_apps.cli.options import CaptionColumn, Device, Encoders, ImageColumn, Out, Pairs, Seed

if TYPE_CHECKING:
    from features.pairs.base import PairSource
    from features.space.space import FeatureSpace
    from features.store.store import ActivationStore
    from mms_apps.attributes.correction.files import Accepted
    from mms_apps.attributes.correction.standing import Standing


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
        typer.Option(
            help="What a space is called, once each; spaces of one label are training seeds of one "
            "dictionary [default: encoder and dictionary]."
        ),
    ] = None,
    encoder: Encoders = None,
    device: Device = "auto",
    seed: Seed = 0,
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
) -> None:
    """Compare FeatureSpaces with the first of them: a table, histograms, matched features.

    Give three or more training seeds of each: the intervals then hold how trainings vary.
    """
    from features.analysis.compare import by_label
    from features.analysis.compare import compare as compare_spaces
    from features.analysis.matching import match_features
    from features.pairs.open import open_pairs
    from features.reports.comparison import write_comparison
    from features.space.several import load_spaces

    if len(spaces) < 2:
        raise UserError(f"{len(spaces)} space given; a comparison needs at least two")
    if label and len(label) != len(spaces):
        raise UserError(f"{len(label)} labels for {len(spaces)} spaces; give one each, or none")
    loaded = load_spaces(spaces, encoder, device)
    labels = label or _labels(spaces, loaded)
    firsts = [group[0] for group in by_label(loaded, labels).values()]
    matchings = []
    if pairs is not None:
        source = open_pairs(pairs, image_column=image_column, caption_column=caption_column)
        stores = [_store_for(space, source, out) for space in firsts]
        matchings = [
            match_features(firsts[0], stores[0], space, store, seed=seed)
            for space, store in zip(firsts[1:], stores[1:], strict=True)
        ]
    comparison = compare_spaces(loaded, labels, matchings, seed=seed)
    page = write_comparison(comparison, firsts, out)
    for sentences in comparison.differences:
        for sentence in sentences:
            typer.echo(sentence)
    typer.echo(f"comparison: {page}")


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
    edit: Annotated[
        list[Path] | None,
        typer.Option(
            help="Accepted edit of `attributes correct`, once each: exit with 1 if on PAIRS, which "
            "have its attribute as labels, it no longer does what it did."
        ),
    ] = None,
    threshold: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Exit with 1 if more than this share is gone, moved, lost or parted."
        ),
    ] = 0.1,
    encoder: Encoders = None,
    device: Device = "auto",
    seed: Seed = 0,
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
) -> None:
    """What changed in the features when a model or the data were updated."""
    from features.analysis.drift import find_drift, same_dictionary
    from features.analysis.matching import match_features
    from features.pairs.open import open_pairs
    from features.space.several import load_spaces
    from mms_apps.attributes.correction.files import load_correction

    if edit and pairs is None:
        raise UserError("--edit: needs --pairs, labelled pairs to try the edit on")
    before, after = load_spaces([old, new], encoder, device)
    accepted = [load_correction(folder, after) for folder in edit or []]
    matching, edits = None, []
    if pairs is not None and (edit or not same_dictionary(before, after)):
        source = open_pairs(pairs, image_column=image_column, caption_column=caption_column)
        source.require_attributes([one.saved.attribute for one in accepted])
        if not same_dictionary(before, after):
            stores = [_store_for(space, source, out) for space in (before, after)]
            matching = match_features(before, stores[0], after, stores[1], seed=seed)
        edits = [_standing_of(one, after, source, out, seed) for one in accepted]
    found = find_drift(before, after, matching)
    out.mkdir(parents=True, exist_ok=True)
    record = found.record() | {"threshold": threshold, "exceeded": found.share > threshold}
    record["edits"] = [
        jsonable(one) | {"edit": str(f)} for f, one in zip(edit or [], edits, strict=True)
    ]
    write_json(out / "drift.json", record)
    for change in found.changes:
        number = change.old if change.old is not None else change.new
        typer.echo(f"{change.kind}: {number} {change.name}: {change.what}")
    counts = ", ".join(f"{count} {kind}" for kind, count in found.counts.items())
    typer.echo(
        f"{found.share:.1%} of {found.old_scored} features are gone, moved, lost or parted "
        f"({counts}; compared by {found.compared_by}) -> {out / 'drift.json'}"
    )
    if found.judges_differ:
        typer.echo("The judges differ, so monosemanticity was not compared.", err=True)
    for folder, one in zip(edit or [], edits, strict=True):
        typer.echo(f"{folder} ({one.words}) {one.in_words()}")
        if one.due:
            typer.echo(f"{folder} was to be looked at again on {one.look_again}.", err=True)
    if found.share > threshold:
        typer.echo(f"That is more than the threshold of {threshold:.1%}.", err=True)
    if found.share > threshold or not all(one.holds for one in edits):
        raise typer.Exit(1)


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
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
) -> None:
    """Which modality supports each concept, and where better data would help most."""
    from features.analysis.concepts import attribute_concepts, concept_support
    from features.pairs.open import open_pairs
    from features.reports.concepts import write_concepts
    from features.scores.terms import read_vocabulary
    from features.space.several import load_spaces

    if concepts is None and not attribute:
        raise UserError("name concepts: --concepts FILE, --attribute NAME, or both")
    wanted = [] if concepts is None else read_vocabulary(concepts)
    [loaded] = load_spaces([space], encoder, device)
    source = open_pairs(pairs, image_column=image_column, caption_column=caption_column)
    source.require_attributes(attribute or [])
    store = _store_for(loaded, source, out)
    require_pairs(store)
    for name in attribute or []:
        wanted += attribute_concepts(store, name)
    found = concept_support(loaded, store, list(dict.fromkeys(wanted)), seed=seed)
    page = write_concepts(found, loaded, out)
    for concept in found:
        typer.echo(f"{concept.name}: {concept.verdict}. {concept.advice}")
    typer.echo(f"concepts: {page}")


def _store_for(space: FeatureSpace, source: PairSource, out: Path) -> ActivationStore:
    """The pairs encoded by a space's encoder, one store an encoder, in `out`."""
    from features.store.extract import extract as extract_pairs

    folder = out / f"store-{space.config.encoder_fingerprint[-12:]}"
    return extract_pairs(source, space.encoder, folder)


def _standing_of(
    accepted: Accepted, space: FeatureSpace, source: PairSource, out: Path, seed: int
) -> Standing:
    """How an accepted edit does on the pairs, which are labelled with its attribute."""
    from mms_apps.attributes.correction.standing import standing
    from mms_apps.attributes.labels import read_samples

    store = _store_for(space, source, out)
    require_pairs(store)
    samples = read_samples(
        store, [accepted.saved.attribute], accepted.plain.model.config.modality, seed=seed
    )
    return standing(accepted, samples, seed=seed)


def _labels(names: list[str], spaces: list[FeatureSpace]) -> list[str]:
    """What spaces are called: encoder and dictionary, the same for training seeds of one; where
    that doesn't tell them apart, as the user wrote them."""
    labels = [f"{space.config.encoder}, {space.config.dictionary['kind']}" for space in spaces]
    settings: dict[str, set[str]] = {}
    seeds: dict[str, list[int]] = {}
    for label, space in zip(labels, spaces, strict=True):
        config = space.config
        kept = {k: config.dictionary[k] for k in ("features", "k", "modality_bias")}
        made_from = (config.encoder_fingerprint, config.pairs_fingerprint, kept)
        settings.setdefault(label, set()).add(repr(made_from))
        seeds.setdefault(label, []).append(config.dictionary["seed"])
    told_apart = len(settings) > 1 or len(labels) == 1
    one_dictionary = all(len(found) == 1 for found in settings.values())
    different = all(len(set(found)) == len(found) for found in seeds.values())
    return labels if told_apart and one_dictionary and different else names
