"""Every kind of dictionary on both embedded encoders, side by side.

    python -m benchmarks.dictionaries --out runs/dictionaries

Fits each kind on the training pairs of each encoder from several seeds, scores its features on all
pairs with the other encoder as the judge, and compares them, with intervals that hold how trainings
vary: `comparison.html`, `comparison.md` and
`comparison.json` hold all spaces, `answers.md` says for each kind how `embedded-ssl` differs from
`embedded`, and `results.json` holds the figures on the held-out combinations. Run it again to go on
after an interruption.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.common import Result, estimate_row, options, print_results, write_results
from features.analysis.compare import compare
from features.analysis.matching import match_features
from features.analysis.seeds import NORMAL, SeedFigure, mean_figure, over_seeds
from features.bootstrap import Estimate
from features.dictionary import (
    Dictionary,
    TrainConfig,
    fit_dictionary,
    reconstruction_figures,
    trained_kinds,
)
from features.embedded import ENCODER_NAMES
from features.embedded.world import EmbeddedPairs
from features.encoders.load import load_encoder
from features.files import write_whole
from features.reports.comparison import markdown_table, write_comparison
from features.space.score import score
from features.space.space import FeatureSpace
from features.store.extract import extract
from features.store.store import ActivationStore

UNITS = {
    "fvu": "FVU within modality",
    "l0": "features",
    "dead": "share",
    "ms_image": "MS",
    "ms_text": "MS",
    "agreement": "agreement",
}
SPLITS = {"train": "train", "all": None, "held-out": "heldout"}


def make_stores(out: Path, device: str) -> dict[str, dict[str, ActivationStore]]:
    """The embeddings of each split by encoder."""
    return {
        name: {
            split: extract(EmbeddedPairs(which), encoder, out / "stores" / name / split)
            for split, which in SPLITS.items()
        }
        for name in ENCODER_NAMES
        for encoder in [load_encoder(name, device=device)]
    }


def held_out_figures(dictionary: Dictionary, held_out: ActivationStore) -> dict[str, SeedFigure]:
    """FVU within modality and L0 on the held-out combinations."""
    figures = reconstruction_figures(dictionary, held_out.batches(1024))["within"]
    found = {}
    for name in ("fvu", "l0"):
        value, low, high = (figures[name + end] for end in ("", "_low", "_high"))
        if value is None or low is None or high is None:
            found[name] = SeedFigure(math.nan, math.nan)
        else:
            found[name] = SeedFigure(value, (high - low) / (2 * NORMAL))
    return found


def space_figures(space: FeatureSpace) -> dict[str, SeedFigure]:
    """Dead features, mean MS with its floor, and mean agreement, on all pairs."""
    dead = (space.features["active_pairs"].to_numpy() == 0).astype(float)
    found = {"dead": mean_figure(dead)}
    for name in ("ms_image", "ms_text", "agreement"):
        values = space.features[name].to_numpy()
        found[name] = mean_figure(values[np.isfinite(values)])
    return found


def seed_rows(label: str, figures: Sequence[dict[str, SeedFigure]]) -> list[Result]:
    """Means over training seeds, with intervals over them; of one seed, over features or pairs."""
    rows = []
    for name, unit in UNITS.items():
        of_seeds = [found[name] for found in figures]
        estimate = over_seeds(of_seeds)
        if len(of_seeds) == 1:
            value, half = of_seeds[0].value, NORMAL * of_seeds[0].error
            estimate = Estimate(value, value - half, value + half)
        rows.append(estimate_row(f"{label}/{name}", estimate, len(of_seeds), unit))
    return rows


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each dictionary")
    parser.add_argument("--kinds", nargs="+", choices=trained_kinds(), default=trained_kinds())
    arguments = parser.parse_args()
    out, seed = arguments.out, arguments.seed
    stores = make_stores(out, arguments.device)
    spaces: dict[tuple[str, str], list[FeatureSpace]] = {}
    rows: list[Result] = []
    for kind in arguments.kinds:
        for name, judge in zip(ENCODER_NAMES, reversed(ENCODER_NAMES), strict=True):
            figures = []
            for training in range(seed, seed + arguments.seeds):
                config = TrainConfig(kind=kind, seed=training)
                called = f"{name}-{kind}-{training}"
                folder = out / "dictionaries" / called
                dictionary = fit_dictionary(stores[name]["train"], config, folder)
                space = score(
                    stores[name]["all"],
                    dictionary,
                    stores[judge]["all"],
                    EmbeddedPairs(),
                    seed=seed,
                )
                space.save(out / "spaces" / called)
                spaces.setdefault((name, kind), []).append(space)
                held_out = held_out_figures(dictionary, stores[name]["held-out"])
                figures.append(held_out | space_figures(space))
            rows += seed_rows(f"{name}/{kind}", figures)
            write_results(out / "results.json", rows, seed=seed)
    everything = [(f"{name}, {kind}", s) for (name, kind), group in spaces.items() for s in group]
    labels, compared = [label for label, _ in everything], [space for _, space in everything]
    comparison = compare(compared, labels, seed=seed)
    write_comparison(comparison, [group[0] for group in spaces.values()], out)
    answers = [answer(kind, spaces, stores, out, seed) for kind in arguments.kinds]
    write_whole(out / "answers.md", "\n".join(answers).encode())
    print(markdown_table(comparison))
    print_results(rows)


def answer(
    kind: str,
    spaces: dict[tuple[str, str], list[FeatureSpace]],
    stores: dict[str, dict[str, ActivationStore]],
    out: Path,
    seed: int,
) -> str:
    """How `embedded-ssl` differs from `embedded` with one kind of dictionary, in Markdown."""
    plain, ssl = ENCODER_NAMES
    groups = [spaces[name, kind] for name in (plain, ssl)]
    firsts = [group[0] for group in groups]
    matching = match_features(
        firsts[0], stores[plain]["all"], firsts[1], stores[ssl]["all"], seed=seed
    )
    labels = [plain] * len(groups[0]) + [ssl] * len(groups[1])
    found = compare([*groups[0], *groups[1]], labels, [matching], seed=seed)
    write_comparison(found, firsts, out / kind)
    match = found.matches[0]
    sentences = [
        *found.differences[0],
        f"{match.matched} of {match.scored} features of {plain}'s first training have a "
        f"counterpart in {ssl}'s.",
    ]
    return f"## {kind}\n\n" + "".join(f"- {sentence}\n" for sentence in sentences)


if __name__ == "__main__":
    main()
