"""Benchmark of evidence: pointing game on planted truth, deletion, insertion, agreement, seconds,
seconds of the Explorer's cards.

    python -m benchmarks.evidence --out runs/benchmark-evidence.json

The planted background is carried by features of `embedded-ssl` alone: contrastive training washes
out of `embedded` what captions don't mention. What the method leaves open (occluder, grid, window,
inner maps) was chosen on training pairs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.common import Result, mean_row, median_row, options, run_sections
from benchmarks.evidence_pointing import held_out, picture_rows, word_rows
from demos.features_html import picked_html
from features.embedded.photos import PhotoPairs
from features.embedded.world import EmbeddedPairs
from features.evidence.pictures import Method, PictureEvidence, picture_evidence
from features.space.space import FeatureSpace

WORLDS = ("embedded-ssl", "embedded")
SECTIONS = ("pictures", "words", "curves", "photos", "seconds", "cards")
STEPS = 8
"""In which a picture is covered, or uncovered."""
CURVE_GRID = 8
"""Cells a side that are covered one after the other."""
PHOTOGRAPHS = 32
REPEATS = 3
CARDS = 24
"""Features of each space whose card in the Explorer is timed."""
BATCH = 64
"""Pictures of whom the seconds of the fast method are taken."""


def curve_rows(
    space: FeatureSpace, world: str, images: Sequence[Image.Image], seed: int
) -> list[Result]:
    """`deletion/...`: what is left of a picture's strongest feature while its cells are covered in
    the order of the evidence, on average over the way; `insertion/...`: while they are uncovered in
    this order, beginning with nothing (Petsiuk et al. 2018, arXiv 1806.07421). In units of the
    feature's pre-activation on the whole picture, on average over pictures; `random` covers them in
    a random order. `deletion_less_random/...`: the difference within pictures.
    """
    embeddings = space.encoder.encode_images(images)
    with torch.inference_mode():
        features = space.dictionary.pre_activations(embeddings, "image").argmax(1)
    generator = torch.Generator().manual_seed(seed)
    areas: dict[str, list[float]] = {}
    whole = []
    for image, feature in zip(images, features.tolist(), strict=True):
        orders: dict[str, Tensor] = {}
        for method in ("exact", "fast"):
            [found] = _evidence(space, image, feature, method)
            orders[method] = found.cells[0].flatten().argsort(descending=True)
        orders["random"] = torch.randperm(CURVE_GRID**2, generator=generator)
        values = curves(space, image, feature, list(orders.values()))  # [orders, 2, STEPS + 1]
        whole.append(float(values[0, 0, 0]))
        for name, (deleted, inserted) in zip(orders, values.mean(2).tolist(), strict=True):
            areas.setdefault(f"deletion/{world}/{name}", []).append(deleted)
            areas.setdefault(f"insertion/{world}/{name}", []).append(inserted)
    rows = [
        mean_row(name, np.array(area) / np.mean(whole), "of the whole", seed)
        for name, area in sorted(areas.items())
    ]
    for way in ("deletion", "insertion"):
        chance = np.array(areas[f"{way}/{world}/random"])
        for method in ("exact", "fast"):
            less = (np.array(areas[f"{way}/{world}/{method}"]) - chance) / np.mean(whole)
            name = f"{way}_less_random/{world}/{method}"
            rows.append(mean_row(name, less, "of the whole", seed))
    return rows


@torch.inference_mode()
def curves(
    space: FeatureSpace, image: Image.Image, feature: int, orders: Sequence[Tensor]
) -> Tensor:
    """The pre-activation while cells are covered, and while they are uncovered: `[orders, 2,
    STEPS + 1]`.

    Args:
        orders: of the cells, `[CURVE_GRID ** 2]` each.
    """
    encoder = space.encoder
    preprocessing = encoder.preprocessing
    [pixels] = preprocessing.normalise(preprocessing.pixels([image]).to(encoder.device))
    height, width = (side // CURVE_GRID for side in pixels.shape[1:])
    shown = []
    for order in orders:
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order))
        places = rank.view(CURVE_GRID, CURVE_GRID).repeat_interleave(height, 0)
        places = places.repeat_interleave(width, 1).to(pixels.device)  # [height, width]
        for step in range(STEPS + 1):
            first = places < step * len(order) / STEPS
            shown += [pixels.masked_fill(first, 0), pixels.masked_fill(~first, 0)]
    embeddings = torch.cat(
        [encoder.encode_image_tensors(part) for part in torch.stack(shown).split(BATCH)]
    )
    values = space.dictionary.pre_activations(embeddings, "image")[:, feature].cpu()
    return values.view(len(orders), STEPS + 1, 2).transpose(1, 2)


def seconds_rows(space: FeatureSpace, images: Sequence[Image.Image], world: str) -> list[Result]:
    """`seconds/...`: of a core for a picture, with its range over repeats; the fast method on all
    pictures at once, the exact one on a few, which fill its batches with copies."""
    few: dict[Method, list[Image.Image]] = {
        "exact": list(images[: max(1, len(images) // 16)]),
        "fast": list(images),
    }
    seconds: dict[str, list[float]] = {}
    for method, shown in few.items():
        _evidence_of(space, shown[:1], method)
        for _ in range(REPEATS):
            start = time.process_time()
            _evidence_of(space, shown, method)
            seconds.setdefault(method, []).append((time.process_time() - start) / len(shown))
    ratios = [a / b for a, b in zip(seconds["exact"], seconds["fast"], strict=True)]
    rows = [median_row(f"seconds/{world}/{m}", s, "core s a picture") for m, s in seconds.items()]
    return [*rows, median_row(f"seconds/{world}/exact_over_fast", ratios, "ratio")]


def card_rows(space: FeatureSpace, world: str, seed: int) -> list[Result]:
    """`card/...`: seconds until the Explorer has a feature's card, bare, with layers over its
    pictures, and with its texts' words marked too; over features drawn among those with exemplars,
    each for the first time, after one that is left out."""
    shown = np.unique(space.exemplars["feature"].to_numpy())
    drawn = np.random.default_rng(seed).permutation(shown)[: CARDS + 1]
    seconds: dict[str, list[float]] = {"bare": [], "layers": [], "words": []}
    for feature in drawn.tolist():
        start = time.perf_counter()
        for step, found in seconds.items():
            picked_html(
                {world: space},
                (world, feature),
                None,
                layers=step != "bare",
                marks=step == "words",
            )
            found.append(time.perf_counter() - start)
    return [median_row(f"card/{world}/{step}", s[1:], "s") for step, s in seconds.items()]


def _evidence(
    space: FeatureSpace, image: Image.Image, feature: int, method: Method
) -> list[PictureEvidence]:
    return picture_evidence(space, [image], [feature], method, grid=CURVE_GRID)


def _evidence_of(space: FeatureSpace, images: list[Image.Image], method: Method) -> None:
    picture_evidence(space, images, [0], method, batch_size=BATCH)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    arguments = parser.parse_args()
    seed = arguments.seed
    spaces = {name: FeatureSpace.load(name, device="cpu") for name in (*WORLDS, "photos")}
    held = held_out()
    drawings = [held[1].image(row) for row in range(0, held[1].total(), 3)]

    def photographs(count: int) -> list[Image.Image]:
        source = PhotoPairs("heldout")
        return [source.image(row) for row in range(min(count, source.total()))]

    def over_worlds(rows: Callable[..., list[Result]], *given: object) -> list[Result]:
        return [row for name in WORLDS for row in rows(spaces[name], name, *given, seed)]

    def seconds() -> list[Result]:
        own = [EmbeddedPairs("train").image(row) for row in range(BATCH)]
        return [
            *seconds_rows(spaces["embedded"], own, "embedded"),
            *seconds_rows(spaces["photos"], photographs(16), "photos"),
        ]

    sections: dict[str, Callable[[], list[Result]]] = {
        "pictures": lambda: over_worlds(picture_rows, held),
        "words": lambda: over_worlds(word_rows, held),
        "curves": lambda: over_worlds(curve_rows, drawings),
        "photos": lambda: curve_rows(spaces["photos"], "photos", photographs(PHOTOGRAPHS), seed),
        "seconds": seconds,
        "cards": lambda: [
            r for name, space in spaces.items() for r in card_rows(space, name, seed)
        ],
    }
    run_sections([sections[name] for name in arguments.only], arguments.out, seed=seed)


if __name__ == "__main__":
    main()
