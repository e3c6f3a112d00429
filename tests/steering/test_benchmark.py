"""What the benchmark of steering measures."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import sqrtm

from benchmarks.evaluator import ATTRIBUTES, Evaluator, Vocabulary
from benchmarks.generator import frechet, frechet_row
from benchmarks.steering import Bench, Outcome, Plain, attribute_rows, chosen, variation
from benchmarks.steering_edits import DRIFTS, METHODS, Edits, solved
from benchmarks.steering_plot import plot
from benchmarks.steering_prompts import METHODS as PROMPT_METHODS
from benchmarks.steering_prompts import PromptBench, prompt_rows
from benchmarks.steering_references import TrainingEmbeddings, World
from features.embedded.world import EmbeddedPairs
from features.space.space import FeatureSpace
from mms_apps.steering.generator import SteeredGenerator


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.of(EmbeddedPairs("train"))


@pytest.fixture(scope="module")
def world(vocabulary: Vocabulary) -> World:
    return World(vocabulary, 0)


@pytest.fixture(scope="module")
def edits(vocabulary: Vocabulary, world: World, embedded: FeatureSpace) -> Edits:
    rows = world.of_split("train")[:150]
    training = TrainingEmbeddings(embedded.encoder, vocabulary, rows, 0)

    class Mean:
        def mean(self, texts: torch.Tensor) -> torch.Tensor:
            return 5 * texts

    drawer: Any = SimpleNamespace(space=embedded, prior=Mean())
    return Edits(drawer, training)


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_a_twin_differs_in_one_attribute_alone(world: World, attribute: str) -> None:
    rows = world.of_split("heldout")
    references = world.references(rows, attribute, 20, 0)
    assert len(references) == 20
    for reference in references:
        assert reference.source != reference.target
        words = reference.edited
        if attribute == "gender":
            words = re.sub(rf"\b{reference.target}\b", reference.source, words)
        if attribute == "skin_tone":
            words = words.replace(f"{reference.target} skin", f"{reference.source} skin")
        if attribute == "background":
            words = words.removesuffix(f", {reference.target} background")
        if attribute == "role":
            for known in (r"[\w-]+ skin tone", r"facing right"):
                assert re.findall(known, words) == re.findall(known, reference.caption)
        else:
            assert words == reference.caption
        assert np.any(np.asarray(reference.image) != np.asarray(reference.twin))


def test_examples_are_pairs_under_the_same_planted_factors(edits: Edits) -> None:
    examples = edits.training.examples("gender", "man", "woman")
    same = (examples.source * examples.target).sum(1).mean()
    other = (examples.source * examples.target.roll(1, 0)).sum(1).mean()
    assert len(examples.source) > 20 and same > other + 0.2


def test_methods_turn_by_as_much_as_was_asked(edits: Edits, world: World) -> None:
    reference = world.references(world.of_split("heldout"), "gender", 1, 0)[0]
    raw = 4 * edits.space.encoder.encode_images([reference.image])
    drifts = {}
    for method in METHODS:
        moved = edits.moved(reference, raw, method, 0)
        torch.testing.assert_close(moved.norm(dim=1), torch.ones(len(DRIFTS)))
        cosine = F.cosine_similarity(moved, raw).clamp(-1, 1)
        drifts[method] = cosine.arccos().rad2deg().numpy()
        assert (np.diff(drifts[method]) > -0.1).all()
    np.testing.assert_allclose(drifts["prompt"], DRIFTS, atol=0.2)
    for method in ("random", "text_direction", "image_direction"):
        np.testing.assert_allclose(drifts[method], drifts["features"], atol=0.2)
    for method in ("features", "difference", "score_set", "affine"):
        assert np.abs(drifts[method] - DRIFTS).mean() < 12


def test_the_least_strength_is_found() -> None:
    assert solved(lambda s: 10 * s, 25.0) == pytest.approx(2.5, abs=1e-3)
    assert solved(lambda s: min(s, 3.0), 25.0) == pytest.approx(16.0)


def test_total_variation_is_half_the_sum_of_differences() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.dirichlet(np.ones(5), size=(3, 4)), rng.dirichlet(np.ones(5))
    loop = [
        [sum(abs(p - q) for p, q in zip(row, second, strict=True)) / 2 for row in rows]
        for rows in first
    ]
    np.testing.assert_allclose(variation(first, second), loop)
    assert variation(np.array([1.0, 0]), np.array([0, 1.0])) == 1


def outcome(*success: float) -> Outcome:
    some = np.array(success)
    return Outcome(some, some, some, {"role": some}, {"role": some, "gender": 0 * some}, some, some)


def test_a_method_stands_at_the_smallest_drift_with_enough_success() -> None:
    assert chosen([outcome(0, 0.7, 1, 1, 1), outcome(0, 1, 0.8, 1, 1)]) == 1
    assert chosen([outcome(0, 0, 0.5, 0.6, 0.4)]) == 3
    assert outcome(0.2, 0.4, 0, 0, 0).at("excess", 1) == pytest.approx(0.2)


class Painter(Bench):
    """A bench whose drawings are of nothing but their seed and embedding."""

    def __init__(self, edits: Edits, world: World, vocabulary: Vocabulary) -> None:
        torch.manual_seed(0)
        self.evaluator = Evaluator(vocabulary).eval()
        self.space, self.edits, self.world = edits.space, edits, world
        self.seed, self.guidance, self.unrelated = 0, 3.0, 1.0
        self.tried, self.held_out = world.of_split("train")[150:], world.of_split("heldout")
        encoder = edits.space.encoder
        self.drawer: Any = SimpleNamespace(
            embed=lambda image: 4 * encoder.encode_images([image]).clone()
        )

    def draw(self, embeddings: torch.Tensor, seeds: Any) -> Any:
        return [
            (round(float(e.abs().sum()), 2), seed)
            for e, seed in zip(embeddings, seeds, strict=True)
        ]

    def averages(self, images: list, times: int) -> dict[str, np.ndarray]:
        found = {}
        for name, values in self.evaluator.vocabulary.values.items():
            rows = []
            for start in range(0, len(images), times):
                own = [
                    np.random.default_rng([int(100 * e), s]).dirichlet(np.ones(len(values)))
                    for e, s in images[start : start + times]
                ]
                rows.append(np.mean(own, axis=0))
            found[name] = np.array(rows)
        return found


def test_an_edit_that_changes_nothing_has_no_excess(
    edits: Edits, world: World, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Painter(edits, world, vocabulary)
    monkeypatch.setattr(type(bench.evaluator), "distance", lambda self, a, b: torch.zeros(len(a)))
    references = world.references(bench.held_out, "gender", 3, 0)
    plains = bench.plain([reference.image for reference in references], 4)
    still = [F.normalize(plain.raw, dim=1) for plain in plains]
    for found in bench.measured(references, plains, still):
        assert found.at("excess", 0) == pytest.approx(0, abs=1e-9)
        assert found.at("leakage", 0) > 0.05
        assert found.drift[0] < 0.1


def test_all_rows_come_and_are_drawn(
    edits: Edits, world: World, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Painter(edits, world, vocabulary)
    monkeypatch.setattr(type(bench.evaluator), "distance", lambda self, a, b: torch.zeros(len(a)))

    def shown(rows: list[int], attribute: str, count: int, seeds: int) -> tuple[list, list[Plain]]:
        references = world.references(rows, attribute, 2, 0)
        return references, bench.plain([reference.image for reference in references], 2)

    monkeypatch.setattr(bench, "shown", shown)
    rows = attribute_rows(bench, "gender", 2)
    names = {row.name for row in rows}
    assert {f"excess/gender/{m}" for m in (*METHODS, "twin")} <= names
    assert {"less/gender/score_set/image_direction", "curve/success/gender/random/18"} <= names
    assert "plotly" in plot(rows, ["gender"])


@pytest.fixture(scope="module")
def prompts(edits: Edits, world: World, vocabulary: Vocabulary) -> PromptBench:
    bench = Painter(edits, world, vocabulary)
    bench.drawer = SteeredGenerator.load("embedded", edits.space, "cpu")
    return PromptBench(bench)


def test_moved_prompts_are_the_pipelines_own_turned_as_far_as_each_other(
    prompts: PromptBench, world: World
) -> None:
    references = world.references(world.of_split("heldout"), "skin_tone", 6, 0)
    states, drift = {}, {}
    for method in PROMPT_METHODS:
        states[method], drift[method] = prompts.moved(references, method, 34.0)
    pipe = prompts.bench.drawer.pipe
    for method, name in (("plain", "caption"), ("prompt", "edited")):
        texts = [getattr(reference, name) for reference in references]
        own, _ = pipe.encode_prompt(texts, "cpu", 1, False)
        torch.testing.assert_close(states[method], own, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(drift["plain"], 0, atol=0.1)
    assert np.abs(drift["features"].mean() - 34) < 10
    for method in ("text_direction", "random"):
        np.testing.assert_allclose(drift[method], drift["features"], atol=0.2)
        assert not torch.allclose(states[method], states["features"], atol=0.1)


def test_prompts_that_are_drawn_alike_gain_nothing_and_leak_nothing(
    prompts: PromptBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = prompts.bench.evaluator.vocabulary.values

    def shown(states: torch.Tensor, seeds: np.ndarray) -> dict[str, np.ndarray]:
        return {name: np.full((len(states), len(known)), 0.25) for name, known in values.items()}

    monkeypatch.setattr(prompts, "shown", shown)
    rows = {row.name: row for row in prompt_rows(prompts, "gender", 3)}
    for method in PROMPT_METHODS:
        assert rows[f"prompts/gain/gender/{method}"].value == 0
    for method in PROMPT_METHODS[1:]:
        assert rows[f"prompts/excess/gender/{method}"].value == 0
    assert rows["prompts/drift/gender/prompt"].value > 1


def test_frechet_distance_of_shifted_normals_is_the_shift() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3))
    assert frechet(x, x) == pytest.approx(0, abs=1e-6)
    assert frechet(x, x + np.array([2, 0, 0])) == pytest.approx(4, abs=1e-6)


@pytest.mark.parametrize("n", [40, 7])
def test_frechet_distance_is_that_of_the_covariances_product(n: int) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(n, 5)), 2 * rng.normal(size=(n, 5)) @ rng.normal(size=(5, 5)) + 1
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    literal = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(a + b - 2 * np.real(sqrtm(a @ b)))
    assert frechet(x, y) == pytest.approx(literal)


def test_the_interval_of_a_frechet_distance_covers_the_true_one() -> None:
    rng = np.random.default_rng(2)
    covered = []
    for _ in range(200):
        x = rng.normal(size=(60, 2))
        y = 3 + 2 * rng.normal(size=(60, 2))  # 2 * 3^2 between the means, 2 * (2 - 1)^2 beside
        row = frechet_row("frechet", x, y)
        covered.append(row.ci_low <= 20 <= row.ci_high)
    assert 0.9 <= np.mean(covered) <= 0.99
