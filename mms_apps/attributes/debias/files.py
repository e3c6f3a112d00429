"""A chosen edit as a folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from features.errors import UserError
from features.files import write_json, write_tensors
from features.modality import Modality
from features.space.space import FeatureSpace
from mms_apps.attributes.debias.choosing import ChosenFeatures
from mms_apps.attributes.edits import WAYS, RemoveFeatures

SCHEMA = 1
WEIGHTS = "edit.safetensors"


def save_edit(choice: ChosenFeatures, edit: RemoveFeatures, folder: str | Path) -> Path:
    """Write edit.safetensors and then config.json into a folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {"features": edit.features}
    if edit.readings is not None:
        weights["readings"] = edit.readings
    write_tensors(folder / WEIGHTS, weights)
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "modality": edit.modality,
        "dictionary_fingerprint": edit.space.config.dictionary_fingerprint,
        **asdict(choice),
    }
    write_json(folder / "config.json", record)
    return folder


def load_edit(folder: str | Path, space: FeatureSpace, modality: Modality) -> RemoveFeatures:
    """Load what `save_edit` wrote.

    Raises:
        UserError: there is none, or it belongs to another space or modality.
    """
    import json

    from safetensors.torch import load_file

    folder = Path(folder)
    if not (folder / "config.json").is_file() or not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder}: no edit here; mms attributes debias and correct make some")
    record = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if record.get("schema") != SCHEMA or record.get("how") not in WAYS:
        raise UserError(f"{folder}/config.json: not an edit of schema {SCHEMA}")
    if record["dictionary_fingerprint"] != space.config.dictionary_fingerprint:
        raise UserError(f"{folder}: made over another dictionary than the space's; choose anew")
    if record["modality"] != modality:
        raise UserError(f"{folder}: edits {record['modality']}s, not {modality}s; choose anew")
    weights = load_file(folder / WEIGHTS)
    return RemoveFeatures(
        space, weights["features"], modality, record["how"], weights.get("readings")
    )
