"""Names of the features of photographs judged against alt texts of pictures that named nothing, and
what images against texts carry each concept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.common import Result, estimate_row, mean_row
from features.analysis.concepts import attribute_concepts, concept_support
from features.bootstrap import Estimate
from features.embedded.build_photos_space import words_of_captions
from features.embedded.photos import PhotoPairs
from features.modality import CROSS_MODAL, IMAGE_DOMINANT, TEXT_DOMINANT
from features.scores.words import holds, normalised
from features.space.space import FeatureSpace
from features.store.extract import extract

TOP = 10
"""Pictures of a feature whose alt texts are looked at."""
PERMUTATIONS = 400
CONCEPTS = 24
"""Words, the commonest of the alt texts, whose carriers are told."""


def said_at_top(activations: np.ndarray, said: np.ndarray) -> np.ndarray:
    """By feature, the share of its `TOP` most activating pictures whose text holds its name: NaN
    where fewer than two pictures activate it: `[features]`.

    Args:
        activations: `[pictures, features]`.
        said: whether a picture's text holds a feature's name, `[pictures, features]` bool.
    """
    order = np.argsort(-activations, axis=0, kind="stable")[:TOP]  # [TOP, features]
    active = np.take_along_axis(activations, order, 0) > 0
    hits = np.take_along_axis(said, order, 0) & active
    count = active.sum(0)
    return np.where(count >= 2, hits.sum(0) / np.maximum(count, 1), np.nan)


def name_rows(space: FeatureSpace, seed: int) -> list[Result]:
    """How often the name of a feature stands in the texts of the held-out pictures that activate it
    most, beside the same with texts of other pictures; intervals over features."""
    source = PhotoPairs("heldout")
    pictures = [source.image(n) for n in range(source.total())]
    with torch.inference_mode():
        activations = space.encode_images(pictures).double().numpy()  # [pictures, features]
    names = space.features["name"].to_pylist()
    classes = np.array(space.features["class"].to_pylist())
    named = np.flatnonzero([bool(name) for name in names])
    rng = np.random.default_rng(seed)
    results = []
    for kind, column in (("alt", "text"), ("context", "context")):
        texts = [normalised(row[column]) for row in source.rows]
        said = np.array([[_says(t, names[f]) for f in named] for t in texts])  # [pictures, named]
        own = said_at_top(activations[:, named], said)
        known = np.isfinite(own)
        chance = [
            np.nanmean(said_at_top(activations[:, named], said[rng.permutation(len(said))]))
            for _ in range(PERMUTATIONS)
        ]
        results.append(mean_row(f"names/{kind}", own[known], "share", seed))
        low, high = np.quantile(chance, [0.025, 0.975])
        floor = Estimate(float(np.mean(chance)), float(low), float(high))
        results.append(estimate_row(f"names/{kind}_by_chance", floor, PERMUTATIONS, "share"))
        if kind == "alt":
            for name in (IMAGE_DOMINANT, CROSS_MODAL, TEXT_DOMINANT):
                mine = known & (classes[named] == name)
                results.append(mean_row(f"names/alt/{name}", own[mine], "share", seed))
    share = len(named) / len(names)
    results.append(Result("names/named", share, share, share, len(names), "share of features"))
    return results


def concept_rows(space: FeatureSpace, work: Path, seed: int) -> list[Result]:
    """AUROC with which the features of images, of alt texts, and of both tell the pictures that
    have a concept, on pictures that the heads never saw: for the commonest words of the alt texts,
    and for kinds and books, which no text has by definition."""
    store = extract(PhotoPairs("scored"), space.encoder, work / "scored", progress=False)
    concepts = [word for word in words_of_captions(store)][:CONCEPTS]
    for attribute in ("kind", "book"):
        concepts += attribute_concepts(store, attribute)
    results = []
    for found in concept_support(space, store, concepts, seed=seed, progress=False):
        for source, support in (found.support or {}).items():
            estimate = Estimate(support.auroc, support.low, support.high)
            name = f"concepts/{found.name}/{source}"
            unit = f"AUROC; better {found.verdict}"
            results.append(estimate_row(name, estimate, found.positives, unit))
    return results


def _says(text: str, name: str) -> bool:
    """Whether a text holds one of a name's terms."""
    return any(holds(text, normalised(term)) for term in name.split(", "))
