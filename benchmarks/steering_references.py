"""What steering is measured on: drawings, what they are steered to, and their true twins."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from benchmarks.evaluator import Vocabulary
from features.embedded.world import EmbeddedPairs, render
from features.encoders.encoder import Encoder

DRAWS = 3
"""Planted factors under which each training drawing is an example."""
EXAMPLES = 240
"""Pairs that edits are found from, at most."""
PERSON = ("gender", "skin_tone", "role")


@dataclass(frozen=True)
class Reference:
    """A drawing that is steered to another value of an attribute.

    Args:
        image: the drawing under planted factors.
        twin: what a perfect edit gives: the drawing that differs in this attribute alone, under the
            same planted factors.
        caption, edited: the drawing's and the twin's.
    """

    image: Image.Image
    twin: Image.Image
    caption: str
    edited: str
    attribute: str
    source: str
    target: str


def people_of(source: EmbeddedPairs) -> list[int]:
    """Drawings of a man or a woman with one skin tone."""
    return [
        index
        for index, row in enumerate(source.rows)
        if row["gender"] in ("man", "woman")
        and row["skin_tone"] not in (None, "mixed")
        and row["role"]
    ]


class World:
    """All drawings of people, found by who they show.

    Args:
        draw_seed: of the planted factors.
    """

    def __init__(self, vocabulary: Vocabulary, draw_seed: int) -> None:
        self.vocabulary = vocabulary
        self.pairs = EmbeddedPairs(draw_seed=draw_seed)
        self.people = people_of(self.pairs)
        self.place = {self.person(index): index for index in self.people}

    def person(self, index: int) -> tuple[str, ...]:
        """Who a row shows, and which way it faces."""
        row = self.pairs.rows[index]
        return (*(row[name] for name in PERSON), str("facing right" in row["text"]))

    def of_split(self, split: str) -> list[int]:
        """The people of a split."""
        return [index for index in self.people if self.pairs.rows[index]["split"] == split]

    def value(self, index: int, attribute: str) -> str:
        """A row's value of an attribute."""
        if attribute == "background":
            return self.pairs.factors(index).background
        return self.pairs.rows[index][attribute]

    def twin(self, index: int, attribute: str, target: str) -> int | None:
        """The row that shows the same person but for one attribute, where there is one."""
        if attribute == "background":
            return index
        person = list(self.person(index))
        person[PERSON.index(attribute)] = target
        return self.place.get(tuple(person))

    def reference(self, index: int, attribute: str, rng: random.Random) -> Reference | None:
        """The row as a reference, with a target at random; None where no twin is drawn."""
        source = self.value(index, attribute)
        values = self.vocabulary.values[attribute]
        targets = [
            value
            for value in values
            if value != source and self.twin(index, attribute, value) is not None
        ]
        if source not in values or not targets:
            return None
        target = rng.choice(targets)
        twin = self.twin(index, attribute, target)
        assert twin is not None
        factors = self.pairs.factors(index)
        shown = replace(factors, background=target) if attribute == "background" else factors
        rows = self.pairs.rows
        return Reference(
            self.pairs.image(index),
            render(self.pairs.drawing(twin), shown),
            rows[index]["text"],
            rows[twin]["text"] + (f", {target} background" if attribute == "background" else ""),
            attribute,
            source,
            target,
        )

    def references(self, rows: list[int], attribute: str, count: int, seed: int) -> list[Reference]:
        """References from some rows, at random."""
        rng = random.Random(f"{seed}/{attribute}")
        found: list[Reference] = []
        for index in rng.sample(rows, len(rows)):
            reference = self.reference(index, attribute, rng)
            if reference is not None and len(found) < count:
                found.append(reference)
        return found


@dataclass(frozen=True)
class Examples:
    """Training drawings that differ in one attribute alone, pair by pair, or nearly so.

    Args:
        source, target: unit embeddings of the images `[n, dim]`.
        source_texts, target_texts: of the captions `[n, dim]`.
    """

    source: Tensor
    target: Tensor
    source_texts: Tensor
    target_texts: Tensor


class TrainingEmbeddings:
    """Embeddings of training drawings under several draws of the planted factors."""

    def __init__(
        self, encoder: Encoder, vocabulary: Vocabulary, rows: list[int], seed: int
    ) -> None:
        self.worlds = [World(vocabulary, seed + 101 + draw) for draw in range(DRAWS)]
        self.rows = rows
        self.where = {index: place for place, index in enumerate(rows)}
        self.images = [
            encoder.encode_images([world.pairs.image(i) for i in rows]).clone()
            for world in self.worlds
        ]
        self.texts = encoder.encode_texts([self.worlds[0].pairs.rows[i]["text"] for i in rows])
        self.seed = seed

    def examples(self, attribute: str, source: str, target: str) -> Examples:
        """Twins among the training drawings; of the background, the same people with each."""
        rng = random.Random(f"{self.seed}/{attribute}/{source}/{target}")
        found: list[tuple[int, int, int, int]] = []
        for draw, world in enumerate(self.worlds):
            for index in self.rows:
                if world.value(index, attribute) != source:
                    continue
                if attribute == "background":
                    others = [i for i in self.rows if world.value(i, attribute) == target]
                    found.append((draw, self.where[index], draw, self.where[rng.choice(others)]))
                    continue
                twin = world.twin(index, attribute, target)
                if twin in self.where:
                    found.append((draw, self.where[index], draw, self.where[twin]))
        found = rng.sample(found, min(len(found), EXAMPLES))
        images = torch.stack(self.images)  # [draws, rows, dim]
        a, b, c, d = (torch.tensor(column) for column in zip(*found, strict=True))
        return Examples(images[a, b], images[c, d], self.texts[b], self.texts[d])
