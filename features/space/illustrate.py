"""Names and exemplars of features from other pairs than those on which they were scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pyarrow as pa
import torch

from features.distributed import from_main_process, resolve_device
from features.encoders.fingerprint import same_encoder
from features.errors import UserError
from features.files import jsonable
from features.pairs.base import PairSource
from features.scores.collect import collect, collect_naming_chance
from features.scores.naming import name_features, naming_floor
from features.scores.terms import vocabulary
from features.space.space import FeatureSpace
from features.space.tables import exemplar_table
from features.store.pictures import Pictures
from features.store.store import SAMPLE_BATCH, ActivationStore


def illustrate(
    space: FeatureSpace,
    store: ActivationStore,
    source: PairSource | None = None,
    *,
    terms: Sequence[str] | None = None,
    batch_size: int = 1024,
    exemplars: int = 8,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> FeatureSpace:
    """The space with names and exemplars from the pairs of a store; its scores stay as they are.

    Scores are worth something only on pairs that the encoder was not trained on, which may be few.
    Names and exemplars say what a feature is about, and more pairs say it better.

    Args:
        store: embeddings by the space's encoder.
        source: where thumbnails come from; None for none.
        terms: to name features by; None takes the captions' own words, tags and attributes.
        exemplars: samples to keep a feature and modality.
        device: a torch device; "auto" is this process's GPU where there is one.

    Raises:
        UserError: the store is empty or of another encoder.
    """
    if not same_encoder(space.config.encoder_fingerprint, store.config.encoder_fingerprint):
        raise UserError(
            f"{store.path}: embeddings of {store.config.encoder}, but the space's features belong "
            f"to {space.config.encoder}; extract the pairs with that one"
        )
    if len(store) == 0 or store.config.uncaptioned:
        raise UserError(f"{store.path}: names need captions; extract pairs that have them")
    if terms is None:
        terms = from_main_process(lambda: vocabulary(store.sample_batches(SAMPLE_BATCH)))
    device = resolve_device(device)
    dictionary = space.dictionary.to(device)
    pictures = Pictures.of(store)
    found = collect(
        store,
        dictionary,
        store,
        terms,
        pictures,
        kept=exemplars,
        batch_size=batch_size,
        seed=seed,
        replicates=1,
        device=device,
        progress=progress,
    )
    chance = collect_naming_chance(
        store, dictionary, terms, pictures, seed=seed, device=device, progress=progress
    )

    def finish() -> tuple[pa.Table, pa.Table, float]:
        share = found.dominance.scores(space.config.min_pairs).mds
        floor = naming_floor(chance, share, pictures.design_effect(len(store)))
        names = name_features(found.naming, share, space.features["class"].to_pylist(), floor)
        table = space.features
        for column, values in (("name", names.names), ("name_score", names.scores)):
            table = table.set_column(table.column_names.index(column), column, pa.array(values))
        return table, exemplar_table(found.best, exemplars, store, source), floor

    table, shown, floor = from_main_process(finish)
    config = dataclasses.replace(
        space.config,
        floors=space.config.floors | jsonable({"name": floor}),
        illustrated=store.config.pairs,
        illustrated_count=len(store),
    )
    return FeatureSpace(config, space.dictionary, table, shown, device=space.device)
