"""Benchmark of steering: does an edit do what was asked, and what else does it do?

    python -m benchmarks.steering --out runs/benchmark-steering.json

References are held-out drawings of men and women with a skin tone, under planted factors; each is
steered to another value of an attribute at seven strengths, from the same noise. Methods:

- features: the features in which training images of the two values differ most;
- features_by_class: the same within one modality class;
- text_direction: the mean difference of prompts' text embeddings, as long as the features' move;
- prompt: towards the embedding that the prior gives for the edited prompt;
- random_feature: as many random features, as long a move.

Each method's strength (and class) is the one above 0 with the most success less leakage on training
drawings. success: the evaluator sees the target value. leakage: the share of the other attributes
whose value, as the evaluator sees it, is another than in the unedited picture; of each of them,
`leakage/<attribute>/<method>/<other>`. preservation: 1 less
the distance from the unedited picture over that between unrelated pictures. monotonicity: Spearman
correlation of the target's log-odds with the strength. drift: degrees. Intervals are bootstrapped
over references.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.progress import track
from scipy.linalg import sqrtm
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.common import Result, mean_row, median_row, options, run_sections
from benchmarks.evaluator import ATTRIBUTES, Evaluator, load_evaluator
from features.embedded.world import EmbeddedPairs
from features.files import write_whole
from features.pairs.base import Pair
from features.reports.page import MODALITY_CLASSES
from features.space.space import FeatureSpace
from mms_apps.steering.choosing import between
from mms_apps.steering.edits import Steering
from mms_apps.steering.generator import SteeredGenerator

SECTIONS = ("generator", "speed", "methods", "classes")
STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
METHODS = ("features", "features_by_class", "text_direction", "prompt", "random_feature")
TAKEN = 8
EXAMPLES = 200
DRAW_BATCH = 56


@dataclass(frozen=True)
class Task:
    """A reference and the value it is steered to."""

    pair: Pair
    attribute: str
    source: str
    target: str
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What one method made of one reference, by strength `[strengths]`.

    changed: of each other attribute, whether the evaluator sees another value.
    """

    success: np.ndarray
    changed: dict[str, np.ndarray]
    preservation: np.ndarray
    drift: np.ndarray
    monotonicity: float

    @property
    def leakage(self) -> np.ndarray:
        """The share of the other attributes that changed."""
        return np.mean(list(self.changed.values()), axis=0)


class Bench:
    """The generator, the evaluator, and training samples to choose features from."""

    def __init__(self, drawer: SteeredGenerator, evaluator: Evaluator, seed: int) -> None:
        self.drawer, self.evaluator, self.seed = drawer, evaluator, seed
        self.space: FeatureSpace = drawer.space
        source = EmbeddedPairs("train", draw_seed=seed + 1)
        people = people_of(source)
        rng = random.Random(seed)
        rng.shuffle(people)
        self.validation = [source.pair(index) for index in people[:300]]
        self.train = [source.pair(index) for index in people[300:]]
        self.images = self.space.encoder.encode_images([p.image for p in self.train]).clone()
        self.texts = self.space.encoder.encode_texts([p.captions[0] for p in self.train]).clone()
        first, second = self.train[:64], self.train[64:128]
        unrelated = evaluator.distance([p.image for p in first], [p.image for p in second])
        self.unrelated = float(unrelated.mean())

    def of_value(self, attribute: str, value: str) -> Tensor:
        """Rows of training samples with a value."""
        rows = [i for i, p in enumerate(self.train) if p.attributes[attribute] == value]
        return torch.tensor(rows[:EXAMPLES])

    def move(self, task: Task, method: str, modality_class: str, raw: Tensor) -> Tensor:
        """Raw embeddings `[strengths, dim]` of a reference's `[1, dim]` under one method."""
        source, target = (self.of_value(task.attribute, v) for v in (task.source, task.target))
        unit = F.normalize(raw, dim=1)
        every = between(self.space, self.images[source], self.images[target], taken=len(self.space))
        usable = set(self.space.select(modality_class or None).tolist())
        edits = tuple([edit for edit in every if edit.feature in usable][:TAKEN])
        step = Steering(edits).change(self.space, unit, "image") @ self.space.dictionary.directions
        if method == "text_direction":
            direction = self.texts[target].mean(0) - self.texts[source].mean(0)
            step = F.normalize(direction, dim=0)[None] * step.norm()
        elif method == "random_feature":
            generator = torch.Generator().manual_seed(task.seed)
            chosen = torch.randperm(len(self.space), generator=generator)[: len(edits)]
            signs = torch.randint(2, (len(edits), 1), generator=generator) * 2 - 1
            direction = (self.space.dictionary.directions[chosen] * signs).sum(0)
            step = F.normalize(direction, dim=0)[None] * step.norm()
        elif method == "prompt":
            texts = [task.pair.captions[0], edited_caption(task)]
            prior = self.drawer.prior
            assert prior is not None, "the benchmark needs a generator with a prior"
            before, after = prior.mean(self.space.encoder.encode_texts(texts))
            step = (after - before)[None] / raw.norm()
        moved = unit + torch.tensor(STRENGTHS)[:, None] * step
        return F.normalize(moved, dim=1) * raw.norm()

    def outcomes(self, tasks: list[Task], method: str, modality_class: str) -> list[Outcome]:
        """Steer, draw and evaluate all tasks by one method."""
        raw = [self.drawer.embed(image=task.pair.image) for task in tasks]
        moved = [
            self.move(task, method, modality_class, r) for task, r in zip(tasks, raw, strict=True)
        ]
        images = self.draw(torch.cat(moved), [t.seed for t in tasks for _ in STRENGTHS])
        logits = self.evaluator.logits(images)
        seen = {name: found.argmax(1).view(len(tasks), -1) for name, found in logits.items()}
        rows = []
        for row, task in enumerate(tasks):
            place = self.evaluator.vocabulary.label(task.attribute, task.target)
            span = slice(row * len(STRENGTHS), (row + 1) * len(STRENGTHS))
            odds = logits[task.attribute][span].log_softmax(1)[:, place]
            changed = {
                name: (found[row] != found[row][0]).float().numpy()
                for name, found in seen.items()
                if name != task.attribute
            }
            pictures = images[span]
            distance = self.evaluator.distance([pictures[0]] * len(STRENGTHS), pictures)
            cosine = F.cosine_similarity(moved[row], raw[row]).clamp(-1, 1)
            varies = bool(odds.min() < odds.max())
            rank = spearmanr(STRENGTHS, odds.numpy()).statistic if varies else 0.0
            rows.append(
                Outcome(
                    (seen[task.attribute][row] == place).float().numpy(),
                    changed,
                    (1 - distance / self.unrelated).numpy(),
                    cosine.arccos().rad2deg().numpy(),
                    float(rank),
                )
            )
        return rows

    def draw(self, embeddings: Tensor, seeds: Sequence[int]) -> list[Image.Image]:
        """Pictures of many embeddings."""
        images = []
        for start in range(0, len(embeddings), DRAW_BATCH):
            part = slice(start, start + DRAW_BATCH)
            images += self.drawer.draw(embeddings[part], seeds[part])
        return images


def people_of(source: EmbeddedPairs) -> list[int]:
    """Drawings of a man or a woman with one skin tone."""
    return [
        index
        for index, row in enumerate(source.rows)
        if row["gender"] in ("man", "woman")
        and row["skin_tone"] not in (None, "mixed")
        and row["role"]
    ]


def make_tasks(
    pairs: list[Pair], attribute: str, bench: Bench, count: int, rng: random.Random
) -> list[Task]:
    """References with a value that the evaluator knows, each with another value to go to."""
    values = bench.evaluator.vocabulary.values[attribute]
    usable = [p for p in pairs if p.attributes[attribute] in values]
    tasks = []
    for pair in rng.sample(usable, min(count, len(usable))):
        source = str(pair.attributes[attribute])
        target = rng.choice([value for value in values if value != source])
        tasks.append(Task(pair, attribute, source, target, rng.randrange(2**31)))
    return tasks


def edited_caption(task: Task) -> str:
    """The caption with the value replaced; where it does not say the value, it is added."""
    caption = task.pair.captions[0]
    source = task.source if task.attribute != "skin_tone" else f"{task.source} skin tone"
    target = task.target if task.attribute != "skin_tone" else f"{task.target} skin tone"
    if source in caption:
        return caption.replace(source, target)
    return f"{caption}, {target} {task.attribute}"


def method_rows(bench: Bench, held_out: list[Pair], count: int) -> list[Result]:
    """All rows of all methods and attributes."""
    rows = []
    for attribute in track(ATTRIBUTES, "steering"):
        rng = random.Random(f"{bench.seed}/{attribute}")
        trial = make_tasks(bench.validation, attribute, bench, count // 2, rng)
        tasks = make_tasks(held_out, attribute, bench, count, rng)
        for method in METHODS:
            classes = MODALITY_CLASSES if method == "features_by_class" else ("",)
            tried = []
            for modality_class in classes:
                found = bench.outcomes(trial, method, modality_class)
                worth = np.mean([o.success - o.leakage for o in found], axis=0)  # [strengths]
                best = 1 + int(worth[1:].argmax())
                tried.append((worth[best], best, modality_class))
            _, place, modality_class = max(tried)
            outcomes = bench.outcomes(tasks, method, modality_class)
            name = f"{attribute}/{method}"
            for measure, unit in (
                ("success", "share"),
                ("leakage", "share"),
                ("preservation", "share"),
                ("drift", "degrees"),
            ):
                values = np.array([getattr(o, measure)[place] for o in outcomes])
                rows.append(mean_row(f"{measure}/{name}", values, unit, bench.seed))
            for other in outcomes[0].changed:
                values = np.array([o.changed[other][place] for o in outcomes])
                rows.append(mean_row(f"leakage/{name}/{other}", values, "share", bench.seed))
            ranks = np.array([o.monotonicity for o in outcomes])
            rows.append(mean_row(f"monotonicity/{name}", ranks, "Spearman", bench.seed))
            chosen = STRENGTHS[place]
            rows.append(Result(f"strength/{name}", chosen, chosen, chosen, len(trial), "times"))
    return rows


def class_rows(bench: Bench, held_out: list[Pair], count: int) -> list[Result]:
    """What blending a reference fully towards another drawing's prompt changes, within each class
    and within as many random features: the share whose value, as the evaluator sees it, becomes
    another than in the unedited picture; and how much of the picture changes (`appearance`)."""
    rng = random.Random(f"{bench.seed}/classes")
    pairs = rng.sample(held_out, 2 * count)
    references, prompts = pairs[:count], pairs[count:]
    raw = torch.cat([bench.drawer.embed(image=pair.image) for pair in references])
    unit = F.normalize(raw, dim=1)
    towards = bench.space.encode_texts([pair.captions[0] for pair in prompts])
    now = bench.space.encode_images(unit)
    seeds = [rng.randrange(2**31) for _ in references]
    plain = bench.draw(raw, seeds)
    before = bench.evaluator.logits(plain)
    rows = []
    for modality_class in MODALITY_CLASSES:
        chosen = bench.space.select(modality_class)
        generator = torch.Generator().manual_seed(bench.seed)
        control = torch.randperm(len(bench.space), generator=generator)[: len(chosen)]
        for label, group in ((modality_class, chosen), (f"random_as_{modality_class}", control)):
            change = torch.zeros_like(now)
            change[:, group] = (towards - now)[:, group]
            moved = F.normalize(unit + change @ bench.space.dictionary.directions, dim=1)
            images = bench.draw(moved * raw.norm(dim=1, keepdim=True), seeds)
            after = bench.evaluator.logits(images)
            for name in ATTRIBUTES:
                changed = (after[name].argmax(1) != before[name].argmax(1)).float().numpy()
                rows.append(mean_row(f"class/{label}/{name}", changed, "share", bench.seed))
            distance = bench.evaluator.distance(plain, images).numpy() / bench.unrelated
            rows.append(mean_row(f"class/{label}/appearance", distance, "share", bench.seed))
    return rows


def generator_rows(bench: Bench, held_out: list[Pair]) -> list[Result]:
    """The evaluator on real held-out pictures, and on pictures drawn of their embeddings and of
    their prompts alone: accuracy by attribute, and the Frechet distance of its features."""
    rows = []
    real = [pair.image for pair in held_out]
    seeds = list(range(len(held_out)))
    references = torch.cat([bench.drawer.embed(image=image) for image in real])
    prompts = torch.cat(
        [bench.drawer.embed(p.captions[0], seed=s) for p, s in zip(held_out, seeds, strict=True)]
    )
    sets = {
        "evaluator": real,
        "reference": bench.draw(references, seeds),
        "prompt": bench.draw(prompts, seeds),
    }
    features = {
        name: bench.evaluator.pooled(images).double().numpy() for name, images in sets.items()
    }
    for name, images in sets.items():
        logits = bench.evaluator.logits(images)
        for attribute in ATTRIBUTES:
            if name == "prompt" and attribute == "background":
                continue  # prompts don't say it
            labels = torch.tensor(
                [
                    bench.evaluator.vocabulary.label(attribute, p.attributes[attribute])
                    for p in held_out
                ]
            )
            right = (logits[attribute].argmax(1) == labels)[labels >= 0].float().numpy()
            rows.append(mean_row(f"agreement/{name}/{attribute}", right, "share", bench.seed))
        if name != "evaluator":
            distance = frechet(features["evaluator"], features[name])
            n = len(images)
            rows.append(Result(f"frechet/{name}", distance, np.nan, np.nan, n, "distance"))
    other = EmbeddedPairs("heldout", draw_seed=7)
    again = bench.evaluator.pooled([other.pair(i).image for i in people_of(other)]).double().numpy()
    floor = frechet(features["evaluator"], again)
    rows.append(Result("frechet/real", floor, np.nan, np.nan, len(again), "distance"))
    return rows


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """Frechet distance of two sets of features `[n, dim]` (Heusel et al. 2017, FID's)."""
    a, b = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    root = np.real(sqrtm(a @ b))
    between_means = np.square(first.mean(0) - second.mean(0)).sum()
    return float(between_means + np.trace(a + b - 2 * root))


def speed_rows(bench: Bench, repeats: int = 9) -> list[Result]:
    """Steered over plain generation, in turns; seconds for one picture and for four."""
    drawer = bench.drawer
    embedding = drawer.embed(image=bench.train[0].image)
    edits = between(bench.space, bench.images[:100], bench.images[100:200], taken=TAKEN)

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


def plot(results: list[Result]) -> str:
    """Success against preservation, one panel an attribute: an HTML page."""
    from plotly.subplots import make_subplots

    found = {r.name: r for r in results}
    titles = [name.replace("_", " ") for name in ATTRIBUTES]
    figure = make_subplots(1, len(ATTRIBUTES), subplot_titles=titles, shared_yaxes=True)
    colours = dict(
        zip(METHODS, ("#3730a3", "#818cf8", "#d97706", "#059669", "#6b7280"), strict=True)
    )
    for column, attribute in enumerate(ATTRIBUTES, 1):
        for method in METHODS:
            x, y = (found[f"{m}/{attribute}/{method}"] for m in ("preservation", "success"))
            errors = [
                {
                    "type": "data",
                    "symmetric": False,
                    "array": [r.ci_high - r.value],
                    "arrayminus": [r.value - r.ci_low],
                    "thickness": 1,
                }
                for r in (x, y)
            ]
            figure.add_scatter(
                x=[x.value],
                y=[y.value],
                error_x=errors[0],
                error_y=errors[1],
                mode="markers",
                marker={"size": 11, "color": colours[method]},
                name=method.replace("_", " "),
                legendgroup=method,
                showlegend=column == 1,
                row=1,
                col=column,
            )
    figure.update_xaxes(title_text="preservation", range=[-0.1, 1.05])
    figure.update_yaxes(range=[-0.03, 1.05])
    figure.update_yaxes(title_text="success", row=1, col=1)
    figure.update_layout(
        width=1100,
        height=330,
        margin={"t": 40},
        template="simple_white",
        legend={"orientation": "h", "y": -0.3},
    )
    return figure.to_html(include_plotlyjs=True)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--generator", default="embedded")
    parser.add_argument("--space", default="embedded-ssl")
    parser.add_argument("--references", type=int, default=48, help="of each attribute")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    out, seed = arguments.out, arguments.seed
    drawer = SteeredGenerator.load(arguments.generator, arguments.space, arguments.device)
    bench = Bench(drawer, load_evaluator(out.parent, seed), seed)
    source = EmbeddedPairs("heldout", draw_seed=seed)
    held_out = [source.pair(index) for index in people_of(source)]
    count = arguments.references
    sections: dict[str, Callable[[], list[Result]]] = {
        "generator": lambda: generator_rows(bench, held_out),
        "speed": lambda: speed_rows(bench),
        "methods": lambda: method_rows(bench, held_out, count),
        "classes": lambda: class_rows(bench, held_out, min(2 * count, len(held_out) // 2)),
    }
    results = run_sections([sections[name] for name in arguments.only], out, seed=seed)
    if "methods" in arguments.only:
        write_whole(out.with_suffix(".html"), plot(results).encode())


if __name__ == "__main__":
    main()
