"""Evidence in words, for those who do not see it drawn."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from features.evidence.words import WordEvidence

ROWS = ("upper", "middle", "lower")
COLUMNS = ("left", "centre", "right")
LEAST_SHARE = 0.2
"""Of all that speaks for a feature, what a ninth of the picture must hold to be named."""
SHOWN_WORDS = 2
LEAST_OF_STRONGEST = 0.5
"""Of the strongest word's evidence, what another one must have to be named beside it."""


def where(cells: Tensor) -> str:
    """Where most of the positive evidence lies: "the upper left", "all of it alike", or "nothing in
    it".

    Args:
        cells: of one target, `[grid, grid]`.
    """
    positive = cells.clamp(min=0)
    if float(positive.sum()) <= 0:
        return "nothing in it"
    ninths = F.interpolate(positive[None, None], (36, 36), mode="nearest")
    ninths = F.avg_pool2d(ninths, 12)[0, 0]  # [3, 3]
    place = int(ninths.argmax())
    if float(ninths.flatten()[place] / ninths.sum()) < LEAST_SHARE:
        return "all of it alike"
    row, column = ROWS[place // 3], COLUMNS[place % 3]
    if (row, column) == ("middle", "centre"):
        return "the centre"
    return f"the {row} {column}"


def strongest_words(found: WordEvidence, target: int = 0) -> list[str]:
    """The words with the largest positive evidence, the largest first."""
    words = found.words[target]
    order = words.argsort(descending=True).tolist()[:SHOWN_WORDS]
    least = LEAST_OF_STRONGEST * float(words.max())
    return [found.word(place) for place in order if float(words[place]) >= max(least, 1e-12)]
