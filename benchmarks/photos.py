"""Benchmark of the world of photographs: retrieval, the natural experiment, garments.

    python -m benchmarks.photos --out runs/benchmark-photos.json

The natural experiment: the same pictures with alt text, which says what can be seen, and with the
context printed under them, which mostly says what cannot. Scored on pictures that the encoder's
heads never saw, with dictionaries of several seeds fitted on the pictures that they saw; the
intervals are over seeds and pairs. The heads of `photos` were trained with alt texts alone: what
the experiment finds is true of that encoder. Garments are told apart on photographers who are not
in training; the intervals are over photographers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import Result, estimate_row, mean_row, options, run_sections
from features.bootstrap import Estimate, percentile_interval
from features.dictionary import TrainConfig, fit_dictionary
from features.embedded.build_photos import garment_text
from features.embedded.evaluate import embed_pairs, evaluate_photos
from features.embedded.photos import PhotoPairs
from features.encoders.encoder import Encoder
from features.modality import FIXED_BOUNDS
from features.space.space import FeatureSpace
from features.store.store import StoreConfig
from features.store.write import sample_table, write_store
from mms_apps.attributes.estimators import Activations, LinearProbe, SparseProbe, zero_shot

SECTIONS = ("retrieval", "natural", "garments")
KINDS = {"alt": "text", "context": "context"}
DICTIONARY = TrainConfig(kind="topk", features=256, k=8, steps=1500)
SEEDS = 5
REPLICATES = 400
MIN_PAIRS = 10
SHIFTS = range(1, 21)
FOLDS = 5
SPARSE = (10, 20, 30, 50, 100)
"""Features of the sparse probes; the row without a number has 30."""
FEWEST_GARMENTS = 10
"""Of a photographer whose own accuracy is told."""


def retrieval_rows(encoder: Encoder, seed: int) -> list[Result]:
    """Among the 150 photographs held out."""
    rows = evaluate_photos(encoder).items()
    return [mean_row(name, hits.astype(float), "share", seed) for name, hits in rows]


def agreement(image: Tensor, text: Tensor, weights: Tensor) -> Tensor:
    """The weighted Jaccard index over the pairs of both activations, each over its mean:
    `[features]`, NaN where neither is ever active.

    Args:
        image: activations `[pairs, features]`, not negative.
        text: of the same pairs, `[pairs, features]`.
        weights: of the pairs, `[pairs]`.
    """
    u, v = (a / (weights @ a).clamp(min=1e-12) for a in (image, text))
    return (weights @ torch.minimum(u, v)) / (weights @ torch.maximum(u, v))


def mds(image: Tensor, text: Tensor, weights: Tensor) -> Tensor:
    """The Modality Dominance Score: `[features]`; arguments as of `agreement`."""
    total = image + text
    ratio = torch.where(total > 0, image / total, 0.0)
    return (weights @ ratio) / (weights @ (total > 0).double())


@dataclass(frozen=True)
class Activated:
    """One dictionary's activations of the same pictures and their texts, `[pairs, features]`."""

    image: Tensor
    texts: dict[str, Tensor]

    def scored(self) -> dict[str, Tensor]:
        """Whether a feature has enough active pairs, by kind of text: `[features]` bool."""
        return {
            kind: ((self.image > 0) | (text > 0)).sum(0) >= MIN_PAIRS
            for kind, text in self.texts.items()
        }

    def figures(self, weights: Tensor) -> dict[str, float]:
        """The experiment's figures under the pairs' weights `[pairs]`."""
        found, both = {}, {}
        low, high = FIXED_BOUNDS
        scored = self.scored()
        for kind, text in self.texts.items():
            values = agreement(self.image, text, weights)
            score = mds(self.image, text, weights)[scored[kind]]
            found[f"agreement/{kind}"] = values[scored[kind]].nanmean().item()
            inside = (score >= low) & (score <= high)
            found[f"cross_share/{kind}"] = inside.double().mean().item()
            both[kind] = values[scored["alt"] & scored["context"]]
        found["agreement_difference"] = (both["alt"] - both["context"]).nanmean().item()
        found["cross_share_difference"] = found["cross_share/alt"] - found["cross_share/context"]
        return found

    def floors(self) -> dict[str, float]:
        """The agreement with the texts of other pairs, and how many features lie above their
        own: the 97.5 % quantile over `SHIFTS`."""
        found = {}
        weights = torch.ones(len(self.image), dtype=torch.float64)
        for kind, text in self.texts.items():
            chance = [agreement(self.image, text.roll(7 * s, 0), weights) for s in SHIFTS]
            table = torch.stack(chance)[:, self.scored()[kind]]  # [shifts, scored features]
            own = agreement(self.image, text, weights)[self.scored()[kind]]
            found[f"agreement_floor/{kind}"] = table.nanmean().item()
            above = own > table.quantile(0.975, dim=0)
            found[f"above_floor/{kind}"] = above.double().mean().item()
        return found


def natural_rows(encoder: Encoder, work: Path, seed: int, seeds: int = SEEDS) -> list[Result]:
    """The natural experiment."""
    seen = _with_both_texts(encoder, PhotoPairs("train"))
    pictures = [_with_both_texts(encoder, PhotoPairs(split)) for split in ("scored", "heldout")]
    image = torch.cat([p["image"] for p in pictures])
    texts = {kind: torch.cat([p[kind] for p in pictures]) for kind in KINDS}
    twice = torch.cat([seen["image"]] * 2)
    both = torch.cat([seen[kind] for kind in KINDS])
    ids = [str(number) for number in range(len(twice))]
    config = StoreConfig(
        encoder=encoder.id,
        encoder_fingerprint=encoder.fingerprint,
        pairs="photos:train",
        pairs_fingerprint=PhotoPairs("train").fingerprint(),
        dim=encoder.dim,
    )
    store = write_store(
        work / "store", twice, both, sample_table(ids, [["text"]] * len(ids)), config
    )
    activated = []
    for number in range(seeds):
        settings = {**vars(DICTIONARY), "seed": seed + number}
        dictionary = fit_dictionary(
            store, TrainConfig(**settings), work / f"dictionary-{number}", progress=False
        )
        with torch.inference_mode():
            activated.append(
                Activated(
                    dictionary.encode(image, "image").double(),
                    {
                        kind: dictionary.encode(text, "text").double()
                        for kind, text in texts.items()
                    },
                )
            )
    return natural_results(activated, seed)


def natural_results(activated: Sequence[Activated], seed: int) -> list[Result]:
    """Means over dictionaries, with intervals from a bootstrap over dictionaries and pairs; what
    stands on the floor has its range over dictionaries."""
    pairs = len(activated[0].image)
    rng = np.random.default_rng(seed)
    even = torch.ones(pairs, dtype=torch.float64)
    values = _means([one.figures(even) for one in activated])
    replicates = []
    for _ in range(REPLICATES):
        counts = np.bincount(rng.integers(pairs, size=pairs), minlength=pairs)
        weights = torch.from_numpy(counts).double()
        drawn = rng.integers(len(activated), size=len(activated))
        replicates.append(_means([activated[number].figures(weights) for number in drawn]))
    rows = []
    for name, value in values.items():
        drawn_values = np.array([one[name] for one in replicates])
        # Pairs drawn twice make a feature's MDS more extreme: the bootstrap's bias is taken out.
        low, high = percentile_interval(drawn_values - np.median(drawn_values) + value)
        unit = "share" if name.startswith("cross_share") else "agreement"
        rows.append(estimate_row(f"natural/{name}", Estimate(value, low, high), pairs, unit))
    floors = [one.floors() for one in activated]
    for name in floors[0]:
        each = [one[name] for one in floors]
        estimate = Estimate(float(np.mean(each)), min(each), max(each))
        rows.append(estimate_row(f"natural/{name}", estimate, len(each), "range over seeds"))
    return rows


def garment_rows(space: FeatureSpace, seed: int) -> list[Result]:
    """Accuracy on garments of photographers who are not in training."""
    from sklearn.model_selection import GroupKFold

    images, _, attributes = embed_pairs(space.encoder, PhotoPairs("garments"))
    embeddings = images.cpu().numpy()
    active = Activations(space, "image").transform(embeddings)
    labels = np.array([str(a["label"]) for a in attributes])
    senders = np.array([str(a["sender"]) for a in attributes])
    kids = np.array([str(a["kids"]) for a in attributes])
    classes = sorted(set(labels))
    prompts = {c: [garment_text(c, who) for who in ("adult", "child")] for c in classes}
    chosen = zero_shot(space.encoder, prompts)
    hits = {"zeroshot": chosen.predict(embeddings) == labels}
    probes: dict[str, tuple[LinearProbe | SparseProbe, np.ndarray]] = {
        "linear": (LinearProbe(strength=1.0), embeddings),
        **{f"sparse_{n}": (SparseProbe(n, strength=1.0), active) for n in SPARSE},
    }
    for name, (probe, inputs) in probes.items():
        hits[name] = np.zeros(len(labels), bool)
        for train, test in GroupKFold(FOLDS).split(inputs, labels, senders):
            probe.fit(inputs[train], labels[train])
            hits[name][test] = probe.predict(inputs[test]) == labels[test]
    hits["sparse"] = hits.pop("sparse_30")
    return [row for name, hit in hits.items() for row in _accuracy(name, hit, senders, kids, seed)]


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


def _with_both_texts(encoder: Encoder, source: PhotoPairs) -> dict[str, Tensor]:
    """Embeddings of the pictures that have both texts: `image`, and one entry a kind of text."""
    images, alt, attributes = embed_pairs(encoder, source)
    kept = [n for n, a in enumerate(attributes) if a["kind"] == "textbook" and a["context"]]
    contexts = [str(attributes[n]["context"]) for n in kept]
    context = [encoder.encode_texts(contexts[n : n + 64]) for n in range(0, len(contexts), 64)]
    return {
        "image": images[kept].cpu(),
        "alt": alt[kept].cpu(),
        "context": torch.cat(context).cpu(),
    }


def _means(records: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in records])) for name in records[0]}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--space", default="photos", help="folder, hub id or photos")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    arguments = parser.parse_args()
    space = FeatureSpace.load(arguments.space, device="cpu")
    seed = arguments.seed
    with tempfile.TemporaryDirectory() as scratch:
        sections: dict[str, Callable[[], list[Result]]] = {
            "retrieval": lambda: retrieval_rows(space.encoder, seed),
            "natural": lambda: natural_rows(space.encoder, Path(scratch), seed),
            "garments": lambda: garment_rows(space, seed),
        }
        run_sections([sections[name] for name in arguments.only], arguments.out, seed=seed)


if __name__ == "__main__":
    main()
