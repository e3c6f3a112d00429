"""Scoring a dictionary's features: a store and a dictionary become a FeatureSpace."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch

from features.dictionary import Dictionary
from features.distributed import from_main_process, resolve_device
from features.encoders.fingerprint import same_encoder
from features.errors import UserError
from features.files import jsonable
from features.modality import CLASSES, CROSS_MODAL
from features.pairs.base import PairSource
from features.scores.agreement import Agreement
from features.scores.angles import near_angles
from features.scores.class_means import SWEEP, TopScores, all_measures, class_means, top_scores
from features.scores.collect import collect, collect_agreement
from features.scores.dominance import Classes, classify
from features.scores.monosemanticity import Monosemanticity
from features.scores.naming import name_features, naming_floor
from features.scores.terms import vocabulary
from features.space.space import FeatureSpace, SpaceConfig
from features.space.tables import exemplar_table, feature_table
from features.store.pictures import Pictures
from features.store.store import SAMPLE_BATCH, ActivationStore, same_pairs


def score(
    store: ActivationStore,
    dictionary: Dictionary,
    judge: ActivationStore | None = None,
    source: PairSource | None = None,
    *,
    terms: Sequence[str] | None = None,
    batch_size: int = 1024,
    min_pairs: int = 10,
    top_m: int = 20,
    exemplars: int = 8,
    replicates: int = 200,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> FeatureSpace:
    """Score, name and illustrate the features of a dictionary, in a few passes over the store.

    Memory is bounded by the batch and the dictionary. Under `accelerate launch` the processes share
    the pass, and all return the same FeatureSpace.

    Args:
        store: embeddings of the encoder to which the dictionary belongs.
        judge: embeddings of the same pairs by an independent encoder, for the monosemanticity; None
            takes the store itself, and the config then says that the judge is not independent.
        source: where thumbnails come from; None for none.
        terms: to name features by; None takes the captions' own words, tags and attributes.
        min_pairs: a feature that is active in fewer pairs of different pictures is unscored.
        top_m: samples that EmbSim and WinRate look at; beside it, the classes' means are computed
            for those of SWEEP.
        exemplars: samples to keep a feature and modality.
        replicates: of the bootstrap.
        device: a torch device; "auto" is this process's GPU where there is one.

    Raises:
        UserError: the dictionary belongs to another encoder, or the judge has other pairs.
    """
    if judge is None or judge.path.samefile(store.path):
        judge = store
    _check_inputs(store, dictionary, judge)
    if terms is None:
        terms = from_main_process(lambda: vocabulary(store.sample_batches(SAMPLE_BATCH)))
    device = resolve_device(device)
    dictionary = dictionary.to(device).eval().requires_grad_(False)
    sizes = sorted({*SWEEP, top_m})
    pictures = Pictures.of(store)
    found = collect(
        store,
        dictionary,
        judge,
        terms,
        pictures,
        kept=max(*sizes, exemplars),
        batch_size=batch_size,
        seed=seed,
        replicates=replicates,
        device=device,
        progress=progress,
    )
    agreeing, chance_names = collect_agreement(
        store,
        dictionary,
        from_main_process(lambda: found.dominance.means.cpu()),
        terms,
        pictures,
        seed=seed,
        replicates=replicates,
        device=device,
        progress=progress,
    )

    def finish() -> tuple[SpaceConfig, pa.Table, pa.Table]:
        scores = found.dominance.scores(min_pairs)
        classes = {
            rule: classify(scores.mds, scores.ci_low, scores.ci_high, rule)
            for rule in ("relative", "fixed")
        }
        monosemanticity = found.monosemanticity.scores()
        if not judge.config.shared_space:
            monosemanticity = monosemanticity.without_cross()
        tops_by_m = {m: top_scores(found.best, judge, m, seed) for m in sizes}
        relative = classes["relative"].names
        agreement = agreeing.scores(min_pairs)
        name_floor = naming_floor(chance_names, scores.mds, pictures.design_effect(len(store)))
        names = name_features(found.naming, scores.mds, relative.tolist(), name_floor)
        config = SpaceConfig(
            encoder=store.config.encoder,
            encoder_fingerprint=store.config.encoder_fingerprint,
            dictionary=dataclasses.asdict(dictionary.config),
            dictionary_fingerprint=dictionary.fingerprint(),
            pairs=store.config.pairs,
            pairs_fingerprint=store.config.pairs_fingerprint,
            pair_count=len(store),
            store_fingerprint=store.fingerprint,
            judge=judge.config.encoder,
            judge_fingerprint=judge.config.encoder_fingerprint,
            judge_independent=not same_encoder(
                judge.config.encoder_fingerprint, store.config.encoder_fingerprint
            ),
            min_pairs=min_pairs,
            top_m=top_m,
            replicates=replicates,
            seed=seed,
            dead=float((scores.active_pairs == 0).mean()),
            classes={rule: _class_record(result, agreement) for rule, result in classes.items()},
            floors=_floors(tops_by_m[top_m], monosemanticity)
            | jsonable({"agreement": agreement.mean_floor, "name": name_floor}),
            skipped=store.config.skipped_reasons,
            captions_cut=store.config.captions_cut,
            angles=near_angles(store),
            class_means=class_means(
                all_measures(tops_by_m.values(), monosemanticity, agreement), relative, seed=seed
            ),
        )
        similar = tops_by_m[top_m].similar
        table = feature_table(scores, classes, agreement, similar, monosemanticity, names)
        return config, table, exemplar_table(found.best, exemplars, store, source)

    config, table, shown = from_main_process(finish)
    return FeatureSpace(config, dictionary, table, shown, device=device)


def _check_inputs(store: ActivationStore, dictionary: Dictionary, judge: ActivationStore) -> None:
    """Raise UserError where the inputs don't belong together."""
    made_for = dictionary.config.encoder_fingerprint
    if made_for and not same_encoder(made_for, store.config.encoder_fingerprint):
        raise UserError(
            f"{store.path}: holds embeddings of {store.config.encoder}, but the dictionary was "
            f"fitted on {dictionary.config.encoder}; fit one on this store"
        )
    if dictionary.config.dim != store.dim:
        raise UserError(
            f"{store.path}: embeddings of {store.dim} dimensions, but the dictionary takes "
            f"{dictionary.config.dim}; fit one on this store"
        )
    if len(store) == 0:
        raise UserError(f"{store.path}: holds no pairs; extract some first")
    if store.config.uncaptioned:
        raise UserError(
            f"{store.path}: {store.config.uncaptioned} pairs have no caption, so nothing can be "
            "said about texts; extract pairs with captions"
        )
    if judge is not store and not same_pairs(store, judge):
        raise UserError(
            f"{judge.path}: the judge's pairs are not those of {store.path}, row by row; extract "
            "both stores from the same pairs"
        )


def _floors(top: TopScores, monosemanticity: Monosemanticity) -> dict[str, float | None]:
    floors = {
        "ms_image": monosemanticity.floor_image,
        "ms_text": monosemanticity.floor_text,
        "ms_cross": monosemanticity.floor_cross,
    }
    floors |= {f"embsim_{modality}": floor for modality, floor in top.embsim_floor.items()}
    floors |= {f"winrate_{modality}": floor for modality, floor in top.winrate_floor.items()}
    return jsonable(floors)


def _class_record(classes: Classes, agreement: Agreement) -> dict[str, Any]:
    cross_modal = classes.names == CROSS_MODAL
    counts = {name: int((classes.names == name).sum()) for name in CLASSES}
    return jsonable(
        {
            "low": float(classes.low),
            "high": float(classes.high),
            "counts": counts,
            "uncertain": int(classes.uncertain.sum()),
            "shared": int((cross_modal & agreement.shared).sum()),
        }
    )
