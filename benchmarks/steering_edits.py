"""The ways of steering that are compared: edits of features, their baselines and their controls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.steering_references import Reference, TrainingEmbeddings
from mms_apps.steering.edits import Steering
from mms_apps.steering.finding import TAKEN, AffineMap, find, sure_of
from mms_apps.steering.generator import SteeredGenerator, scaled

METHODS = (
    "features",
    "difference",
    "score_set",
    "smallest",
    "text_direction",
    "image_direction",
    "prompt",
    "affine",
    "random",
)
TURNED = ("text_direction", "image_direction", "random")
OF_FEATURES = ("features", "difference", "score_set", "smallest")
DRIFTS = (18.0, 26.0, 34.0, 42.0, 50.0)
"""Degrees by which methods turn training drawings, on average."""
STRONGEST = 16.0
HALVINGS = 16
UNBOUNDED = 180.0
Task = tuple[str, str, str]
"""Attribute, source and target."""


class Edits:
    """All ways to steer, found on training drawings."""

    def __init__(self, drawer: SteeredGenerator, training: TrainingEmbeddings) -> None:
        self.drawer, self.training = drawer, training
        self.space = drawer.space
        self.examples = cache(training.examples)
        self._steering = cache(self._find)
        self._map = cache(self._fit)
        self.strengths = cache(self._strengths)

    def moved(self, reference: Reference, raw: Tensor, method: str, seed: int) -> Tensor:
        """Unit embeddings `[drifts, dim]` of a reference's `[1, dim]` under one method."""
        task = (reference.attribute, reference.source, reference.target)
        unit = F.normalize(raw.float(), dim=1)
        if method == "prompt":
            step = self._of_prompts(reference.caption, reference.edited)
            return torch.cat([F.normalize(unit + s * step, dim=1) for s in _reaching(unit, step)])
        if method in TURNED:
            return self._turned(unit, task, self.direction(method, task, seed))
        return torch.cat([self._at(unit, task, method, s) for s in self.strengths(task, method)])

    def _at(self, unit: Tensor, task: Task, method: str, strength: float) -> Tensor:
        """Unit embeddings `[n, dim]`, moved."""
        if method == "affine":
            return F.normalize(unit + strength * self._map(*task).move(unit), dim=1)
        steering = scaled(self._steering(method, *task), strength)
        return steering.apply(self.space, unit).embedding

    def _strengths(self, task: Task, method: str) -> tuple[float, ...]:
        """The strengths at which the training drawings to go from turn by DRIFTS on average, or
        the most there is."""
        source = self.examples(*task).source

        def drift(strength: float) -> float:
            cosine = (self._at(source, task, method, strength) * source).sum(1).clamp(-1, 1)
            return float(cosine.arccos().rad2deg().mean())

        return tuple(solved(drift, wanted) for wanted in DRIFTS)

    def _find(self, method: str, attribute: str, source: str, target: str) -> Steering:
        examples = self.examples(attribute, source, target)
        how = "features" if method == "smallest" else method
        found = find(self.space, examples.source, examples.target, how, taken=TAKEN)
        stop = sure_of(examples.source, examples.target) if method == "smallest" else None
        return replace(found, max_drift=UNBOUNDED, stop=stop)

    def _fit(self, *task: str) -> AffineMap:
        examples = self.examples(*task)
        return AffineMap.fit(examples.source, examples.target)

    def direction(self, method: str, task: Task, seed: int) -> Tensor:
        """One of TURNED, `[dim]`; random ones by the seed."""
        examples = self.examples(*task)
        if method == "text_direction":
            return (examples.target_texts - examples.source_texts).mean(0)
        if method == "image_direction":
            return (examples.target - examples.source).mean(0)
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(self.space), generator=generator)[:TAKEN]
        signs = torch.randint(2, (TAKEN, 1), generator=generator) * 2 - 1
        return (self.space.dictionary.directions[chosen] * signs).sum(0)

    def _turned(self, unit: Tensor, task: Task, direction: Tensor) -> Tensor:
        """The reference turned towards a direction, by as much as features turn it."""
        features = [self._at(unit, task, "features", s) for s in self.strengths(task, "features")]
        return turned(unit, direction[None], torch.cat(features))

    def _of_prompts(self, before: str, after: str) -> Tensor:
        """How the prior's unit embedding of a prompt moves: `[1, dim]`."""
        prior = self.drawer.prior
        assert prior is not None, "the benchmark needs a generator with a prior"
        texts = self.space.encoder.encode_texts([before, after])
        first, second = prior.mean(texts)
        return ((second - first) / first.norm())[None]


def turned(unit: Tensor, direction: Tensor, by: Tensor) -> Tensor:
    """Unit embeddings turned towards directions, each by as much as others are turned from them.

    Args:
        unit: `[n, dim]` or `[1, dim]`.
        direction: likewise.
        by: unit embeddings `[n, dim]`.

    Returns:
        `[n, dim]`.
    """
    across = F.normalize(direction - (direction * unit).sum(1, keepdim=True) * unit, dim=1)
    cosine = (by * unit).sum(1, keepdim=True).clamp(-1, 1)  # [n, 1]
    return cosine * unit + (1 - cosine.square()).sqrt() * across


def degrees(first: Tensor, second: Tensor) -> np.ndarray:
    """The angles between embeddings, row by row, `[n]`."""
    return F.cosine_similarity(first, second).clamp(-1, 1).arccos().rad2deg().numpy()


def _reaching(unit: Tensor, step: Tensor) -> list[float]:
    """The strengths at which a step turns a unit embedding `[1, dim]` by DRIFTS."""

    def drift(strength: float) -> float:
        return float(F.cosine_similarity(unit + strength * step, unit).arccos().rad2deg())

    return [solved(drift, wanted) for wanted in DRIFTS]


def solved(drift: Callable[[float], float], wanted: float) -> float:
    """The least strength with a drift, which grows with it; the strongest where none has it."""
    low, high = 0.0, STRONGEST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if drift(middle) >= wanted else (middle, high)
    return high
