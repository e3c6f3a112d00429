"""How long the evaluator of drawn pictures should learn.

    python -m benchmarks.evaluator_steps --out runs/benchmark-evaluator-steps.json

`left_out/STEPS/ATTRIBUTE` is how often an evaluator that learnt for so many steps is right about a
tenth of the training people, who were left out, each under three draws of the planted factors. An
hour on one core.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from torch import Tensor

from benchmarks.common import Result, mean_row, options, run_sections
from benchmarks.evaluator import (
    ATTRIBUTES,
    EARLIER_STEPS,
    STEPS,
    Vocabulary,
    taught_people,
    trained,
)
from benchmarks.steering_references import people_of
from features.embedded.world import EmbeddedPairs
from features.pairs.base import Pair

LEFT_OUT = 0.1
"""Share of the training people who are left out to measure evaluators on."""
DRAWS = (1, 2, 3)
"""Seeds of the planted factors under which they are drawn."""


def left_out_rows(steps: int, seed: int) -> list[Result]:
    """How often an evaluator is right about people who were left out of its training, the mean over
    the draws of each."""
    source = EmbeddedPairs("train")
    known = np.random.default_rng(seed).permutation(people_of(source))
    left = sorted(known[: int(LEFT_OUT * len(known))].tolist())
    taught = [index for index in taught_people(source) if index not in left]
    evaluator = trained(source, taught, steps, seed)
    drawn = [EmbeddedPairs("train", draw_seed=draw) for draw in DRAWS]
    pairs = [[source.pair(index) for index in left] for source in drawn]
    logits = [evaluator.logits([pair.image for pair in of_draw]) for of_draw in pairs]
    rows = []
    for attribute in ATTRIBUTES:
        right = np.array(
            [
                _right(evaluator.vocabulary, attribute, found[attribute], of_draw)
                for found, of_draw in zip(logits, pairs, strict=True)
            ]
        )  # [draws, people], NaN where the value is not told apart
        values = right.mean(0)[np.isfinite(right.mean(0))]
        rows.append(mean_row(f"left_out/{steps}/{attribute}", values, "share", seed))
    return rows


def _right(
    vocabulary: Vocabulary, attribute: str, logits: Tensor, pairs: Sequence[Pair]
) -> np.ndarray:
    """1 where the value of a pair has the largest logit, else 0; NaN where it has none."""
    labels = vocabulary.labels(attribute, pairs)
    return np.where(labels >= 0, logits.argmax(1).numpy() == labels, np.nan)


def main() -> None:
    arguments = options(__doc__).parse_args()
    run_sections(
        [partial(left_out_rows, steps, arguments.seed) for steps in (EARLIER_STEPS, STEPS)],
        arguments.out,
        seed=arguments.seed,
    )


if __name__ == "__main__":
    main()
