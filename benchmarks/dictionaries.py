"""Every kind of dictionary on both embedded encoders, side by side.

    python -m benchmarks.dictionaries --out runs/dictionaries

Fits each kind on the training pairs of each encoder, scores its features on all pairs with the
other encoder as the judge, and compares them: `comparison.html`, `comparison.md` and
`comparison.json` hold all spaces, `answers.md` says for each kind how `embedded-ssl` differs from
`embedded`, and `results.json` holds the figures on the held-out combinations. Run it again to go on
after an interruption.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from benchmarks.common import Result, mean_row, options, print_results, write_results
from features.analysis.compare import compare
from features.analysis.matching import match_features
from features.dictionary import (
    DICTIONARIES,
    Dictionary,
    TrainConfig,
    fit_dictionary,
    reconstruction_figures,
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


def held_out_rows(
    label: str, dictionary: Dictionary, space: FeatureSpace, held_out: ActivationStore, seed: int
) -> list[Result]:
    """FVU within modality and L0 on the held-out combinations; dead features, mean MS and mean
    agreement on all pairs."""
    figures = reconstruction_figures(dictionary, held_out.batches(1024))["within"]
    samples = int(figures["samples"] or 0)
    rows = []
    for name, unit in (("fvu", "FVU"), ("l0", "features")):
        found = (figures[name + end] for end in ("", "_low", "_high"))
        value, low, high = (math.nan if v is None else v for v in found)
        rows.append(Result(f"{label}/{name}", value, low, high, samples, unit))
    dead = (space.features["active_pairs"].to_numpy() == 0).astype(float)
    rows.append(mean_row(f"{label}/dead", dead, "share", seed))
    for name, unit in (("ms_image", "MS"), ("ms_text", "MS"), ("agreement", "agreement")):
        values = space.features[name].to_numpy()
        rows.append(mean_row(f"{label}/{name}", values[np.isfinite(values)], unit, seed))
    return rows


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    out, seed = arguments.out, arguments.seed
    stores = make_stores(out, arguments.device)
    spaces: dict[tuple[str, str], FeatureSpace] = {}
    rows: list[Result] = []
    for name, judge in zip(ENCODER_NAMES, reversed(ENCODER_NAMES), strict=True):
        for kind in DICTIONARIES:
            folder = out / "dictionaries" / f"{name}-{kind}"
            config = TrainConfig(kind=kind, seed=seed)
            dictionary = fit_dictionary(stores[name]["train"], config, folder)
            space = score(
                stores[name]["all"], dictionary, stores[judge]["all"], EmbeddedPairs(), seed=seed
            )
            space.save(out / "spaces" / f"{name}-{kind}")
            spaces[name, kind] = space
            label = f"{name}/{kind}"
            rows += held_out_rows(label, dictionary, space, stores[name]["held-out"], seed)
    labels = [f"{name}, {kind}" for name, kind in spaces]
    comparison = compare(list(spaces.values()), labels, seed=seed)
    write_comparison(comparison, list(spaces.values()), out)
    plain, ssl = ENCODER_NAMES
    answers = []
    for kind in DICTIONARIES:
        pair = [spaces[name, kind] for name in (plain, ssl)]
        matching = match_features(
            pair[0], stores[plain]["all"], pair[1], stores[ssl]["all"], seed=seed
        )
        found = compare(pair, [plain, ssl], [matching], seed=seed)
        write_comparison(found, pair, out / kind)
        match = found.matches[0]
        sentences = [
            *found.differences[0],
            f"{match.matched} of {match.scored} features of {plain} have a counterpart in {ssl}.",
        ]
        answers.append(f"## {kind}\n\n" + "".join(f"- {sentence}\n" for sentence in sentences))
    write_whole(out / "answers.md", "\n".join(answers).encode())
    print(markdown_table(comparison))
    print_results(rows)
    write_results(out / "results.json", rows, seed=seed)


if __name__ == "__main__":
    main()
