"""Benchmark of steering: does an edit do what was asked, and what else does it do?

    python -m benchmarks.steering --out runs/benchmark-steering.json

References are held-out drawings of men and women with a skin tone, under planted factors, whose
plain drawing shows the source value; each is steered to another value of an attribute. A section an
attribute, each within half an hour on two cores. Methods (`benchmarks/steering_edits.py`):

- features, difference, score_set: `mms_apps.steering.finding`'s three ways, in 8 features;
- smallest: features, no further than to where a probe is sure;
- text_direction, image_direction: the mean difference of texts and of images, turned by as much as
  features turn;
- prompt: towards what the prior gives for the edited prompt;
- affine: a ridge regression on pairs, an upper reference without features;
- random: random features, turned by as much as features;
- twin: the drawing that differs in the attribute alone, a perfect edit.

What the generator does by chance is kept apart from what an edit does: the evaluator's
probabilities are averaged over several seeds. success: the average is highest for the target.
gain: in the target's probability. leakage: total variation of the other attributes' averages from
the plain drawing's under other seeds; excess: that, less what the plain drawing's own averages
under the edit's seeds vary. preservation: 1 less the distance from the plain drawing of the same
seed over that between unrelated drawings. monotonicity: Spearman correlation of the target's
probability with the drift. drift: degrees. Methods are compared where they turn training
drawings by as much on average: curve/ holds every drift. Each one's other rows stand at the
smallest drift with success of .8 on training drawings that it was not found on, or with the most
success where none has so much. less/: the paired difference in excess from a baseline. Intervals
are bootstrapped over references.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.progress import track
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.common import Result, mean_row, median_row, options, run_sections
from benchmarks.evaluator import ATTRIBUTES, EARLIER_STEPS, Evaluator, load_evaluator
from benchmarks.generator import draw_many, generator_rows
from benchmarks.steering_edits import DRIFTS, METHODS, OF_FEATURES, Edits, degrees, turned
from benchmarks.steering_plot import plot
from benchmarks.steering_references import Reference, TrainingEmbeddings, World
from features.files import write_whole
from features.reports.page import MODALITY_CLASSES
from mms_apps.steering.edits import Steering
from mms_apps.steering.finding import TAKEN, find
from mms_apps.steering.generator import GUIDANCE, SteeredGenerator

SECTIONS = (*ATTRIBUTES, "classes", "generator", "speed")
SEEDS = 4
TRIED = 16
"""Training drawings that a method's drift is chosen on."""
TRIED_SEEDS = 2
ENOUGH = 0.8
"""Success."""
BASELINES = ("text_direction", "image_direction", "prompt")
Probabilities = dict[str, np.ndarray]


@dataclass(frozen=True)
class Plain:
    """A reference's plain drawings.

    Args:
        raw: its embedding, `[1, dim]`.
        seeds: under which edits are drawn, `[seeds]`.
        images: under these.
        same, other: the evaluator's mean probabilities by attribute under these seeds, and under as
            many others, `[values]`.
    """

    raw: Tensor
    seeds: list[int]
    images: list[Image.Image]
    same: Probabilities
    other: Probabilities


@dataclass(frozen=True)
class Outcome:
    """What edits of one reference made of it: `[drifts]` each.

    leakage, excess: by other attribute.
    """

    success: np.ndarray
    probability: np.ndarray
    gain: np.ndarray
    leakage: dict[str, np.ndarray]
    excess: dict[str, np.ndarray]
    preservation: np.ndarray
    drift: np.ndarray

    def at(self, measure: str, place: int) -> float:
        """One measure at one drift, the mean over attributes where it has several."""
        found = getattr(self, measure)
        rows = list(found.values()) if isinstance(found, dict) else [found]
        return float(np.mean([row[place] for row in rows]))

    @property
    def monotonicity(self) -> float:
        """Spearman's correlation of the target's probability with the drift."""
        if np.ptp(self.probability) == 0:
            return 0.0
        return float(spearmanr(DRIFTS, self.probability).statistic)


class Bench:
    """The generator and the evaluator."""

    def __init__(
        self, drawer: SteeredGenerator, evaluator: Evaluator, seed: int, guidance: float
    ) -> None:
        self.drawer, self.evaluator, self.seed, self.guidance = drawer, evaluator, seed, guidance
        self.space = drawer.space
        vocabulary = evaluator.vocabulary
        self.world = World(vocabulary, seed)
        train = self.world.of_split("train")
        order = np.random.default_rng(seed).permutation(len(train))
        self.tried = [train[i] for i in order[: len(train) // 5]]
        self.held_out = self.world.of_split("heldout")
        rows = [train[i] for i in order[len(train) // 5 :]]
        self.edits = Edits(drawer, TrainingEmbeddings(self.space.encoder, vocabulary, rows, seed))
        pictures = [self.world.pairs.image(index) for index in rows[:128]]
        self.unrelated = float(evaluator.distance(pictures[:64], pictures[64:]).mean())

    def draw(self, embeddings: Tensor, seeds: Sequence[int]) -> list[Image.Image]:
        """Drawings of many raw embeddings."""
        return draw_many(self.drawer, embeddings, seeds, self.guidance)

    def averages(self, images: list[Image.Image], times: int) -> Probabilities:
        """The evaluator's probabilities by attribute, averaged over each `times` drawings that
        follow one another: `[len(images) / times, values]`."""
        logits = self.evaluator.logits(images)
        return {
            name: found.softmax(1).unflatten(0, (-1, times)).mean(1).numpy()
            for name, found in logits.items()
        }

    def plain(self, images: list[Image.Image], seeds: int) -> list[Plain]:
        """The plain drawings of references."""
        raw = torch.cat([self.drawer.embed(image=image) for image in images])
        own = [
            np.random.default_rng([self.seed, place]).integers(2**31, size=2 * seeds).tolist()
            for place in range(len(images))
        ]
        drawn = self.draw(raw.repeat_interleave(2 * seeds, 0), [s for some in own for s in some])
        means = self.averages(drawn, seeds)  # the edits' seeds, then the others, in turns
        return [
            Plain(
                raw[place : place + 1],
                own[place][:seeds],
                drawn[2 * seeds * place : 2 * seeds * place + seeds],
                {name: rows[2 * place] for name, rows in means.items()},
                {name: rows[2 * place + 1] for name, rows in means.items()},
            )
            for place in range(len(images))
        ]

    def shown(
        self, rows: list[int], attribute: str, count: int, seeds: int
    ) -> tuple[list[Reference], list[Plain]]:
        """References whose plain drawing shows the source value."""
        references = self.world.references(rows, attribute, 2 * count, self.seed)
        plains = self.plain([reference.image for reference in references], seeds)
        values = self.evaluator.vocabulary.values[attribute]
        kept = [
            (reference, plain)
            for reference, plain in zip(references, plains, strict=True)
            if values[int(plain.other[attribute].argmax())] == reference.source
        ][:count]
        return [r for r, _ in kept], [p for _, p in kept]

    def outcomes(
        self, references: list[Reference], plains: list[Plain], method: str
    ) -> list[Outcome]:
        """What one method makes of references."""
        moved = [
            self.edits.moved(reference, plain.raw, method, self.seed + place)
            for place, (reference, plain) in enumerate(zip(references, plains, strict=True))
        ]
        return self.measured(references, plains, moved)

    def twins(self, references: list[Reference], plains: list[Plain]) -> list[Outcome]:
        """What a perfect edit makes of references, its embedding being the twin's."""
        moved = [
            F.normalize(self.drawer.embed(image=reference.twin), dim=1) for reference in references
        ]
        return self.measured(references, plains, moved)

    def measured(
        self, references: list[Reference], plains: list[Plain], moved: list[Tensor]
    ) -> list[Outcome]:
        """Draw unit embeddings `[drifts, dim]` of each reference and look at the drawings."""
        seeds = len(plains[0].seeds)
        raw = torch.cat(
            [
                m.repeat_interleave(seeds, 0) * p.raw.norm()
                for m, p in zip(moved, plains, strict=True)
            ]
        )
        drawn = self.draw(
            raw, [s for m, p in zip(moved, plains, strict=True) for s in p.seeds * len(m)]
        )
        means = self.averages(drawn, seeds)
        found, first = [], 0
        for reference, plain, embeddings in zip(references, plains, moved, strict=True):
            n = len(embeddings)
            span = slice(first, first + n)
            pictures = drawn[first * seeds : (first + n) * seeds]
            first += n
            distance = self.evaluator.distance(plain.images * n, pictures).view(n, seeds).mean(1)
            place = self.evaluator.vocabulary.label(reference.attribute, reference.target)
            seen = means[reference.attribute][span]
            others = [name for name in ATTRIBUTES if name != reference.attribute]
            leakage = {name: variation(means[name][span], plain.other[name]) for name in others}
            noise = {name: variation(plain.same[name], plain.other[name]) for name in others}
            found.append(
                Outcome(
                    (seen.argmax(1) == place).astype(float),
                    seen[:, place],
                    seen[:, place] - plain.other[reference.attribute][place],
                    leakage,
                    {name: leakage[name] - noise[name] for name in others},
                    (1 - distance / self.unrelated).numpy(),
                    degrees(embeddings, plain.raw),
                )
            )
        return found


def variation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Total variation of probabilities `[..., values]`: `[...]`, in [0, 1]."""
    return np.abs(first - second).sum(-1) / 2


def of_references(outcomes: list[Outcome], measure: str, place: int) -> np.ndarray:
    """One measure of each reference's edit at one drift, `[references]`; success as bool."""
    values = np.array([outcome.at(measure, place) for outcome in outcomes])
    return values.astype(bool) if measure == "success" else values


def chosen(outcomes: list[Outcome]) -> int:
    """The place of the smallest drift with enough success, or of the most success."""
    success = np.mean([outcome.success for outcome in outcomes], axis=0)  # [drifts]
    enough = np.flatnonzero(success >= ENOUGH)
    return int(enough[0]) if len(enough) else int(success.argmax())


def attribute_rows(bench: Bench, attribute: str, count: int) -> list[Result]:
    """All rows of one attribute."""
    tried = bench.shown(bench.tried, attribute, TRIED, TRIED_SEEDS)
    held_out = bench.shown(bench.held_out, attribute, count, SEEDS)
    rows: list[Result] = []
    row = partial(mean_row, seed=bench.seed)
    at: dict[str, np.ndarray] = {}
    places: dict[str, int] = {}
    for method in track((*METHODS, "twin"), attribute):
        name = f"{attribute}/{method}"
        if method == "twin":
            outcomes, place = bench.twins(*held_out), 0
        else:
            of_features = places.get("features", 0)
            place = of_features if method == "random" else chosen(bench.outcomes(*tried, method))
            outcomes = bench.outcomes(*held_out, method)
            ranks = np.array([outcome.monotonicity for outcome in outcomes])
            rows.append(row(f"monotonicity/{name}", ranks, "Spearman"))
            rows += curve(outcomes, name, row)
        places[method] = place
        for measure, unit in MEASURES.items():
            values = of_references(outcomes, measure, place)
            rows.append(row(f"{measure}/{name}", values, unit))
        for other in outcomes[0].excess:
            values = np.array([outcome.excess[other][place] for outcome in outcomes])
            rows.append(row(f"excess/{name}/{other}", values, "share"))
        at[method] = of_references(outcomes, "excess", place)
    for method in OF_FEATURES:
        for baseline in (*BASELINES, "twin"):
            difference = at[method] - at[baseline]
            rows.append(row(f"less/{attribute}/{method}/{baseline}", difference, "share"))
    return rows


MEASURES = {
    "success": "share",
    "gain": "share",
    "leakage": "share",
    "excess": "share",
    "preservation": "share",
    "drift": "degrees",
}


def curve(outcomes: list[Outcome], name: str, row: Callable[..., Result]) -> list[Result]:
    """Success, excess and drift at every drift that was asked for."""
    return [
        row(
            f"curve/{measure}/{name}/{asked:g}",
            of_references(outcomes, measure, place),
            MEASURES[measure],
        )
        for place, asked in enumerate(DRIFTS)
        for measure in ("success", "excess", "drift")
    ]


def class_rows(bench: Bench, count: int) -> list[Result]:
    """What blending a reference fully towards another drawing's prompt changes, within each class
    and in as many random features turned by as much: excess variation by attribute, and how much of
    the drawing changes (`appearance`)."""
    rng = np.random.default_rng([bench.seed, len("classes")])
    rows = rng.choice(bench.held_out, size=2 * count, replace=False).tolist()
    images = [bench.world.pairs.image(index) for index in rows[:count]]
    prompts = [bench.world.pairs.rows[index]["text"] for index in rows[count:]]
    plains = bench.plain(images, SEEDS)
    unit = F.normalize(torch.cat([plain.raw for plain in plains]), dim=1)
    towards, now = bench.space.encode_texts(prompts), bench.space.encode_images(unit)
    directions = bench.space.dictionary.directions
    found: list[Result] = []
    for modality_class in MODALITY_CLASSES:
        group = bench.space.select(modality_class)
        change = torch.zeros_like(now)
        change[:, group] = (towards - now)[:, group]
        blended = F.normalize(unit + change @ directions, dim=1)
        generator = torch.Generator().manual_seed(bench.seed)
        others = torch.randperm(len(bench.space), generator=generator)[: len(group)]
        control = torch.zeros_like(now)
        control[:, others] = (towards - now)[:, others]
        same = turned(unit, control @ directions, blended)
        drift = degrees(blended, unit)
        for label, moved in ((modality_class, blended), (f"random_as_{modality_class}", same)):
            raw = torch.cat([m[None] * p.raw.norm() for m, p in zip(moved, plains, strict=True)])
            drawn = bench.draw(
                raw.repeat_interleave(SEEDS, 0), [s for p in plains for s in p.seeds]
            )
            means = bench.averages(drawn, SEEDS)
            for name in ATTRIBUTES:
                values = np.array(
                    [
                        variation(seen, p.other[name]) - variation(p.same[name], p.other[name])
                        for seen, p in zip(means[name], plains, strict=True)
                    ]
                )
                found.append(mean_row(f"class/{label}/{name}", values, "share", bench.seed))
            before = [image for plain in plains for image in plain.images]
            distance = bench.evaluator.distance(before, drawn).view(-1, SEEDS).mean(1)
            values = (distance / bench.unrelated).numpy()
            found.append(mean_row(f"class/{label}/appearance", values, "share", bench.seed))
            found.append(mean_row(f"class/{label}/drift", drift, "degrees", bench.seed))
    return found


def speed_rows(bench: Bench, repeats: int = 25) -> list[Result]:
    """Steered over plain generation, in turns; seconds for one picture and for four."""
    drawer = bench.drawer
    images = bench.edits.training.images[0]
    embedding = drawer.embed(image=bench.world.pairs.image(bench.held_out[0]))
    edits = find(bench.space, images[:100], images[100:200], "features", taken=TAKEN).edits

    def plain(count: int) -> None:
        drawer.draw(embedding.expand(count, -1), [0] * count)

    def steered(count: int) -> None:
        drawer.generate([Steering(edits)] * count, embedding=embedding)

    ratios, ones, fours = [], [], []
    for _ in range(repeats):
        base, one = seconds(plain, 1), seconds(steered, 1)
        ratios.append(one / base)
        ones.append(one)
        fours.append(seconds(steered, 4))
    return [
        median_row("overhead_ratio", ratios, "ratio"),
        median_row("seconds_per_image", ones, "s"),
        median_row("seconds_per_four", fours, "s"),
    ]


def seconds(call: Callable[[int], None], count: int) -> float:
    """That one call takes."""
    start = time.perf_counter()
    call(count)
    return time.perf_counter() - start


def bench_options(doc: str) -> argparse.ArgumentParser:
    """The arguments that `bench_of` takes."""
    parser = options(doc)
    parser.add_argument("--generator", default="embedded")
    parser.add_argument("--space", default="embedded-ssl")
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--device", default="auto")
    return parser


def bench_of(arguments: argparse.Namespace) -> Bench:
    """The generator that was asked for, and the evaluator beside the results."""
    seed = arguments.seed
    drawer = SteeredGenerator.load(arguments.generator, arguments.space, arguments.device)
    return Bench(drawer, load_evaluator(arguments.out.parent, seed), seed, arguments.guidance)


def main() -> None:
    parser = bench_options(__doc__)
    parser.add_argument("--references", type=int, default=24, help="of each attribute")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    arguments = parser.parse_args()
    out, seed, count = arguments.out, arguments.seed, arguments.references
    bench = bench_of(arguments)
    sections: dict[str, Callable[[], list[Result]]] = {
        **{name: partial(attribute_rows, bench, name, count) for name in ATTRIBUTES},
        "classes": partial(class_rows, bench, 2 * count),
        "generator": lambda: generator_rows(
            bench.drawer,
            bench.evaluator,
            load_evaluator(out.parent, seed, EARLIER_STEPS),
            seed,
            bench.guidance,
        ),
        "speed": partial(speed_rows, bench),
    }
    results = run_sections([sections[name] for name in arguments.only], out, seed=seed)
    drawn = [name for name in ATTRIBUTES if name in arguments.only]
    if drawn:
        write_whole(out.with_suffix(".html"), plot(results, drawn).encode())


if __name__ == "__main__":
    main()
