"""Browsing a FeatureSpace: features found by words, class and scores, and what each stands for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch.nn.functional as F

from features.dictionary import Modality
from features.errors import UserError
from features.scores.monosemanticity import in_driving_modality
from features.space.space import FeatureSpace

Order = Literal["telling", "monosemanticity", "image", "text", "agreement", "number"]


@dataclass(frozen=True)
class Filter:
    """Which features to show.

    words: a feature's number, or words in its name or in its exemplars' captions.
    modality_class: None for all.
    min_mds, max_mds: features without a score are shown only where both bounds are open.
    min_monosemanticity: see `monosemanticity`; 0 for all.
    min_agreement: of images and texts; 0 for all, else unscored features are out.
    shared: True for features that images and texts drive in the same pairs, False for the other
        scored ones, None for all.
    """

    words: str = ""
    modality_class: str | None = None
    min_mds: float = 0.0
    max_mds: float = 1.0
    min_monosemanticity: float = 0.0
    min_agreement: float = 0.0
    shared: bool | None = None


@dataclass(frozen=True)
class Described:
    """What a feature stands for.

    row: of `features.parquet`.
    monosemanticity: see `monosemanticity`.
    images, texts: its exemplars (`exemplars`).
    alike: numbers of other features with the most similar directions, and the cosines.
    """

    row: dict[str, Any]
    monosemanticity: float
    images: list[dict[str, Any]]
    texts: list[dict[str, Any]]
    alike: list[tuple[int, float]]


def find(space: FeatureSpace, wanted: Filter, order: Order = "monosemanticity") -> list[int]:
    """Numbers of the features that meet all conditions.

    Args:
        order: as `telling_first`, the most monosemantic first, the most image- or text-dominant
            first, those whose images and texts agree most (unscored ones last), or by number.
            Features with the words in their name come before those with them in a caption.

    Raises:
        UserError: an unknown class, or no feature has such a number.
    """
    found = space.select(
        wanted.modality_class,
        min_mds=wanted.min_mds if wanted.min_mds > 0 else None,
        max_mds=wanted.max_mds if wanted.max_mds < 1 else None,
        shared=wanted.shared,
    ).numpy()
    scores = monosemanticity(space)
    if wanted.min_monosemanticity > 0:
        found = found[scores[found] >= wanted.min_monosemanticity]
    agreement = space.features["agreement"].to_numpy()
    if wanted.min_agreement > 0:
        found = found[agreement[found] >= wanted.min_agreement]
    mds = space.features["mds"].to_numpy()
    keys = {
        "telling": np.argsort(telling_first(space)),
        "monosemanticity": np.where(np.isnan(mds), np.nan, -scores),
        "image": -mds,
        "text": mds,
        "agreement": -agreement,
        "number": np.arange(len(space)),
    }
    found = found[np.argsort(keys[order][found], kind="stable")]  # NaN comes last
    words = wanted.words.strip()
    if not words:
        return found.tolist()
    if words.isdigit():
        if int(words) >= len(space):
            raise UserError(f"{words}: the last feature is {len(space) - 1}")
        return found[found == int(words)].tolist()
    named = np.isin(found, space.select(name=words).numpy())
    captioned = np.isin(found, _captioned(space.exemplars, words))
    return [*found[named].tolist(), *found[captioned & ~named].tolist()]


def rows_of(space: FeatureSpace, features: Sequence[int]) -> list[dict[str, Any]]:
    """Rows of `features.parquet`, in the order of `features`."""
    return space.features.take(pa.array(features, pa.int64())).to_pylist()


def monosemanticity(space: FeatureSpace) -> np.ndarray:
    """MS in the modality that drives a feature, or the mean of both; 0 where it is undefined:
    `[features]`."""
    image, text = (np.nan_to_num(space.features[f"ms_{m}"].to_numpy()) for m in ("image", "text"))
    return in_driving_modality(image, text, space.features["class"].to_numpy())


def telling_first(space: FeatureSpace) -> np.ndarray:
    """Numbers of all features, those first that tell a reader most: scored before unscored ones,
    those whose name fits best (`name_score`) before others, features without a name after all
    named ones; of equals the most monosemantic first: `[features]`."""
    unscored = np.isnan(space.features["mds"].to_numpy())
    fit = np.nan_to_num(space.features["name_score"].to_numpy(), nan=-1.0)
    return np.lexsort((-monosemanticity(space), -fit, unscored))


def describe(space: FeatureSpace, feature: int, *, shown: int = 8, alike: int = 3) -> Described:
    """What a feature stands for.

    Args:
        shown: exemplars of each modality, at most.
        alike: other features with similar directions, at most.
    """
    cosines = similarities(space, feature)
    order = [n for n in np.argsort(-cosines).tolist() if n != feature]
    return Described(
        rows_of(space, [feature])[0],
        float(monosemanticity(space)[feature]),
        exemplars(space, [feature], shown)[feature],
        exemplars(space, [feature], shown, "text")[feature],
        [(n, float(cosines[n])) for n in order[:alike]],
    )


def exemplars(
    space: FeatureSpace, features: Collection[int], count: int, modality: Modality = "image"
) -> dict[int, list[dict[str, Any]]]:
    """The `count` samples that activate each of the features most: rows of the space's exemplars
    (`features.space.tables.EXEMPLAR_SCHEMA`); images without a thumbnail are left out."""
    table = space.exemplars
    wanted = pc.and_(
        pc.is_in(table["feature"], pa.array(sorted(features), pa.int64())),
        pc.equal(table["modality"], modality),
    )
    if modality == "image":
        wanted = pc.and_(wanted, pc.is_valid(table["thumbnail"]))
    found: dict[int, list[dict[str, Any]]] = {feature: [] for feature in features}
    for row in table.filter(wanted).sort_by("rank").to_pylist():
        if len(found[row["feature"]]) < count:
            found[row["feature"]].append(row)
    return found


def similarities(space: FeatureSpace, feature: int) -> np.ndarray:
    """Cosines of a feature's direction with those of all features: `[features]`."""
    directions = space.dictionary.directions.detach()  # [features, dim]
    return F.cosine_similarity(directions, directions[feature : feature + 1]).cpu().numpy()


def _captioned(exemplars: pa.Table, words: str) -> np.ndarray:
    """Features with the words in an exemplar's caption, whatever the case."""
    hits = pc.match_substring(exemplars["caption"], words, ignore_case=True)
    return exemplars.filter(hits)["feature"].unique().to_numpy()
