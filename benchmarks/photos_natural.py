"""The natural experiment: the same pictures with alt text, which says what can be seen, and with
the context printed under them, which mostly says what cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import Result, estimate_row
from features.bootstrap import Estimate, percentile_interval
from features.dictionary import TrainConfig, fit_dictionary
from features.embedded.evaluate import embed_pairs
from features.embedded.photos import PhotoPairs
from features.encoders.encoder import Encoder
from features.modality import FIXED_BOUNDS
from features.scores.agreement import Agreement, AgreementStatistics
from features.scores.dominance import DominanceStatistics
from features.scores.monosemanticity import MonosemanticityStatistics
from features.space.space import FeatureSpace
from features.store.store import StoreConfig
from features.store.write import sample_table, write_store

KINDS = {"alt": "text", "context": "context"}
DICTIONARY = TrainConfig(kind="topk", features=256, k=8, steps=1500)
SEEDS = 5
REPLICATES = 400
MIN_PAIRS = 10
CHANGES = 10
"""Features that are listed as those that change most."""
UNITS = {"agreement": "agreement", "ms_cross": "monosemanticity", "cross_share": "share"}


@dataclass(frozen=True)
class Pictures:
    """Unit embeddings of the same pictures, `image`, and of their texts by kind: `[pairs, dim]`."""

    image: Tensor
    texts: dict[str, Tensor]

    def taken(self, rows: Tensor) -> Pictures:
        """The pictures at `rows`, which may repeat."""
        return Pictures(self.image[rows], {kind: text[rows] for kind, text in self.texts.items()})


@dataclass(frozen=True)
class Activated:
    """One dictionary's activations of the same pictures and their texts, `[pairs, features]`, and
    the judge's embeddings of both."""

    image: Tensor
    texts: dict[str, Tensor]
    judge: Pictures

    def taken(self, rows: Tensor) -> Activated:
        """Those of the pictures at `rows`, which may repeat."""
        texts = {kind: text[rows] for kind, text in self.texts.items()}
        return Activated(self.image[rows], texts, self.judge.taken(rows))

    def scored(self) -> dict[str, np.ndarray]:
        """Whether a feature has enough active pairs, by kind of text: `[features]` bool."""
        return {
            kind: ((self.image > 0) | (text > 0)).sum(0).numpy() >= MIN_PAIRS
            for kind, text in self.texts.items()
        }

    def agreement(self, kind: str, *, floor: bool = False) -> Agreement:
        """Of images and one kind of texts; the floor is only known where it is asked for."""
        text = self.texts[kind]
        means = torch.stack([self.image.abs().mean(0), text.abs().mean(0)])
        statistics = AgreementStatistics(means, replicates=1)
        statistics.update(self.image, text)
        if floor:
            order = torch.randperm(len(text), generator=torch.Generator().manual_seed(0))
            statistics.update_chance(self.image[order], text[order])
        return statistics.scores(1)

    def mds(self, kind: str) -> np.ndarray:
        """The Modality Dominance Scores with one kind of texts: `[features]`."""
        statistics = DominanceStatistics(self.image.shape[1], replicates=1)
        statistics.update(self.image, self.texts[kind])
        return statistics.scores(1).mds

    def ms_cross(self, kind: str) -> tuple[np.ndarray, float]:
        """Cross-modal monosemanticity with one kind of texts, `[features]`, and its floor."""
        statistics = MonosemanticityStatistics(self.image.shape[1], self.judge.image.shape[1])
        embeddings = self.judge.image.double(), self.judge.texts[kind].double()
        statistics.update(self.image, self.texts[kind], *embeddings)
        found = statistics.scores()
        return found.ms_cross, found.floor_cross

    def figures(self, scored: dict[str, np.ndarray]) -> dict[str, float]:
        """The experiment's figures; differences are over features that both kinds of text score.

        Args:
            scored: of all pairs; replicates keep the features that these have.
        """
        low, high = FIXED_BOUNDS
        both = scored["alt"] & scored["context"]
        found: dict[str, float] = {}
        values: dict[tuple[str, str], np.ndarray] = {}
        for kind in self.texts:
            values["agreement", kind] = self.agreement(kind).agreement
            values["ms_cross", kind] = self.ms_cross(kind)[0]
            for name in ("agreement", "ms_cross"):
                found[f"{name}/{kind}"] = float(np.nanmean(values[name, kind][scored[kind]]))
            score = self.mds(kind)[scored[kind]]
            found[f"cross_share/{kind}"] = float(np.nanmean((score >= low) & (score <= high)))
        for name in ("agreement", "ms_cross"):
            difference = values[name, "alt"][both] - values[name, "context"][both]
            found[f"{name}_difference"] = float(np.nanmean(difference))
        found["cross_share_difference"] = found["cross_share/alt"] - found["cross_share/context"]
        return found

    def floors(self) -> dict[str, float]:
        """What texts of other pairs give, and how many features lie above their own floor."""
        found = {}
        for kind, scored in self.scored().items():
            agreement = self.agreement(kind, floor=True)
            found[f"agreement_floor/{kind}"] = float(np.nanmean(agreement.floor[scored]))
            found[f"above_floor/{kind}"] = float(agreement.shared[scored].mean())
            found[f"ms_cross_floor/{kind}"] = self.ms_cross(kind)[1]
        return found


def pictures_with_both(encoder: Encoder, splits: str) -> Pictures:
    """The textbook pictures of some splits, which have both texts."""
    images, alt, attributes = embed_pairs(encoder, PhotoPairs(splits))
    kept = [n for n, a in enumerate(attributes) if a["kind"] == "textbook" and a["context"]]
    contexts = [str(attributes[n]["context"]) for n in kept]
    context = [encoder.encode_texts(contexts[n : n + 64]) for n in range(0, len(contexts), 64)]
    texts = {"alt": alt[kept].cpu(), "context": torch.cat(context).cpu()}
    return Pictures(images[kept].cpu(), texts)


def natural_rows(space: FeatureSpace, work: Path, seed: int, seeds: int = SEEDS) -> list[Result]:
    """The natural experiment, on pictures that the encoder's heads never saw, with dictionaries of
    several seeds fitted on those that they saw; and what changes in the space's own features."""
    encoder = space.encoder
    seen = pictures_with_both(encoder, "train")
    judge = pictures_with_both(encoder, "scored+heldout")
    twice = torch.cat([seen.image] * 2)
    both = torch.cat(list(seen.texts.values()))
    ids = [str(number) for number in range(len(twice))]
    config = StoreConfig(
        encoder=encoder.id,
        encoder_fingerprint=encoder.fingerprint,
        pairs="photos:train",
        pairs_fingerprint=PhotoPairs("train").fingerprint(),
        dim=encoder.dim,
    )
    samples = sample_table(ids, [["text"]] * len(ids))
    store = write_store(work / "store", twice, both, samples, config)
    activated = []
    for number in range(seeds):
        settings = TrainConfig(**{**vars(DICTIONARY), "seed": seed + number})
        dictionary = fit_dictionary(store, settings, work / f"dictionary-{number}", progress=False)
        with torch.inference_mode():
            image = dictionary.encode(judge.image, "image").double()
            texts = {k: dictionary.encode(t, "text").double() for k, t in judge.texts.items()}
        activated.append(Activated(image, texts, judge))
    with torch.inference_mode():
        own = Activated(
            space.encode_images(judge.image).double(),
            {kind: space.encode_texts(text).double() for kind, text in judge.texts.items()},
            judge,
        )
    names = space.features["name"].to_pylist()
    return natural_results(activated, seed) + changed_rows(own, names, seed)


def natural_results(activated: Sequence[Activated], seed: int) -> list[Result]:
    """Means over dictionaries, with intervals from a bootstrap over dictionaries and pairs; what
    stands on the floor has its range over dictionaries."""
    pairs = len(activated[0].image)
    rng = np.random.default_rng(seed)
    scored = [one.scored() for one in activated]
    values = _means([one.figures(kept) for one, kept in zip(activated, scored, strict=True)])
    replicates = []
    for _ in range(REPLICATES):
        rows = torch.from_numpy(rng.integers(pairs, size=pairs))
        drawn = rng.integers(len(activated), size=len(activated))
        found = {n: activated[n].taken(rows).figures(scored[n]) for n in set(drawn.tolist())}
        replicates.append(_means([found[n] for n in drawn.tolist()]))
    results = []
    for name, value in values.items():
        drawn_values = np.array([one[name] for one in replicates])
        # Pairs drawn twice make a feature's MDS more extreme: the bootstrap's bias is taken out.
        low, high = percentile_interval(drawn_values - np.median(drawn_values) + value)
        unit = next(unit for start, unit in UNITS.items() if name.startswith(start))
        results.append(estimate_row(f"natural/{name}", Estimate(value, low, high), pairs, unit))
    floors = [one.floors() for one in activated]
    for name in floors[0]:
        each = [one[name] for one in floors]
        estimate = Estimate(float(np.mean(each)), min(each), max(each))
        results.append(estimate_row(f"natural/{name}", estimate, len(each), "range over seeds"))
    return results


def changed_rows(own: Activated, names: Sequence[str], seed: int) -> list[Result]:
    """The named features whose agreement, and those whose MDS, differs most between the two kinds
    of text (alt text less context), by the end of the interval that is nearest to 0; intervals over
    pairs."""
    scored = own.scored()
    kept = np.flatnonzero(scored["alt"] & scored["context"] & np.array([bool(n) for n in names]))
    rng = np.random.default_rng(seed)
    pairs = len(own.image)
    draws = [torch.from_numpy(rng.integers(pairs, size=pairs)) for _ in range(REPLICATES)]
    results = []
    for measure, of in (
        ("agreement", lambda one, kind: one.agreement(kind).agreement[kept]),
        ("mds", lambda one, kind: one.mds(kind)[kept]),
    ):
        value = of(own, "alt") - of(own, "context")  # [kept]
        drawn = np.stack([of(one, "alt") - of(one, "context") for one in map(own.taken, draws)])
        low, high = np.nanquantile(drawn - np.nanmedian(drawn, axis=0) + value, [0.025, 0.975], 0)
        nearest = np.where(value > 0, low, -high)  # below 0 where the interval holds 0
        for place in np.argsort(-nearest)[:CHANGES]:
            feature = int(kept[place])
            name = f"changed/{measure}/{feature} {names[feature]}"
            estimate = Estimate(float(value[place]), float(low[place]), float(high[place]))
            results.append(estimate_row(name, estimate, pairs, UNITS.get(measure, "MDS")))
        clear = (nearest > 0).mean()
        up = ((nearest > 0) & (value > 0)).mean()
        results.append(Result(f"changed/{measure}_share", clear, up, clear, len(kept), "share; up"))
    return results


def _means(records: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in records])) for name in records[0]}
