"""How often the intervals of MDS and agreement hold the truth, and what agreement tells apart.

    python -m benchmarks.intervals --out runs/intervals.json --picture docs/images/agreement.svg

Everything is simulated, so that the truth is known: minutes on one core.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from benchmarks.common import Result, mean_row, options, run_sections
from features.bootstrap import auroc_interval
from features.files import write_whole
from features.scores.agreement import Agreement, AgreementStatistics
from features.scores.dominance import DominanceStatistics

TRUTHS = (0.02, 0.1, 0.5, 0.9, 0.98)
PAIRS = (10, 20, 50, 100)
FEATURES = 2000
"""Simulated features of each row."""
SHOWN = 12
"""Pairs in the picture."""


def coverage_rows(seed: int) -> list[Result]:
    """Of MDS where each pair is driven by one modality alone, the hardest case near 0 and 1."""
    rows = []
    for truth in TRUTHS:
        for pairs in PAIRS:
            rng = np.random.default_rng(seed)
            ratio = torch.from_numpy((rng.random((pairs, FEATURES)) < truth).astype(float))
            statistics = DominanceStatistics(FEATURES, seed=seed)
            statistics.update(ratio, 1 - ratio)
            scores = statistics.scores(min_pairs=1)
            held = (scores.ci_low <= truth) & (truth <= scores.ci_high)
            name = f"mds_{truth}/n_{pairs}"
            rows.append(mean_row(f"coverage/{name}", held.astype(float), "share", seed))
            rows.append(mean_row(f"width/{name}", scores.ci_high - scores.ci_low, "MDS", seed))
    return rows


def planted(pairs: int, features: int, seed: int) -> tuple[Tensor, Tensor]:
    """Activations of images and texts, each `[pairs, 2 * features]`: of the first half of the
    features in the same pairs, of the others for images in one half of the pairs, for texts in the
    other."""
    generator = torch.Generator().manual_seed(seed)
    active = torch.rand(pairs, 2 * features, generator=generator) < 0.3
    image, text = (torch.rand(active.shape, generator=generator) * active for _ in range(2))
    turn = (torch.arange(pairs) % 2 == 0)[:, None]
    image[:, features:] *= turn
    text[:, features:] *= ~turn
    return image.double(), text.double()


def agreement_of(image: Tensor, text: Tensor, seed: int) -> Agreement:
    """Of activations `[pairs, features]`."""
    statistics = AgreementStatistics(torch.stack([image.mean(0), text.mean(0)]), seed=seed)
    statistics.update(image, text)
    return statistics.scores(min_pairs=1)


def agreement_rows(seed: int) -> list[Result]:
    """How well agreement, and MDS, tell the two halves of `planted` apart; coverage on 50 pairs."""
    features = 200
    image, text = planted(200, features, seed)
    dominance = DominanceStatistics(2 * features, seed=seed)
    dominance.update(image, text)
    mds = dominance.scores(min_pairs=1).mds
    shared = np.arange(2 * features) < features
    scores = {"agreement": agreement_of(image, text, seed).agreement, "mds": -np.abs(mds - 0.5)}
    rows = []
    for name, values in scores.items():
        low, high = auroc_interval(shared, values, seed=seed)
        area = float(roc_auc_score(shared, values))
        rows.append(Result(f"{name}/auroc", area, low, high, len(values), "AUROC"))
    rng = np.random.default_rng(seed)

    def drawn(count: int) -> tuple[np.ndarray, np.ndarray]:
        common = rng.gamma(2, 1, count)
        return common * rng.gamma(5, 0.2, count), common * rng.gamma(5, 0.2, count)

    u, v = (side / side.mean() for side in drawn(1_000_000))
    truth = np.minimum(u, v).sum() / np.maximum(u, v).sum()
    sides = zip(*(drawn(50) for _ in range(FEATURES)), strict=True)
    found = agreement_of(*(torch.from_numpy(np.stack(s, axis=1)) for s in sides), seed)
    held = (found.ci_low <= truth) & (truth <= found.ci_high)
    return [*rows, mean_row("agreement/coverage", held.astype(float), "share", seed)]


def picture(seed: int) -> str:
    """Two features whose MDS is near a half, pair by pair, as SVG."""
    image, text = planted(2 * SHOWN, 1, seed)
    titles = ("in the same pairs: shared", "here and there: balanced, not shared")
    parts = []
    for feature, title in enumerate(titles):
        shown = ((image[:, feature] + text[:, feature]) > 0).nonzero()[:SHOWN, 0].tolist()
        left = 30 + 400 * feature
        parts.append(f'<text x="{left}" y="24" font-weight="bold">Images and texts {title}</text>')
        for place, pair in enumerate(shown):
            x = left + 28 * place
            up, down = (60 * float(side[pair, feature]) for side in (image, text))
            parts.append(f'<rect x="{x}" y="{110 - up}" width="20" height="{up}" fill="#2f6db5"/>')
            parts.append(f'<rect x="{x}" y="112" width="20" height="{down}" fill="#d9822b"/>')
        parts.append(f'<text x="{left}" y="196">pairs in which the feature is active</text>')
    key = '<text x="30" y="44" fill="#2f6db5">images, upwards</text>'
    key += '<text x="150" y="44" fill="#d9822b">texts, downwards</text>'
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 210" font-family="sans-serif" '
        f'font-size="13"><rect width="800" height="210" fill="white"/>{key}{"".join(parts)}</svg>\n'
    )


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--picture", type=Path, help="SVG file for the picture of agreement")
    arguments = parser.parse_args()
    if arguments.picture:
        write_whole(arguments.picture, picture(arguments.seed).encode())
    run_sections(
        [lambda: coverage_rows(arguments.seed), lambda: agreement_rows(arguments.seed)],
        arguments.out,
        seed=arguments.seed,
    )


if __name__ == "__main__":
    main()
