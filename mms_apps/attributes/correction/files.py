"""An accepted edit as a folder, with the model it corrects and what it was made from.

config.json        SavedEdit
edit.safetensors   the features, and the head of a model that was fitted again
model/             the model without the edit
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch

from features.arrays import tensor_of
from features.errors import UserError, first_line
from features.files import jsonable, read_json, read_tensors, replacing, write_json, write_tensors
from features.space.space import FeatureSpace
from mms_apps.attributes.correction.correcting import Correction, GroupCorrection
from mms_apps.attributes.correction.proposing import (
    Corrected,
    Proposal,
    corrected,
    with_head,
)
from mms_apps.attributes.model import AttributeModel, load_model, model_fingerprint

SCHEMA = 1
KIND = "correction"
WEIGHTS = "edit.safetensors"
MODEL = "model"
EDITS = "edits"
"""Folder of the accepted edits, by the number of their group."""
LOOK_AGAIN = timedelta(days=90)
"""After which an edit should be looked at again."""


@dataclass(frozen=True)
class MadeFrom:
    """Fingerprints of what an edit was found on: the labelled pairs, and the held-out ones where
    there were some."""

    pairs: str
    pairs_fingerprint: str
    held_out: str | None = None
    held_out_fingerprint: str | None = None


@dataclass(frozen=True)
class SavedEdit:
    """An accepted edit, what it was made from, and by which figures.

    model: fingerprint of the model that it corrects (`model_fingerprint`).
    words: of what it does.
    figures: by set of pairs, the counts, the gain in accuracy and the groups.
    why: the advice by which it was accepted.
    made, look_again: dates, as 2026-01-31.
    """

    attribute: str
    model: str
    encoder_fingerprint: str
    dictionary_fingerprint: str
    proposal: Proposal
    words: str
    group: str
    made_from: MadeFrom
    figures: dict[str, Any]
    why: str
    seed: int
    made: str
    look_again: str
    kind: str = KIND
    schema: int = SCHEMA


@dataclass(frozen=True, eq=False)
class Accepted:
    """A saved edit with the model that it corrects, without the edit (`plain`) and with it."""

    saved: SavedEdit
    plain: Corrected
    edited: Corrected


def save_correction(
    found: GroupCorrection,
    correction: Correction,
    made_from: MadeFrom,
    folder: str | Path,
    *,
    today: date | None = None,
) -> Path:
    """Write the model, edit.safetensors and then config.json into a folder.

    Raises:
        ValueError: nothing is proposed for the group.
    """
    if found.proposal is None or found.edited is None:
        raise ValueError("nothing is proposed for this group")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model, today = correction.model, today or date.today()
    model.save(folder / MODEL)
    weights = {"features": torch.tensor(found.proposal.features, dtype=torch.int64)}
    if found.proposal.refitted:
        head = found.edited.model.estimator
        weights["coef"] = tensor_of(head.coef_, "weights")
        weights["intercept"] = tensor_of(head.intercept_, "weights")
    write_tensors(folder / WEIGHTS, weights)
    record = SavedEdit(
        attribute=model.config.attribute,
        model=model_fingerprint(model),
        encoder_fingerprint=model.space.config.encoder_fingerprint,
        dictionary_fingerprint=model.space.config.dictionary_fingerprint,
        proposal=found.proposal,
        words=found.proposal.in_words(),
        group=correction.group,
        made_from=made_from,
        figures={name: asdict(check) for name, check in found.checks.items()},
        why=found.advice.why,
        seed=correction.seed,
        made=today.isoformat(),
        look_again=(today + LOOK_AGAIN).isoformat(),
    )
    write_json(folder / "config.json", jsonable(record))
    return folder


def save_accepted(correction: Correction, made_from: MadeFrom, out: Path) -> list[str | None]:
    """Save each accepted edit in `out`, in place of those that an earlier run left there; where
    each group's lies within, None where it does not."""
    for earlier in (out / EDITS).glob("*"):
        if is_correction(earlier):
            shutil.rmtree(earlier)
    places: list[str | None] = []
    for number, one in enumerate(correction.groups, start=1):
        place = f"{EDITS}/{number}" if one.advice.accept else None
        if place is not None:
            save_correction(one, correction, made_from, out / place)
        places.append(place)
    return places


def write_accepted(correction: Correction, made_from: MadeFrom, path: Path) -> list[str | None]:
    """Write a zip file of what `save_accepted` saves, which gives the same places."""
    with tempfile.TemporaryDirectory() as folder, replacing(path) as temporary:
        places = save_accepted(correction, made_from, Path(folder))
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(Path(folder).rglob("*")):
                if file.is_file():
                    archive.write(file, file.relative_to(folder))
    return places


def is_correction(folder: str | Path) -> bool:
    """Whether a folder holds what `save_correction` writes."""
    config = Path(folder) / "config.json"
    return config.is_file() and read_json(config).get("kind") == KIND


def read_saved(folder: str | Path) -> SavedEdit:
    """What an accepted edit was made from.

    Raises:
        UserError: there is none, or it is damaged.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file() or not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder}: no edit here; make one with mms attributes correct")
    record = read_json(folder / "config.json")
    if record.get("kind") != KIND or record.get("schema") != SCHEMA:
        raise UserError(
            f"{folder}/config.json: not an edit of mms attributes correct, schema {SCHEMA}"
        )
    try:
        proposal = record["proposal"]
        features = tuple(int(feature) for feature in proposal["features"])
        nested = {
            "proposal": Proposal(**proposal | {"features": features}),
            "made_from": MadeFrom(**record["made_from"]),
        }
        return SavedEdit(**record | nested)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder}/config.json: damaged ({first_line(error)}); make the edit again"
        ) from None


def load_correction(folder: str | Path, space: FeatureSpace) -> Accepted:
    """Load an accepted edit with the model that it corrects.

    Raises:
        UserError: there is none, it is damaged, or it belongs to another space.
    """
    folder = Path(folder)
    saved = read_saved(folder)
    if saved.dictionary_fingerprint != space.config.dictionary_fingerprint:
        raise UserError(
            f"{folder}: made over another dictionary than the space's; give its own space, or make "
            "the edit again"
        )
    model = load_model(folder / MODEL, space)
    weights = {name: held.numpy() for name, held in read_tensors(folder / WEIGHTS).items()}
    try:
        features = weights["features"]
        if not np.array_equal(features, saved.proposal.features):
            raise ValueError("other features than config.json names")
        if saved.model != model_fingerprint(model):
            raise ValueError("the model beside it is another one")
        if features.min(initial=0) < 0 or features.max(initial=0) >= len(space):
            raise ValueError("features that the space does not have")
        found = corrected(model, saved.proposal)
        if saved.proposal.refitted:
            coef, intercept = weights["coef"], weights["intercept"]
            if coef.shape != model.estimator.coef_.shape or intercept.shape != coef.shape[:1]:
                raise ValueError("a head of another shape than the model's")
            found = Corrected(with_head(model, coef, intercept), found.edit)
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{folder}/{WEIGHTS}: damaged ({first_line(error)}); make the edit again"
        ) from None
    return Accepted(saved, Corrected(model), found)


def correction_of(folder: str | Path, model: AttributeModel) -> Corrected:
    """An accepted edit for a model that is at hand.

    Raises:
        UserError: as `load_correction`, or it was made for another model.
    """
    accepted = load_correction(folder, model.space)
    saved, plain = accepted.saved, accepted.plain.model
    if saved.model != model_fingerprint(model):
        raise UserError(
            f"{folder}: made for another model ({saved.attribute}: {', '.join(plain.classes)}; "
            f"{plain.config.method}); give --model {Path(folder) / MODEL}, or make the edit again"
        )
    return accepted.edited
