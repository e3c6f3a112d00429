"""Predictions of a whole store, streamed: memory is bounded by a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from features.files import replacing
from features.modality import MODALITIES
from features.store.store import ATTRIBUTE, SAMPLE_BATCH, ActivationStore
from mms_apps.attributes.labels import among, require_encoder
from mms_apps.attributes.model import AttributeModel

if TYPE_CHECKING:
    from mms_apps.attributes.edits import EmbeddingEdit


@dataclass(frozen=True)
class PredictionSummary:
    """Counts over all predictions of a store."""

    pairs: int
    predicted: dict[str, int]
    """By class."""
    labelled: int
    """Pairs whose label is one of the classes."""
    correct: int
    skipped: dict[str, int]
    """Pairs that could not be read when the store was made, by reason."""
    fitted_on: int = 0
    """Labelled pairs that the model was fitted on, where that is known."""


def predictions(
    model: AttributeModel,
    store: ActivationStore,
    *,
    edit: EmbeddingEdit | None = None,
    batch_size: int = SAMPLE_BATCH,
) -> Iterator[pa.Table]:
    """Predictions of all pairs in order: id, label (null where there is none), prediction, and
    p_<class> for each class.

    Args:
        edit: of the embeddings of unit length, before the model sees them.

    Raises:
        UserError: the store was made by another encoder than the model's.
    """
    require_encoder(store, model.space)
    names = store.sample_columns
    column = ATTRIBUTE + model.config.attribute
    wanted = ["id", *([column] if column in names else [])]
    classes = np.array(model.classes)
    place = MODALITIES.index(model.config.modality)
    samples = store.sample_batches(batch_size, columns=wanted)
    for table, batch in zip(samples, store.batches(batch_size), strict=True):
        probabilities = model.predict_proba(batch[place], edit)  # [batch, classes]
        labels = table[column] if column in names else pa.nulls(len(table), pa.string())
        columns = {
            "id": table["id"],
            "label": labels,
            "prediction": pa.array(classes[probabilities.argmax(axis=1)].tolist(), pa.string()),
        }
        for number, name in enumerate(model.classes):
            columns[f"p_{name}"] = pa.array(probabilities[:, number].round(6))
        yield pa.table(columns)


def write_predictions(
    model: AttributeModel,
    store: ActivationStore,
    out: Path,
    *,
    edit: EmbeddingEdit | None = None,
    batch_size: int = SAMPLE_BATCH,
) -> PredictionSummary:
    """Write `predictions` to a CSV file."""
    from pyarrow.csv import CSVWriter

    counts: Counter[str] = Counter({name: 0 for name in model.classes})
    labelled = correct = pairs = 0
    writer = None
    with replacing(out) as temporary:
        try:
            for table in predictions(model, store, edit=edit, batch_size=batch_size):
                writer = writer or CSVWriter(temporary, table.schema)
                writer.write_table(table)
                counts.update(table["prediction"].to_pylist())
                label = np.array(table["label"].to_pylist(), dtype=object)
                known = among(label, model.classes)
                labelled += int(known.sum())
                correct += int((label == np.array(table["prediction"].to_pylist()))[known].sum())
                pairs += len(table)
        finally:
            if writer is not None:
                writer.close()
        if writer is None:
            temporary.write_text("id,label,prediction\n", encoding="utf-8")
    return PredictionSummary(
        pairs, dict(counts), labelled, correct, dict(store.config.skipped_reasons)
    )
