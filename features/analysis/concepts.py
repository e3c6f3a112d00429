"""Which modality supports a concept, how well, and where better data would help most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from features.bootstrap import auroc_interval
from features.dictionary import Dictionary
from features.encoders.fingerprint import same_encoder
from features.errors import UserError
from features.modality import CROSS_MODAL, MODALITIES
from features.scores.terms import OF_ATTRIBUTE, pair_terms, phrases_among
from features.space.space import FeatureSpace
from features.store.pictures import pictures_shown
from features.store.store import ATTRIBUTE, SAMPLE_BATCH, ActivationStore

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

SCHEMA = 2
MIN_PAIRS = 20
"""A concept is scored where at least so many pairs have it and so many don't, each of a picture of
its own."""
MAX_PAIRS = 20_000
"""Of more pairs a random sample is taken, which bounds the memory."""
GOOD = 0.9
"""A modality supports a concept well where its AUROC's interval lies at or above this."""
FOLDS = 5
CARRIERS = 5
SOURCES = ("image", "text", "both")
SOURCE_NAMES = {"image": "images", "text": "texts", "both": "both together"}
TOO_FEW = "too few pairs to say"
"""The verdict where an interval holds GOOD, so that more pairs could turn it either way."""


@dataclass(frozen=True)
class Support:
    """AUROC with which features tell the pairs that have a concept from the others, with its 95%
    interval over the pairs."""

    auroc: float
    low: float
    high: float

    @property
    def good(self) -> bool:
        """It surely reaches GOOD."""
        return self.low >= GOOD

    @property
    def bad(self) -> bool:
        """It surely does not."""
        return self.high < GOOD

    @property
    def open(self) -> bool:
        """There are too few pairs to say."""
        return not (self.good or self.bad)


@dataclass(frozen=True)
class Concept:
    """One concept, and what carries it.

    labels_from: "captions" where a pair has the concept if its captions (or tags) say it, so that
        texts have it by definition; "attribute" where an attribute says so.
    support: by "image", "text" and "both" (of each pair's image and text together); None where too
        few pairs have the concept, or too few lack it.
    carriers: the features that single out its pairs best, of equally good cross-modal ones those
        that are shared first: feature, name, class, mds, agreement, shared, and auroc by modality.
    verdict: where better data would help most: "images", "captions", "both", "neither", or
        TOO_FEW.
    advice: the verdict, in words.
    """

    name: str
    labels_from: str
    positives: int
    pairs: int
    support: dict[str, Support] | None
    carriers: list[dict[str, Any]]
    verdict: str
    advice: str


def attribute_concepts(store: ActivationStore, attribute: str) -> list[str]:
    """A concept for each value of an attribute that occurs in at least MIN_PAIRS pairs.

    Raises:
        UserError: the pairs have no such attribute, or no value is so common.
    """
    store.require_attributes([attribute])
    column = ATTRIBUTE + attribute
    counts: dict[str, int] = {}
    for batch in store.sample_batches(SAMPLE_BATCH, columns=[column]):
        for value in batch[column].to_pylist():
            if value:
                counts[value] = counts.get(value, 0) + 1
    common = sorted(value for value, count in counts.items() if count >= MIN_PAIRS)
    if not common:
        raise UserError(f"{attribute}: no value of it occurs in {MIN_PAIRS} pairs or more")
    return [f"{attribute}: {value}" for value in common]


def concept_support(
    space: FeatureSpace,
    store: ActivationStore,
    concepts: Sequence[str],
    *,
    max_pairs: int = MAX_PAIRS,
    seed: int = 0,
    progress: bool = True,
) -> list[Concept]:
    """What carries each concept.

    AUROCs are those of a logistic regression on the features' activations, cross-validated. Pairs
    of the same picture are in one fold, and are drawn together for the intervals.

    Args:
        store: pairs encoded by the space's encoder, with their captions and attributes.
        concepts: words or phrases of captions, tags, or "attribute: value".
        seed: of the sample, the folds and the intervals.

    Raises:
        UserError: the store is of another encoder.
    """
    from rich.progress import track

    if not same_encoder(space.config.encoder_fingerprint, store.config.encoder_fingerprint):
        raise UserError(
            f"{store.path}: embeddings of {store.config.encoder}, but the space's features belong "
            f"to {space.config.encoder}; extract the pairs with that one"
        )
    rng = np.random.default_rng(seed)
    rows = np.arange(len(store))
    if len(rows) > max_pairs:
        rows = np.sort(rng.choice(len(store), max_pairs, replace=False))
    labels = _labels(store, rows, concepts)  # [pairs, concepts]
    pictures = pictures_shown(store, rows)  # [pairs]
    activations = [_activations(space.dictionary, store, rows, m) for m in (0, 1)]
    single = [feature_auroc(a, labels) for a in activations]  # [concepts, features] each
    table = space.features.to_pylist()
    found = []
    for number, name in enumerate(
        track(concepts, description="probing concepts", disable=not progress)
    ):
        truth = labels[:, number]
        positives = int(truth.sum())
        support = None
        if min(len(np.unique(pictures[having])) for having in (truth, ~truth)) >= MIN_PAIRS:
            support = _support(activations, truth, pictures, seed)
        verdict, advice = _advice(support, positives, len(truth), OF_ATTRIBUTE in name)
        found.append(
            Concept(
                name=name,
                labels_from="attribute" if OF_ATTRIBUTE in name else "captions",
                positives=positives,
                pairs=len(truth),
                support=support,
                carriers=_carriers(table, [auroc[number] for auroc in single])
                if support is not None
                else [],
                verdict=verdict,
                advice=advice,
            )
        )
    return found


def feature_auroc(activations: csr_matrix, labels: np.ndarray) -> np.ndarray:
    """AUROC of each feature's activation for each concept: `[concepts, features]`; NaN for a
    concept that all pairs have, or none. Ties count one half.

    Args:
        activations: non-negative `[pairs, features]`.
        labels: `[pairs, concepts]` bool.
    """
    from scipy.sparse import csc_matrix
    from scipy.stats import rankdata

    pairs, features = activations.shape
    columns = csc_matrix(activations)
    inactive = pairs - np.diff(columns.indptr)  # [features]
    inactive_rank = (inactive + 1) / 2  # [features]
    ranks = columns.copy().astype(float)
    for feature in range(features):
        place = slice(columns.indptr[feature], columns.indptr[feature + 1])
        own = rankdata(columns.data[place]) + inactive[feature]
        ranks.data[place] = own - inactive_rank[feature]
    positives = labels.sum(0)[:, None].astype(float)  # [concepts, 1]
    rank_sums = (ranks.T @ labels.astype(float)).T + positives * inactive_rank
    with np.errstate(divide="ignore", invalid="ignore"):
        return (rank_sums - positives * (positives + 1) / 2) / (positives * (pairs - positives))


def _labels(store: ActivationStore, rows: np.ndarray, concepts: Sequence[str]) -> np.ndarray:
    """Which of the rows have which concept: `[rows, concepts]` bool."""
    phrases = phrases_among(concepts)
    places = {concept: place for place, concept in enumerate(concepts)}
    labels = np.zeros((len(rows), len(concepts)), dtype=bool)
    attributes = [name for name in store.sample_columns if name.startswith(ATTRIBUTE)]
    columns = ["captions", *attributes]
    for start in range(0, len(rows), SAMPLE_BATCH):
        samples = store.sample_rows(rows[start : start + SAMPLE_BATCH].tolist(), columns)
        found, which = pair_terms(samples, phrases).among(places)
        labels[start + found, which] = True
    return labels


@torch.no_grad()
def _activations(
    dictionary: Dictionary, store: ActivationStore, rows: np.ndarray, modality: int
) -> csr_matrix:
    """|activations| of one modality, `[rows, features]`."""
    from scipy.sparse import csr_matrix, vstack

    parts = [csr_matrix((0, dictionary.config.features), dtype=np.float32)]
    device = dictionary.means.device
    for start in range(0, len(rows), SAMPLE_BATCH):
        batch = torch.from_numpy(rows[start : start + SAMPLE_BATCH])
        x = store.rows(batch)[modality].to(device)
        code = dictionary.encode_sparse(x, MODALITIES[modality])
        values, indices = code.values.cpu().numpy(), code.indices.cpu().numpy()
        at = np.repeat(np.arange(len(x)), values.shape[1])
        shape = (len(x), dictionary.config.features)
        part = csr_matrix((np.abs(values).ravel(), (at, indices.ravel())), shape=shape)
        part.eliminate_zeros()
        parts.append(part)
    return vstack(parts, format="csr")


def _support(
    activations: Sequence[csr_matrix], truth: np.ndarray, pictures: np.ndarray, seed: int
) -> dict[str, Support]:
    """AUROC by modality, and of both together, all over the same folds.

    Args:
        truth: `[pairs]` bool.
        pictures: numbers of what the pairs show, `[pairs]`.
    """
    from scipy.sparse import hstack
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MaxAbsScaler

    probe = make_pipeline(MaxAbsScaler(), LogisticRegression(max_iter=1000))
    several = len(np.unique(pictures)) < len(pictures)
    kind = StratifiedGroupKFold if several else StratifiedKFold
    splits = kind(FOLDS, shuffle=True, random_state=seed)
    folds = list(splits.split(pictures, truth, pictures if several else None))
    inputs = (*activations, hstack(activations, format="csr"))
    scores = [
        cross_val_predict(probe, x, truth, cv=folds, method="decision_function") for x in inputs
    ]
    return {
        source: Support(
            float(roc_auc_score(truth, score)),
            *auroc_interval(truth, score, groups=pictures, seed=seed),
        )
        for source, score in zip(SOURCES, scores, strict=True)
    }


def _carriers(table: list[dict[str, Any]], aurocs: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """The features with the best AUROC in either modality; of cross-modal ones that are as good to
    two digits, shared ones first."""
    best = np.nan_to_num(np.maximum(*aurocs)).round(2)
    unshared = [row["class_fixed"] == CROSS_MODAL and not row["shared"] for row in table]
    chosen = np.lexsort((-np.maximum(*aurocs), unshared, -best))[:CARRIERS].tolist()
    return [
        {
            "feature": feature,
            "name": table[feature]["name"],
            "class": table[feature]["class_fixed"],
            "mds": table[feature]["mds"],
            "agreement": table[feature]["agreement"],
            "shared": table[feature]["shared"],
            "auroc": {m: float(a[feature]) for m, a in zip(MODALITIES, aurocs, strict=True)},
        }
        for feature in chosen
    ]


def _advice(
    support: dict[str, Support] | None, positives: int, pairs: int, independent: bool
) -> tuple[str, str]:
    """The verdict, and its reason in words."""
    if support is None:
        return TOO_FEW, (
            f"{positives} of {pairs} pairs have it; at least {MIN_PAIRS} must have it and "
            f"{MIN_PAIRS} must not, each of a picture of its own. Add pairs before anything else."
        )
    image, text, both = (support[source] for source in SOURCES)
    by_definition = (
        "" if independent else " The labels are from the captions, so texts have it by definition."
    )
    if image.open or text.open:
        return TOO_FEW, _open_in_words(support, positives, pairs) + by_definition
    if image.good and text.good:
        return "neither", "Images and texts each carry it well; more data would change little."
    if text.good:
        return "images", (
            "Texts carry it well, images do not: invest in images that show it clearly, and more "
            "kinds of them." + by_definition
        )
    if image.good:
        return "captions", "Images carry it well, texts do not: invest in captions that say it."
    if both.open:
        return TOO_FEW, _open_in_words(support, positives, pairs) + by_definition
    if both.good:
        return "both", (
            "Each modality carries a part of it, and only together they carry it well: better "
            "images and better captions would each help." + by_definition
        )
    weaker = "images" if image.high < text.low else "captions" if text.high < image.low else None
    first = f" The {weaker} are the weaker part: begin there." if weaker else ""
    return "both", (
        "Neither images nor texts carry it well: invest in both." + first + by_definition
    )


def _open_in_words(support: dict[str, Support], positives: int, pairs: int) -> str:
    """What is known and what is open where some interval holds GOOD."""

    def named(chosen: list[str]) -> str:
        return " and ".join(SOURCE_NAMES[source] for source in chosen)

    known = [
        f"{named(chosen).capitalize()} {verb}."
        for verb, chosen in (
            ("carry it well", [s for s in SOURCES if support[s].good]),
            ("do not carry it well", [s for s in SOURCES if support[s].bad]),
        )
        if chosen
    ]
    undecided = [source for source in SOURCES if support[source].open]
    intervals = ", ".join(f"{support[s].low:.2f} to {support[s].high:.2f}" for s in undecided)
    rarer = min(positives, pairs - positives)
    return " ".join(
        [
            *known,
            f"Whether {named(undecided)} carry it well is open: the AUROC of {GOOD} lies within "
            f"{intervals}, with {rarer} pairs of the rarer kind. Add pairs of that kind and ask "
            "again before you invest in either.",
        ]
    )
