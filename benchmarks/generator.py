"""Benchmark of the generator: what an evaluator sees in its drawings, and how far they are from
real ones.

    python -m benchmarks.generator --out runs/benchmark-generator.json

On held-out drawings of men and women with a skin tone: drawn again from their embeddings
(reference), and from their prompts alone (prompt). agreement: the evaluator sees the true value,
and on the real drawings (evaluator); or a linear probe, fitted on training drawings, reads it from
the references' embeddings (probe), which is what the generator is told. frechet: distance from the
real drawings; `frechet/real` is that of the same drawings under other planted factors. It is
measured in the features of the evaluator of 0.1.0, which learnt for 700 steps, so that it compares
with 0.1.0's; `agreement_700` is what that one sees, and `frechet_2100` the distance in the
evaluator's own features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.common import Result, mean_row, options, run_sections
from benchmarks.evaluator import (
    ATTRIBUTES,
    EARLIER_STEPS,
    STEPS,
    Evaluator,
    Vocabulary,
    load_evaluator,
)
from benchmarks.steering_references import people_of
from features.embedded.world import EmbeddedPairs
from features.pairs.base import Pair
from mms_apps.attributes.estimators import LinearProbe
from mms_apps.steering.generator import GUIDANCE, SteeredGenerator

DRAW_BATCH = 56


def generator_rows(
    drawer: SteeredGenerator,
    evaluator: Evaluator,
    earlier: Evaluator,
    seed: int,
    guidance: float = GUIDANCE,
) -> list[Result]:
    """All rows.

    Args:
        earlier: of EARLIER_STEPS steps.
    """
    source = EmbeddedPairs("heldout", draw_seed=seed)
    pairs = [source.pair(index) for index in people_of(source)]
    real = [pair.image for pair in pairs]
    seeds = list(range(len(pairs)))
    references = torch.cat([drawer.embed(image=image) for image in real])
    prompts = torch.cat(
        [drawer.embed(p.captions[0], seed=s) for p, s in zip(pairs, seeds, strict=True)]
    )
    sets = {"evaluator": real}
    for name, embeddings in (("reference", references), ("prompt", prompts)):
        sets[name] = draw_many(drawer, embeddings, seeds, guidance)
    rows = probe_rows(references, pairs, drawer, evaluator.vocabulary, seed)
    for row, seeing in (("agreement", evaluator), (f"agreement_{EARLIER_STEPS}", earlier)):
        for name, images in sets.items():
            logits = seeing.logits(images)
            for attribute in ATTRIBUTES:
                if name == "prompt" and attribute == "background":
                    continue  # prompts don't say it
                labels = seeing.vocabulary.labels(attribute, pairs)
                right = (logits[attribute].argmax(1).numpy() == labels)[labels >= 0]
                rows.append(mean_row(f"{row}/{name}/{attribute}", right, "share", seed))
    other = EmbeddedPairs("heldout", draw_seed=seed + 7)
    sets["real"] = [other.image(index) for index in people_of(other)]
    for row, seeing in (("frechet", earlier), (f"frechet_{STEPS}", evaluator)):
        first, *others = (seeing.pooled(images).double().numpy() for images in sets.values())
        for name, features in zip(list(sets)[1:], others, strict=True):
            rows.append(frechet_row(f"{row}/{name}", first, features))
    return rows


def probe_rows(
    references: Tensor,
    pairs: Sequence[Pair],
    drawer: SteeredGenerator,
    vocabulary: Vocabulary,
    seed: int,
) -> list[Result]:
    """How often linear probes, fitted on training drawings, read the true values from raw
    embeddings `[n, dim]` of the pairs' pictures."""
    source = EmbeddedPairs("train", draw_seed=seed)
    taught = [source.pair(index) for index in people_of(source)]
    embeddings = torch.cat([drawer.embed(image=pair.image) for pair in taught]).numpy()
    rows = []
    for attribute in ATTRIBUTES:
        given, wanted = (vocabulary.labels(attribute, some) for some in (taught, pairs))
        probe = LinearProbe(random_state=seed).fit(embeddings[given >= 0], given[given >= 0])
        right = (probe.predict(references.numpy()) == wanted)[wanted >= 0]
        rows.append(mean_row(f"agreement/probe/{attribute}", right, "share", seed))
    return rows


def draw_many(
    drawer: SteeredGenerator, embeddings: Tensor, seeds: Sequence[int], guidance: float
) -> list[Image.Image]:
    """Drawings of many raw embeddings `[n, dim]`, batch by batch, each from its seed's noise."""
    images: list[Image.Image] = []
    for start in range(0, len(embeddings), DRAW_BATCH):
        part = slice(start, start + DRAW_BATCH)
        images += drawer.draw(embeddings[part], seeds[part], guidance=guidance)
    return images


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """Frechet distance of two sets of features `[n, dim]` (Heusel et al. 2017, FID's).

    The trace of the root of the covariances' product is the nuclear norm of the centred features'
    product, `[n, n]`.
    """
    a, b = ((x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (first, second))
    between_means = np.square(first.mean(0) - second.mean(0)).sum()
    common = np.linalg.norm(a @ b.T, "nuc")
    return float(between_means + np.square(a).sum() + np.square(b).sum() - 2 * common)


def frechet_row(name: str, first: np.ndarray, second: np.ndarray) -> Result:
    """The distance of two sets of features `[n, dim]`, of which each two rows are a pair, with its
    95% interval by the jackknife over pairs: resampling would draw pictures twice, which lengthens
    the distance."""
    n = len(first)
    kept = ~np.eye(n, dtype=bool)
    without = np.array([frechet(first[rows], second[rows]) for rows in kept])
    margin = 1.96 * np.sqrt((n - 1) / n * np.square(without - without.mean()).sum())
    value = frechet(first, second)
    return Result(name, value, value - margin, value + margin, n, "distance")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--generator", default="embedded")
    parser.add_argument("--space", default="embedded-ssl")
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    drawer = SteeredGenerator.load(arguments.generator, arguments.space, arguments.device)
    folder, seed = arguments.out.parent, arguments.seed
    evaluator, earlier = (load_evaluator(folder, seed, steps) for steps in (STEPS, EARLIER_STEPS))
    run_sections(
        [lambda: generator_rows(drawer, evaluator, earlier, seed, arguments.guidance)],
        arguments.out,
        seed=seed,
    )


if __name__ == "__main__":
    main()
