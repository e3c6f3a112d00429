"""The evaluator of drawn pictures, and what is measured with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

import benchmarks.evaluator_steps
import benchmarks.generator
from benchmarks.evaluator import (
    ATTRIBUTES,
    Evaluator,
    Vocabulary,
    load_evaluator,
    taught_people,
    trained,
)
from benchmarks.evaluator_steps import left_out_rows
from benchmarks.generator import generator_rows, probe_rows
from benchmarks.steering_references import people_of
from features.embedded.world import EmbeddedPairs


class Knowing:
    """Sees the true values of pictures that it was told of; of all others the first ones."""

    def __init__(self, sources: list[EmbeddedPairs], people: list[int]) -> None:
        self.vocabulary = Vocabulary.of(sources[0])
        pairs = [source.pair(index) for source in sources for index in people]
        self.known = {pair.image.tobytes(): pair.attributes for pair in pairs}

    def logits(self, images: list[Image.Image]) -> dict[str, torch.Tensor]:
        found = {}
        for attribute, values in self.vocabulary.values.items():
            of_each = [self.known.get(image.tobytes(), {}).get(attribute) for image in images]
            labels = torch.tensor([max(0, self.vocabulary.label(attribute, v)) for v in of_each])
            found[attribute] = torch.nn.functional.one_hot(labels, len(values)).float()
        return found

    def pooled(self, images: list[Image.Image]) -> torch.Tensor:
        return torch.stack([torch.tensor(list(image.resize((4, 4)).tobytes())) for image in images])


def test_people_who_are_left_out_are_not_learnt_and_all_others_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = EmbeddedPairs("train")
    learnt: list[int] = []

    def knowing(_: EmbeddedPairs, people: list[int], steps: int, seed: int) -> Knowing:
        assert (steps, seed) == (5, 0)
        learnt.extend(people)
        draws = [EmbeddedPairs("train", draw_seed=draw) for draw in (1, 2)]  # and not of 3
        return Knowing(draws, sorted(set(people_of(source)) - set(people)))

    monkeypatch.setattr(benchmarks.evaluator_steps, "trained", knowing)
    rows = {row.name: row for row in left_out_rows(5, 0)}
    people = people_of(source)
    assert set(learnt) < set(taught_people(source))
    left = set(taught_people(source)) - set(learnt)
    assert left < set(people) and len(left) == len(people) // 10
    assert rows.keys() == {f"left_out/5/{attribute}" for attribute in ATTRIBUTES}
    assert rows["left_out/5/gender"].n == len(left) > rows["left_out/5/role"].n
    for row in rows.values():
        assert 2 / 3 <= row.value < 1


def test_it_is_trained_once_and_then_loaded(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = EmbeddedPairs("train")
    people = taught_people(source)[:20]
    evaluator = trained(source, people, 2, 0)
    monkeypatch.setattr("benchmarks.evaluator.trained", lambda *_: evaluator)
    pictures = [source.image(index) for index in people[:3]]
    first = load_evaluator(tmp_path, 0, 2).logits(pictures)
    monkeypatch.delattr("benchmarks.evaluator.trained")
    again = load_evaluator(tmp_path, 0, 2).logits(pictures)
    assert first.keys() == again.keys() == set(ATTRIBUTES)
    assert all(torch.equal(first[name], again[name]) for name in ATTRIBUTES)
    assert isinstance(evaluator, Evaluator) and not evaluator.training


def test_probes_read_what_embeddings_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gender alone is in these embeddings."""
    held_out = EmbeddedPairs("heldout", draw_seed=0)
    monkeypatch.setattr(benchmarks.generator, "ATTRIBUTES", ("gender", "background"))
    monkeypatch.setattr(benchmarks.generator, "people_of", lambda source: people_of(source)[:100])
    sources = [EmbeddedPairs("train", draw_seed=0), held_out]
    gender = {
        pair.image.tobytes(): float(pair.attributes["gender"] == "man")
        for source in sources
        for pair in map(source.pair, people_of(source)[:100])
    }

    class Drawer:
        def embed(self, image: Image.Image) -> torch.Tensor:
            return torch.tensor([[5.0, gender[image.tobytes()]]])

    pairs = [held_out.pair(index) for index in people_of(held_out)[:100]]
    drawer: Any = Drawer()
    references = torch.cat([drawer.embed(pair.image) for pair in pairs])
    vocabulary = Vocabulary.of(sources[0])
    told, untold = probe_rows(references, pairs, drawer, vocabulary, 0)
    assert told.name == "agreement/probe/gender" and told.value == 1 and told.n == 100
    assert untold.value < 0.5


def test_the_generator_s_drawings_are_seen_by_both_evaluators(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held_out = EmbeddedPairs("heldout", draw_seed=0)
    people = people_of(held_out)[:6]
    monkeypatch.setattr(benchmarks.generator, "people_of", lambda source: people)

    real = [held_out.image(index).tobytes() for index in people]

    class Drawer:
        """Draws references as they are, and prompts grey."""

        def embed(
            self, prompt: str = "", image: Image.Image | None = None, seed: int = 0
        ) -> torch.Tensor:
            place = -1 if image is None else real.index(image.tobytes())
            return torch.tensor([[float(place)]])

        def draw(self, embeddings: torch.Tensor, seeds: list[int], guidance: float) -> list:
            grey = Image.new("RGB", (64, 64), "grey")
            return [grey if e < 0 else held_out.image(people[int(e)]) for e in embeddings]

    monkeypatch.setattr(benchmarks.generator, "probe_rows", lambda *_: [])
    drawer: Any = Drawer()
    knowing: Any = Knowing([held_out], people)
    blind: Any = Knowing([held_out], [])
    rows = {row.name: row for row in generator_rows(drawer, knowing, blind, 0)}
    for attribute in ATTRIBUTES:
        for seen in ("evaluator", "reference"):
            assert rows[f"agreement/{seen}/{attribute}"].value == 1
            assert rows[f"agreement_700/{seen}/{attribute}"].value < 1
    assert "agreement/prompt/background" not in rows
    for row in ("frechet", "frechet_2100"):
        assert rows[f"{row}/reference"].value == pytest.approx(0, abs=1e-3)
        assert rows[f"{row}/real"].value > 1
        assert rows[f"{row}/prompt"].value > 1
