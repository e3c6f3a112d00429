"""The two tables of a FeatureSpace: its features and their exemplars."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from features.errors import UserError, first_line
from features.pairs.base import PairSource
from features.scores.agreement import Agreement
from features.scores.dominance import Classes, Dominance
from features.scores.monosemanticity import NO_SAMPLE, Monosemanticity, TopSamples, TopSimilarity
from features.scores.naming import Names
from features.store.credits import rights
from features.store.store import ActivationStore

FEATURES = "features.parquet"
EXEMPLARS = "exemplars.parquet"
THUMBNAIL_SIDE = 96
THUMBNAIL_QUALITY = 75
FEATURE_COLUMNS = (
    "feature",
    "mds",
    "mds_low",
    "mds_high",
    "class",
    "uncertain",
    "class_fixed",
    "uncertain_fixed",
    "agreement",
    "agreement_low",
    "agreement_high",
    "agreement_floor",
    "shared",
    "uncertain_shared",
    "active_pairs",
    "left_out",
    "energy",
    "image_density",
    "text_density",
    "image_mean_active",
    "text_mean_active",
    "embsim_image",
    "embsim_text",
    "winrate_image",
    "winrate_text",
    "ms_image",
    "ms_text",
    "ms_cross",
    "name",
    "name_score",
)
"""Of features.parquet. `class` follows the paper's relative rule,
`class_fixed` the fixed bounds. `shared`: the agreement lies above its floor, so that images and
texts drive the feature in the same pairs; `uncertain_shared`: its interval crosses the floor."""
EXEMPLAR_SCHEMA = pa.schema(
    [
        ("feature", pa.int64()),
        ("modality", pa.string()),
        ("rank", pa.int64()),
        ("sample_id", pa.string()),
        ("caption", pa.string()),
        ("activation", pa.float64()),
        ("thumbnail", pa.binary()),
        ("credit", pa.string()),
        ("licence", pa.string()),
    ]
)
"""Of exemplars.parquet: rank 0 is the most activating; activation is |a|; thumbnail is a WebP of at
most 96 pixels, null for texts and where the image could not be had; credit and licence are those of
the pair's image, null where the pair tells none."""


def read_tables(folder: Path, features: int) -> tuple[pa.Table, pa.Table]:
    """The features and the exemplars in a FeatureSpace's folder.

    Args:
        features: of its dictionary.

    Raises:
        UserError: one is missing, damaged, or not of this dictionary.
    """
    tables = {}
    columns = {FEATURES: FEATURE_COLUMNS, EXEMPLARS: EXEMPLAR_SCHEMA.names}
    for name, wanted in columns.items():
        path = folder / name
        try:
            tables[name] = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            reason = first_line(error) if path.is_file() else "there is no such file"
            raise UserError(
                f"{path}: cannot be read ({reason}); score the dictionary or copy the folder again"
            ) from None
        lacking = [column for column in wanted if column not in tables[name].column_names]
        if lacking:
            raise UserError(f"{path}: lacks the column {lacking[0]}; score the dictionary again")
    if tables[FEATURES]["feature"].to_pylist() != list(range(features)):
        raise UserError(
            f"{folder / FEATURES}: its rows are not features 0 to {features - 1} of the dictionary "
            "in their order; score the dictionary or copy the folder again"
        )
    return tables[FEATURES], tables[EXEMPLARS]


def feature_table(
    scores: Dominance,
    classes: dict[str, Classes],
    agreement: Agreement,
    similar: dict[str, TopSimilarity],
    monosemanticity: Monosemanticity,
    names: Names,
) -> pa.Table:
    columns = {
        "feature": np.arange(len(scores.mds)),
        "mds": scores.mds,
        "mds_low": scores.ci_low,
        "mds_high": scores.ci_high,
        "class": classes["relative"].names,
        "uncertain": classes["relative"].uncertain,
        "class_fixed": classes["fixed"].names,
        "uncertain_fixed": classes["fixed"].uncertain,
        "agreement": agreement.agreement,
        "agreement_low": agreement.ci_low,
        "agreement_high": agreement.ci_high,
        "agreement_floor": agreement.floor,
        "shared": agreement.shared,
        "uncertain_shared": agreement.uncertain,
        "active_pairs": scores.active_pairs,
        "left_out": scores.left_out,
        "energy": scores.energy,
        "image_density": scores.image_density,
        "text_density": scores.text_density,
        "image_mean_active": scores.image_mean_active,
        "text_mean_active": scores.text_mean_active,
        "embsim_image": similar["image"].embsim,
        "embsim_text": similar["text"].embsim,
        "winrate_image": similar["image"].winrate,
        "winrate_text": similar["text"].winrate,
        "ms_image": monosemanticity.ms_image,
        "ms_text": monosemanticity.ms_text,
        "ms_cross": monosemanticity.ms_cross,
        "name": names.names,
        "name_score": names.scores,
    }
    return pa.table({name: columns[name] for name in FEATURE_COLUMNS})


def exemplar_table(
    best: dict[str, TopSamples], count: int, store: ActivationStore, source: PairSource | None
) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [] for name in EXEMPLAR_SCHEMA.names}
    rows: list[int] = []
    for modality, top in best.items():
        numbers = top.samples[:, :count].cpu()  # [features, count]
        found = (numbers != NO_SAMPLE).nonzero()  # [exemplars, 2], by feature, then by rank
        columns["feature"] += found[:, 0].tolist()
        columns["rank"] += found[:, 1].tolist()
        columns["modality"] += [modality] * len(found)
        columns["activation"] += top.values.cpu()[found[:, 0], found[:, 1]].tolist()
        rows += numbers[found[:, 0], found[:, 1]].tolist()
    taken = store.sample_rows(rows, ["id", "caption", "location"])
    columns["sample_id"] = taken["id"].to_pylist()
    columns["caption"] = taken["caption"].to_pylist()
    locations = taken["location"].to_pylist()
    shown = [
        location if modality == "image" else None
        for location, modality in zip(locations, columns["modality"], strict=True)
    ]
    pictures = _thumbnails(source, {location for location in shown if location is not None})
    columns["thumbnail"] = [pictures.get(location) for location in shown]
    columns |= rights(store, rows)
    return pa.table(columns, schema=EXEMPLAR_SCHEMA)


def _thumbnails(source: PairSource | None, locations: set[str]) -> dict[str | None, bytes]:
    if source is None:
        return {}
    return {location: thumbnail(image) for location, image in source.images(locations)}


def thumbnail(image: Image.Image) -> bytes:
    """A WebP of at most 96 x 96 pixels."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    content = io.BytesIO()
    small.save(content, "WEBP", quality=THUMBNAIL_QUALITY, method=6)
    return content.getvalue()
