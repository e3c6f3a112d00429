"""A chosen edit as a folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from features.errors import UserError
from features.files import read_json, read_tensors, write_json, write_tensors
from features.modality import Modality
from features.space.space import FeatureSpace
from mms_apps.attributes.debias.choosing import ChosenFeatures
from mms_apps.attributes.edits import WAYS, RemoveFeatures
from mms_apps.attributes.model import AttributeModel, model_fingerprint

SCHEMA = 1
WEIGHTS = "edit.safetensors"


def save_edit(
    choice: ChosenFeatures, edit: RemoveFeatures, model: AttributeModel, folder: str | Path
) -> Path:
    """Write edit.safetensors and then config.json into a folder.

    Args:
        model: for which the edit was chosen.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {"features": edit.features}
    if edit.readings is not None:
        weights["readings"] = edit.readings
    write_tensors(folder / WEIGHTS, weights)
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "modality": edit.modality,
        "model": model_fingerprint(model),
        "dictionary_fingerprint": edit.space.config.dictionary_fingerprint,
        **asdict(choice),
    }
    write_json(folder / "config.json", record)
    return folder


def load_edit(folder: str | Path, space: FeatureSpace, modality: Modality) -> RemoveFeatures:
    """Load what `save_edit` wrote.

    Raises:
        UserError: there is none, it is damaged, or it belongs to another space or modality.
    """
    folder = Path(folder)
    record = _record(folder)
    if record.get("dictionary_fingerprint") != space.config.dictionary_fingerprint:
        raise UserError(f"{folder}: made over another dictionary than the space's; choose anew")
    if record.get("modality") != modality:
        raise UserError(f"{folder}: edits {record.get('modality')}s, not {modality}s; choose anew")
    weights, how = read_tensors(folder / WEIGHTS), record["how"]
    features, readings = weights.get("features", torch.empty(0)), weights.get("readings")
    shape = (len(features), space.dictionary.config.dim)
    if features.tolist() != record.get("features") or (
        how == "project" and (readings is None or readings.shape != shape)
    ):
        raise UserError(
            f"{folder}/{WEIGHTS}: not the features that its config.json names; copy it again, or "
            "choose anew"
        )
    return RemoveFeatures(space, features, modality, how, readings)


def edit_of(folder: str | Path, model: AttributeModel) -> RemoveFeatures:
    """A chosen edit for a model that is at hand.

    Raises:
        UserError: as `load_edit`, or it was chosen for another model.
    """
    edit = load_edit(folder, model.space, model.config.modality)
    chosen_for = _record(Path(folder)).get("model")  # not recorded before 0.2.0
    if chosen_for not in (None, model_fingerprint(model)):
        raise UserError(
            f"{folder}: chosen for another model than this one of {model.config.attribute} "
            f"({', '.join(model.classes)}; {model.config.method}); give as --model the folder "
            f"model beside it, or choose anew: mms attributes debias"
        )
    return edit


def _record(folder: Path) -> dict[str, Any]:
    """What an edit's config.json holds.

    Raises:
        UserError: there is none, or of another schema.
    """
    if not (folder / "config.json").is_file() or not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder}: no edit here; mms attributes debias and correct make some")
    record = read_json(folder / "config.json")
    if record.get("schema") != SCHEMA or record.get("how") not in WAYS:
        raise UserError(f"{folder}/config.json: not an edit of schema {SCHEMA}")
    return record
