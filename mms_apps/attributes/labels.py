"""The labelled samples of an activation store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from features.encoders.fingerprint import same_encoder
from features.errors import UserError
from features.modality import Modality, place_of
from features.pairs.records import without_fraction
from features.space.space import FeatureSpace
from features.store.pictures import first_of_equal, picture_keys
from features.store.store import ATTRIBUTE, SAMPLE_BATCH, ActivationStore

MAX_SAMPLES = 20_000
"""Of more samples a random part is taken to fit or audit on, which bounds the memory."""


@dataclass(frozen=True)
class Samples:
    """Embeddings of one modality with what is known about them.

    embeddings: `[n, dim]` float32, of unit length.
    ids: `[n]`. Samples of one id are no independent ones, and are drawn together.
    columns: by attribute, `[n]` of str or None.
    contents: `[n]`, the keys of the pairs' content; None where the store has none.
    rows: `[n]`, their places in the store; None where they come from none.
    pictures: `[n]`, the keys of the pairs' pictures (`features.store.pictures`); None where they
        are not known.
    """

    embeddings: Tensor
    ids: np.ndarray
    columns: dict[str, np.ndarray]
    contents: np.ndarray | None = None
    rows: np.ndarray | None = None
    pictures: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def require(self, attributes: Sequence[str]) -> None:
        """Check that these attributes were read.

        Raises:
            UserError: one was not.
        """
        for attribute in attributes:
            if attribute not in self.columns:
                raise UserError(
                    f"{attribute}: the samples have no such attribute; they have "
                    f"{', '.join(self.columns) or 'none'}; read them with it"
                )

    def shared_with(self, other: Samples) -> np.ndarray:
        """Which of the samples the other ones hold too, by content, or by id where either has no
        contents, or whose picture they hold with another caption: `[n]` bool."""
        if self.contents is None or other.contents is None:
            shared = np.isin(self.ids.astype(str), other.ids.astype(str))
        else:
            shared = np.isin(self.contents.astype(str), other.contents.astype(str))
        if self.pictures is not None and other.pictures is not None:
            shared |= np.isin(self.pictures, other.pictures)
        return shared

    def take(self, rows: np.ndarray) -> Samples:
        """Those of the rows, by number or by mask `[n]`."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        return Samples(
            self.embeddings[torch.from_numpy(rows)],
            self.ids[rows],
            {name: column[rows] for name, column in self.columns.items()},
            None if self.contents is None else self.contents[rows],
            None if self.rows is None else self.rows[rows],
            None if self.pictures is None else self.pictures[rows],
        )

    def with_crossed(self, attributes: Sequence[str]) -> Samples:
        """With a column of several attributes' values together, such as "woman, dark" for
        gender x skin_tone; None where one of them is missing. One attribute is left as it is."""
        self.require(attributes)
        if len(attributes) == 1:
            return self
        rows = zip(*(self.columns[name] for name in attributes), strict=True)
        together = [", ".join(values) if all(values) else None for values in rows]
        crossed = {crossed_name(attributes): np.array(together, dtype=object)}
        return replace(self, columns=self.columns | crossed)

    def having(self, attribute: str, values: Sequence[str]) -> Samples:
        """Those whose attribute is one of the values."""
        self.require([attribute])
        return self.take(among(self.columns[attribute], values))


def among(column: np.ndarray, values: Sequence[str]) -> np.ndarray:
    """Which samples have one of the values, `[n]` bool; None is not the value "None"."""
    chosen = frozenset(values)
    return np.array([value in chosen for value in column], dtype=bool)


def crossed_name(attributes: Sequence[str]) -> str:
    """The name of attributes taken together: `gender x skin_tone`."""
    return " x ".join(attributes)


def require_encoder(store: ActivationStore, space: FeatureSpace) -> None:
    """Check that a store was made by the encoder of a space.

    Raises:
        UserError: it was made by another.
    """
    if not same_encoder(store.config.encoder_fingerprint, space.config.encoder_fingerprint):
        raise UserError(
            f"{store.path}: embeddings of {store.config.encoder}, but the space's features belong "
            f"to {space.config.encoder}; extract the pairs with that one"
        )


def read_samples(
    store: ActivationStore,
    attributes: str | Sequence[str],
    modality: Modality = "image",
    *,
    max_samples: int = MAX_SAMPLES,
    seed: int = 0,
) -> Samples:
    """Read a store's embeddings and attributes, or a random part of a large store's. Pairs of the
    same picture have the first one's id.

    Raises:
        UserError: the store lacks an attribute, or there is no such modality.
    """
    attributes = [attributes] if isinstance(attributes, str) else attributes
    store.require_attributes(attributes)
    place = place_of(modality)
    rows = np.arange(len(store))
    if len(rows) > max_samples:
        chosen = np.random.default_rng(seed).choice(len(store), max_samples, replace=False)
        rows = np.sort(chosen)
    names = ["id", *(ATTRIBUTE + attribute for attribute in dict.fromkeys(attributes))]
    if store.has_content:
        names.append("content")
    tables, embeddings = [], []
    for start in range(0, len(rows), SAMPLE_BATCH):
        part = rows[start : start + SAMPLE_BATCH]
        tables.append(store.sample_rows(part.tolist(), names))
        embeddings.append(store.rows(torch.from_numpy(part))[place])
    table = pa.concat_tables(tables) if tables else pa.table({name: [] for name in names})
    columns = {
        attribute: np.array(table[ATTRIBUTE + attribute].to_pylist(), dtype=object)
        for attribute in attributes
    }
    found = torch.cat(embeddings) if embeddings else torch.zeros(0, store.dim)
    ids = np.array(table["id"].to_pylist(), dtype=object)
    contents = pictures = None
    if store.has_content:
        contents = np.array(table["content"].to_pylist(), dtype=object)
        pictures = picture_keys(contents.tolist())
        ids = ids[first_of_equal(pictures)]
    unit = torch.nn.functional.normalize(found, dim=-1)
    return Samples(unit, ids, columns, contents, rows, pictures)


def classes_of(
    samples: Samples, attribute: str, values: Sequence[str] | None = None, *, least: int = 2
) -> list[str]:
    """The values of an attribute to tell apart: those that are asked for, or all that `least`
    samples or more have, sorted.

    Raises:
        UserError: fewer than two are left, one that is asked for is too rare, or most samples have
            a value that is.
    """
    samples.require([attribute])
    counts = Counter(value for value in samples.columns[attribute] if value)
    if values:
        values = [value if value in counts else without_fraction(value) for value in values]
        for value in values:
            if counts[value] < least:
                common = ", ".join(name for name, _ in counts.most_common(8))
                raise UserError(
                    f"{attribute}: {counts[value]} samples have the value {value}, but {least} are "
                    f"needed; values are {common or 'none'}"
                )
        chosen = list(dict.fromkeys(values))
    else:
        chosen = sorted(value for value, count in counts.items() if count >= least)
    if len(chosen) < 2:
        raise UserError(
            f"{attribute}: {len(chosen)} value to tell apart "
            f"({', '.join(chosen) or 'none is common enough'}); give an attribute with at least two"
        )
    if not values and 2 * sum(counts[value] for value in chosen) < counts.total():
        raise UserError(
            f"{attribute}: {len(counts)} values, most of them in fewer than {least} samples, as "
            "numbers or free text have; name the values to tell apart, or put ranges in their place"
        )
    return chosen


def split_samples(samples: Samples, share: float, seed: int) -> tuple[Samples, Samples]:
    """The others, and about `share` of the samples; those of one picture, of one content, or of one
    id where the contents are not known, fall on one side."""
    keys = (samples.ids if samples.contents is None else samples.contents).astype(str)
    if samples.pictures is not None:
        keys = keys[first_of_equal(samples.pictures)]
    known = np.unique(keys)
    chosen = np.random.default_rng(seed).permutation(known)[: round(share * len(known))]
    inside = np.isin(keys, chosen)
    return samples.take(~inside), samples.take(inside)


def cells(attribute: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """The groups of samples with the same attribute and factor, "attribute, factor": `[n]`."""
    return np.array([f"{a}, {f}" for a, f in zip(attribute, factor, strict=True)])
