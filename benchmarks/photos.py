"""Benchmark of the world of photographs: retrieval, natural experiment, names, concepts, garments.

    python -m benchmarks.photos --out runs/benchmark-photos.json

The heads of `photos` were trained with alt texts alone: what is found is true of that encoder.
Garments are told apart on photographers who are not in training; the intervals are over
photographers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import GridSearchCV, GroupKFold

from benchmarks.common import Result, estimate_row, mean_row, options, run_sections
from benchmarks.photos_names import concept_rows, name_rows
from benchmarks.photos_natural import natural_rows
from features.bootstrap import Estimate, percentile_interval
from features.dictionary import TrainConfig, fit_dictionary
from features.embedded.build_photos import garment_text
from features.embedded.evaluate import evaluate_photos
from features.embedded.photos import PhotoPairs
from features.encoders.encoder import Encoder
from features.space.space import FeatureSpace
from features.store.extract import extract
from mms_apps.attributes.estimators import (
    STRENGTHS,
    Activations,
    LinearProbe,
    SparseProbe,
    zero_shot,
)

SECTIONS = ("retrieval", "natural", "names", "concepts", "garments")
FOLDS = 5
INNER_FOLDS = 3
SPARSE = (10, 20, 30, 50, 100, 256)
"""Features of the sparse probes; the row without a number has 30."""
WIDE = TrainConfig(kind="topk", features=512, k=32)
"""A dictionary that leaves less of the embedding out than the space's own."""
WIDE_SPARSE = (30, 100, 256, 512)
FEWEST_GARMENTS = 10
"""Of a photographer whose own accuracy is told."""


def retrieval_rows(encoder: Encoder, seed: int) -> list[Result]:
    """Among the 150 photographs held out."""
    rows = evaluate_photos(encoder).items()
    return [mean_row(name, hits, "share", seed) for name, hits in rows]


def garment_rows(space: FeatureSpace, work: Path, seed: int) -> list[Result]:
    """Accuracy on garments of photographers who are not in training."""
    store = extract(PhotoPairs(), space.encoder, work / "all", progress=False)
    wide = fit_dictionary(store, WIDE, work / "wide", device="cpu", progress=False)
    samples = store.samples()
    rows = np.flatnonzero(np.array(samples["attribute.kind"].to_pylist()) == "garment")
    images = store.rows(rows.tolist())[0]
    labels, senders, kids = (
        np.array(samples[f"attribute.{name}"].to_pylist())[rows]
        for name in ("label", "sender", "kids")
    )
    with torch.inference_mode():
        wide_active = wide.encode(images, "image").numpy()
    embeddings = images.numpy()
    active = Activations(space, "image").transform(embeddings)
    classes = sorted(set(labels.tolist()))
    prompts = {c: [garment_text(c, who) for who in ("adult", "child")] for c in classes}
    hits = {
        "zeroshot": zero_shot(space.encoder, prompts).predict(embeddings) == labels,
        "linear": probe_hits(embeddings, labels, senders)[None],
        **{f"sparse_{n}": h for n, h in probe_hits(active, labels, senders, SPARSE).items()},
        **{
            f"sparse_wide_{n}": h
            for n, h in probe_hits(wide_active, labels, senders, WIDE_SPARSE).items()
        },
    }
    results = []
    for name, own in hits.items():
        if name.startswith("sparse"):
            less = hits["linear"].astype(float) - own
            row = f"garments/linear_less_{name}"
            results.append(_by_photographer(row, less, senders, seed))
    hits["sparse"] = hits.pop("sparse_30")
    for name, own in hits.items():
        results += _accuracy(name, own, senders, kids, seed)
    return results


def probe_hits(
    inputs: np.ndarray,
    labels: np.ndarray,
    senders: np.ndarray,
    sizes: tuple[int | None, ...] = (None,),
) -> dict[int | None, np.ndarray]:
    """Whether probes that never saw a garment's photographer tell it right, `[n]` bool, by the
    number of their features; None takes all inputs. The strength of the penalty is chosen within
    the training photographers, by folds that share none, with all inputs."""
    hits: dict[int | None, np.ndarray] = {size: np.zeros(len(labels), bool) for size in sizes}
    for train, test in GroupKFold(FOLDS).split(inputs, labels, senders):
        inner = GroupKFold(INNER_FOLDS)
        search = GridSearchCV(LinearProbe(), {"strength": STRENGTHS}, cv=inner)
        search.fit(inputs[train], labels[train], groups=senders[train])
        strength = search.best_params_["strength"]
        for size in sizes:
            probe = (
                LinearProbe(strength=strength)
                if size is None
                else SparseProbe(size, strength=strength)
            )
            probe.fit(inputs[train], labels[train])
            hits[size][test] = probe.predict(inputs[test]) == labels[test]
    return hits


def _accuracy(
    name: str, hits: np.ndarray, senders: np.ndarray, kids: np.ndarray, seed: int
) -> list[Result]:
    """The accuracy, that of adults' and of children's garments, and its spread over
    photographers: the median, with the 10 % and 90 % quantiles as the interval."""
    rows = [_by_photographer(f"garments/{name}", hits, senders, seed)]
    for kind in ("adult", "child"):
        mine = kids == kind
        rows.append(_by_photographer(f"garments/{name}/{kind}", hits[mine], senders[mine], seed))
    people, counts = np.unique(senders, return_counts=True)
    shares = [hits[senders == p].mean() for p in people[counts >= FEWEST_GARMENTS]]
    if shares:
        low, middle, high = np.quantile(shares, [0.1, 0.5, 0.9])
        spread = Estimate(float(middle), float(low), float(high))
        rows.append(
            estimate_row(f"garments/{name}/photographers", spread, len(shares), "10 to 90 %")
        )
    return rows


def _by_photographer(name: str, hits: np.ndarray, senders: np.ndarray, seed: int) -> Result:
    """The share of hits, with an interval from a bootstrap over photographers."""
    people, index = np.unique(senders, return_inverse=True)
    right, all_of = np.bincount(index, hits), np.bincount(index)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(people), size=(1000, len(people)))
    shares = right[drawn].sum(1) / all_of[drawn].sum(1)
    low, high = percentile_interval(shares)
    return estimate_row(name, Estimate(float(hits.mean()), low, high), len(hits), "accuracy")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--space", default="photos", help="folder, hub id or photos")
    parser.add_argument("--work", type=Path, help="folder in which stores and dictionaries stay")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    arguments = parser.parse_args()
    space = FeatureSpace.load(arguments.space, device="cpu")
    seed = arguments.seed
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        sections: dict[str, Callable[[], list[Result]]] = {
            "retrieval": lambda: retrieval_rows(space.encoder, seed),
            "natural": lambda: natural_rows(space, work / "natural", seed),
            "names": lambda: name_rows(space, seed),
            "concepts": lambda: concept_rows(space, work, seed),
            "garments": lambda: garment_rows(space, work, seed),
        }
        run_sections([sections[name] for name in arguments.only], arguments.out, seed=seed)


if __name__ == "__main__":
    main()
