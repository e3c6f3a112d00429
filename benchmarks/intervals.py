"""Whether the scores know what they don't know: intervals, floors, and what agreement tells apart.

    python -m benchmarks.intervals --out runs/benchmark-intervals.json

By simulation, how often the 95% intervals of MDS and of agreement hold the truth, and how wide they
are; the matching's floor on pairs sorted by class beside that on shuffled ones; and whether
agreement tells features of planted shared factors from the same ones with images of one half of the
pairs and texts of the other, which MDS cannot.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import Result, estimate_row, mean_row, options, run_sections
from benchmarks.planted import align, held_out_draws
from features.analysis.matching import match_features
from features.bootstrap import Estimate, auroc_interval
from features.embedded import ENCODER_NAMES
from features.embedded.world import EmbeddedPairs
from features.scores.agreement import Agreement, AgreementStatistics
from features.scores.dominance import DominanceStatistics
from features.space.space import FeatureSpace
from features.store.extract import extract
from features.store.store import ActivationStore
from features.store.write import write_store

SECTIONS = ("mds", "agreement", "matching", "planted")
TRUTHS = (0.02, 0.1, 0.5, 0.9, 0.98)
PAIRS = (10, 20, 50, 100)
FEATURES = 4000
"""Simulated for each row."""
POPULATION = 1_000_000
AGREEMENTS = ("in 5% of the active pairs", "in 30%", "in all")
SORTED_BY = ("subgroup", "gender", "skin_tone")


def mds_rows(seed: int, features: int = FEATURES) -> list[Result]:
    """`coverage/mds_<truth>/n_<pairs>` and `width/...`, for pair ratios of 0 or 1."""
    rng = np.random.default_rng(seed)
    rows = []
    for truth in TRUTHS:
        for pairs in PAIRS:
            ratio = torch.from_numpy((rng.random((pairs, features)) < truth).astype(float))
            found = DominanceStatistics(features, seed=seed)
            found.update(ratio, 1 - ratio)
            scores = found.scores()
            names = (f"coverage/mds_{truth}/n_{pairs}", f"width/mds_{truth}/n_{pairs}")
            rows += _coverage(names, truth, scores.ci_low, scores.ci_high, seed)
    return rows


def population(
    kind: str, shape: tuple[int, ...], rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Activations of images and of texts, in pairs of which all are active in either."""
    place = rng.random(shape)
    alone = {AGREEMENTS[0]: 0.475, AGREEMENTS[1]: 0.35, AGREEMENTS[2]: 0.0}[kind]
    common = rng.gamma(2, 1, shape)
    image, text = (
        torch.from_numpy(common * rng.gamma(5, 0.2, shape) * active)
        for active in (place < 1 - alone, place >= alone)
    )
    return image, text


def agreement_scores(image: Tensor, text: Tensor, seed: int) -> Agreement:
    """Of activations `[pairs, features]`."""
    dominance = DominanceStatistics(image.shape[1], replicates=1)
    dominance.update(image, text)
    found = AgreementStatistics(dominance.means, seed=seed)
    found.update(image, text)
    shuffled = torch.randperm(len(image), generator=torch.Generator().manual_seed(seed))
    found.update_chance(image[shuffled], text[shuffled])
    return found.scores()


def agreement_rows(seed: int, features: int = FEATURES) -> list[Result]:
    """`agreement/coverage_<truth>/n_<pairs>` and `agreement/width_...`; `agreement/coverage`, the
    lowest of the former."""
    rng = np.random.default_rng(seed)
    rows = []
    for kind in AGREEMENTS:
        u, v = (a / a.mean() for a in population(kind, (POPULATION,), rng))
        truth = float(torch.minimum(u, v).sum() / torch.maximum(u, v).sum())
        for pairs in PAIRS:
            scores = agreement_scores(*population(kind, (pairs, features), rng), seed)
            of = f"{truth:.2f}/n_{pairs}"
            names = (f"agreement/coverage_{of}", f"agreement/width_{of}")
            rows += _coverage(names, truth, scores.ci_low, scores.ci_high, seed)
    covered = [row for row in rows if row.unit == "share"]
    worst = min(covered, key=lambda row: row.value)
    bounds = Estimate(worst.value, worst.ci_low, worst.ci_high)
    return [*rows, estimate_row("agreement/coverage", bounds, worst.n, "share, the lowest")]


def matching_rows(work: Path, seed: int) -> list[Result]:
    """`floor/matching_sorted` and `floor/matching_shuffled`: the chance floor between the two
    embedded spaces, with the same pairs in two orders."""
    spaces = [FeatureSpace.load(name, device="cpu") for name in ENCODER_NAMES]
    stores = [
        extract(EmbeddedPairs(), space.encoder, work / name)
        for name, space in zip(ENCODER_NAMES, spaces, strict=True)
    ]
    samples = stores[0].samples()
    columns = [samples[f"attribute.{name}"].to_pylist() for name in SORTED_BY]
    labels = [tuple(str(value) for value in row) for row in zip(*columns, strict=True)]
    orders = {
        "sorted": sorted(range(len(labels)), key=labels.__getitem__),
        "shuffled": np.random.default_rng(seed).permutation(len(labels)).tolist(),
    }
    rows = []
    for name, order in orders.items():
        first, second = (
            _reordered(store, order, work / f"{name}-{number}")
            for number, store in enumerate(stores)
        )
        floor = match_features(spaces[0], first, spaces[1], second, seed=seed, progress=False).floor
        alone = Estimate(floor, floor, floor)
        rows.append(estimate_row(f"floor/matching_{name}", alone, len(order), "correlation"))
    return rows


def planted_rows(seed: int, name: str = "embedded-ssl") -> list[Result]:
    """`agreement/auroc` and, of the same features, `agreement/auroc_of_mds`; the mean agreement of
    the features of each kind of planted factor, and the share of them above their floor."""
    space = FeatureSpace.load(name, device="cpu")
    draws = held_out_draws(space.encoder)
    image = space.encode_images(draws.images).double()  # [pairs, features]
    text = space.encode_texts(draws.texts).double()  # [pairs, features]
    alignment = align(image.numpy(), text.numpy(), draws.attributes)
    found = agreement_scores(image, text, seed)
    known = np.isfinite(found.agreement)
    rows = []
    for kind, aligned in (
        ("shared", alignment.of_both),
        ("vision_only", alignment.vision_only & ~alignment.of_both),
        ("text_only", alignment.text_only & ~alignment.of_both),
    ):
        of_kind = aligned & known
        above = found.shared[of_kind]
        rows += [
            mean_row(f"agreement/planted/{kind}", found.agreement[of_kind], "agreement", seed),
            mean_row(f"agreement/planted_above_floor/{kind}", above, "share", seed),
        ]
    shared = np.flatnonzero(alignment.of_both & known)
    half = torch.from_numpy(np.random.default_rng(seed).permutation(len(image)) % 2 == 0)[:, None]
    both = torch.cat([image[:, shared], image[:, shared] * half], dim=1)
    texts = torch.cat([text[:, shared], text[:, shared] * ~half], dim=1)
    dominance = DominanceStatistics(2 * len(shared), seed=seed)
    dominance.update(both, texts)
    scores = {
        "auroc": agreement_scores(both, texts, seed).agreement,
        "auroc_of_mds": dominance.scores().mds,
    }
    truth = np.arange(2 * len(shared)) < len(shared)
    return [*rows, *(_auroc_row(f"agreement/{n}", truth, s, seed) for n, s in scores.items())]


def _auroc_row(name: str, truth: np.ndarray, scores: np.ndarray, seed: int) -> Result:
    from sklearn.metrics import roc_auc_score

    kept = np.isfinite(scores)
    auroc = float(roc_auc_score(truth[kept], scores[kept]))
    bounds = auroc_interval(truth[kept], scores[kept], seed=seed)
    return estimate_row(name, Estimate(auroc, *bounds), int(kept.sum()), "AUROC")


def _coverage(
    names: tuple[str, str], truth: float, low: np.ndarray, high: np.ndarray, seed: int
) -> list[Result]:
    covered = (low <= truth) & (truth <= high)
    return [
        mean_row(names[0], covered, "share", seed),
        mean_row(names[1], high - low, "mean width", seed),
    ]


def _reordered(store: ActivationStore, order: list[int], path: Path) -> ActivationStore:
    """The same pairs in another order."""
    image, text = store.rows(order)
    return write_store(path, image, text, store.samples().take(order), store.config)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    arguments = parser.parse_args()
    seed = arguments.seed
    with tempfile.TemporaryDirectory() as scratch:
        sections: dict[str, Callable[[], list[Result]]] = {
            "mds": lambda: mds_rows(seed),
            "agreement": lambda: agreement_rows(seed),
            "matching": lambda: matching_rows(Path(scratch), seed),
            "planted": lambda: planted_rows(seed),
        }
        run_sections([sections[name] for name in arguments.only], arguments.out, seed=seed)


if __name__ == "__main__":
    main()
