"""What the commands of `mms attributes` read: spaces, stores, models, prompts, edits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from features.errors import UserError
from mms_apps.cli.common import report_skipped

if TYPE_CHECKING:
    from features.modality import Modality as ModalityName
    from features.pairs.base import PairSource
    from features.space.space import FeatureSpace
    from features.store.store import ActivationStore
    from mms_apps.attributes.edits import EmbeddingEdit
    from mms_apps.attributes.explain import Explanation
    from mms_apps.attributes.labels import Samples
    from mms_apps.attributes.model import AttributeModel
    from mms_apps.attributes.model import Method as MethodName
    from mms_apps.attributes.report import Explained


def load_space(space: str, encoder: str | None, device: str) -> FeatureSpace:
    from features.space.space import FeatureSpace

    return FeatureSpace.load(space, device=device, encoder=encoder)


@dataclass(frozen=True)
class Columns:
    """Where pairs have their images and captions; None looks for the usual names."""

    image: str | None
    caption: str | None


def open_store(
    space: FeatureSpace,
    pairs: str,
    folder: Path,
    columns: Columns,
    modality: str,
    attributes: Sequence[str] = (),
) -> tuple[PairSource, ActivationStore]:
    """The pairs, and their embeddings by the space's encoder. Captions are needed only where texts
    are what is predicted from.

    Args:
        attributes: that the pairs must have.

    Raises:
        UserError: none of them could be read, or they lack an attribute.
    """
    from features.pairs.open import open_pairs
    from features.store.extract import extract

    source = open_pairs(
        pairs,
        image_column=columns.image,
        caption_column=columns.caption,
        captions_needed=read_modality(modality) == "text",
    )
    source.require_attributes(attributes)
    store = extract(source, space.encoder, folder)
    report_skipped(store)
    if len(store) == 0:
        raise UserError(f"{pairs}: no pair could be read; see {folder / 'skipped.jsonl'}")
    return source, store


def load_or_fit(
    space: FeatureSpace,
    out: Path,
    folder: Path | None,
    attribute: str,
    method: str,
    train: str | None,
    pairs: str,
    columns: Columns,
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
    chosen, kind, texts = read_method(method), read_modality(modality), read_prompts(prompts)
    samples: Samples | None = None
    if chosen != "zero_shot":
        if train is None:
            raise UserError(f"--method {method}: needs --train, labelled pairs; or use zero_shot")
        _, store = open_store(space, train, out / "train-store", columns, modality, [attribute])
        samples = read_samples(store, [attribute], kind, seed=seed)
        classes = classes_of(samples, attribute, values)
    elif texts is not None:
        classes = values or list(texts)
    elif values and len(set(values)) >= 2:
        classes = values
    else:
        _, store = open_store(space, pairs, out / "store", columns, modality, [attribute])
        classes = classes_of(read_samples(store, [attribute], kind, seed=seed), attribute, values)
    return fit_model(
        space, samples, attribute, classes, chosen, modality=kind, prompts=texts,
        max_features=max_features, seed=seed,
    )  # fmt: skip


def not_fitted_on(samples: Samples, train: Path | None, model: AttributeModel) -> Samples:
    """The samples without the labelled ones of the training store, on which the model would be
    better than it is."""
    if train is None or model.config.samples == 0:
        return samples
    return without(samples, _labelled(train, model))


def say_if_unknown(train: str | None, model: AttributeModel) -> None:
    """Say where nothing tells which pairs the model was fitted on."""
    if train is None and model.config.samples:
        typer.echo(
            "without --train it is not known which pairs the model was fitted on: none is left out",
            err=True,
        )


def fitted_among(store: Path, train: Path | None, model: AttributeModel) -> int:
    """How many of a store's labelled pairs are among those of the training store."""
    if train is None or model.config.samples == 0:
        return 0
    return int(_labelled(store, model).shared_with(_labelled(train, model)).sum())


def _labelled(store: Path, model: AttributeModel) -> Samples:
    """The samples of a store that have one of a model's values."""
    from features.store.store import ActivationStore
    from mms_apps.attributes.labels import read_samples

    attribute = model.config.attribute
    found = read_samples(ActivationStore.open(store), [attribute], model.config.modality)
    return found.having(attribute, model.classes)


def without(
    samples: Samples,
    others: Samples,
    why: str = "the model was fitted on them",
    option: str = "--pairs",
) -> Samples:
    """The samples, which an option gave, without those that are among others; their number is said,
    and why.

    Raises:
        UserError: none are left.
    """
    seen = samples.shared_with(others)
    if seen.size and seen.all():
        raise UserError(
            f"none of the {len(seen)} pairs is left, since {why}; give others as {option}"
        )
    if seen.any():
        typer.echo(f"{int(seen.sum())} pairs left out: {why}", err=True)
    return samples.take(~seen)


def read_method(name: str) -> MethodName:
    from mms_apps.attributes.model import METHODS

    for method in METHODS:
        if method == name:
            return method
    raise UserError(f"--method {name}: unknown; use {', '.join(METHODS)}")


def read_modality(name: str) -> ModalityName:
    from features.modality import MODALITIES

    for modality in MODALITIES:
        if modality == name:
            return modality
    raise UserError(f"--modality {name}: unknown; use {' or '.join(MODALITIES)}")


def read_prompts(path: Path | None) -> dict[str, list[str]] | None:
    """Prompts by value from a JSON file.

    Raises:
        UserError: it is no such JSON.
    """
    from features.pairs.text import read_text

    if path is None:
        return None
    advice = f'{path}: not prompts by value; write {{"man": ["a picture of a man"], ...}}'
    try:
        found = json.loads(read_text(path))
    except ValueError as error:
        raise UserError(f"{advice} ({error})") from None
    if not isinstance(found, dict) or len(found) < 2:
        raise UserError(advice)
    for texts in found.values():
        good = isinstance(texts, list) and all(isinstance(t, str) and t.strip() for t in texts)
        if not good or not texts:
            raise UserError(advice)
    return found


def edited(
    model: AttributeModel, folder: Path | None
) -> tuple[AttributeModel, EmbeddingEdit | None]:
    """The model behind an edit that `debias` or `correct` left in a folder, and the edit; the model
    alone where no folder is given."""
    from mms_apps.attributes.correction.files import correction_of, is_correction
    from mms_apps.attributes.debias.files import edit_of

    if folder is None:
        return model, None
    if is_correction(folder):
        found = correction_of(folder, model)
        return found.model, found.edit
    return model, edit_of(folder, model)


def explain_some(
    model: AttributeModel,
    source: PairSource,
    store: ActivationStore,
    edit: EmbeddingEdit | None,
    count: int,
) -> list[Explained]:
    """Explanations of `count` pairs, spread evenly over the store."""
    import numpy as np

    from features.modality import MODALITIES
    from features.store.credits import credits_of
    from features.store.store import ATTRIBUTE
    from mms_apps.attributes.explain import explain
    from mms_apps.attributes.report import Explained, rests_on

    rows = np.unique(np.linspace(0, len(store) - 1, min(count, len(store)))).astype(int).tolist()
    if not rows:
        return []
    column = ATTRIBUTE + model.config.attribute
    names = store.sample_columns
    wanted = ["id", "caption", "location", *([column] if column in names else [])]
    samples = store.sample_rows(rows, wanted).to_pylist()
    embeddings = store.rows(rows)[MODALITIES.index(model.config.modality)]
    found: list[Explanation] = explain(model, embeddings, edit=edit)
    images = dict(source.images([sample["location"] for sample in samples]))
    owners = credits_of(store, rows)
    explained = []
    for sample, explanation, credit in zip(samples, found, owners, strict=True):
        image, caption = images.get(sample["location"]), sample["caption"] or ""
        layer, marked = rests_on(model, edit, explanation.label, image, caption)
        explained.append(
            Explained(
                sample["id"], caption, sample.get(column), image, explanation, credit, layer, marked
            )
        )
    return explained
