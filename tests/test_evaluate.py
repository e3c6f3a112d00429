"""Retrieval, zero-shot and probe hits on cases worked out by hand."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from features.bootstrap import bootstrap_interval
from features.embedded.evaluate import (
    class_vectors,
    gender_prompts,
    probe_hits,
    retrieval_hits,
    skin_tone_prompts,
    zero_shot_hits,
)


def test_retrieval_against_a_double_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    queries = F.normalize(torch.randn(30, 4, generator=generator), dim=-1)
    targets = F.normalize(queries + 0.7 * torch.randn(30, 4, generator=generator), dim=-1)
    for k in (1, 5):
        expected = []
        for i in range(30):
            order = sorted(range(30), key=lambda j: -float(queries[i] @ targets[j]))
            expected.append(i in order[:k])
        assert retrieval_hits(queries, targets, k).tolist() == expected


def test_zero_shot_takes_the_nearest_class() -> None:
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])
    hits = zero_shot_hits(images, ["a", "b", "b"], ["a", "b"], torch.eye(2))
    assert hits.tolist() == [True, True, False]


def test_class_vectors_average_prompts() -> None:
    class Letters:
        def encode_texts(self, texts: list[str]) -> torch.Tensor:
            return torch.tensor([[1.0, 0.0] if "a" in t else [0.0, 1.0] for t in texts])

    vectors = class_vectors(Letters(), [["a", "b"], ["b", "b"]])  # type: ignore[arg-type]
    assert torch.allclose(vectors, torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, 1.0]]))


def test_a_probe_finds_what_is_there_and_not_what_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 8, generator=generator)
    labels = ["yes" if value > 0 else "no" for value in x[:, 0].tolist()]
    chance = ["yes" if torch.rand(1, generator=generator) > 0.5 else "no" for _ in labels]
    assert probe_hits(x[:200], labels[:200], x[200:], labels[200:]).mean() > 0.9
    assert probe_hits(x[:200], chance[:200], x[200:], chance[200:]).mean() < 0.65


def test_prompts_are_balanced_over_classes() -> None:
    men, women = gender_prompts()
    assert len(men) == len(women) > 50
    assert [re.sub(r"\bman\b", "woman", prompt) for prompt in men] == women
    tones = skin_tone_prompts()
    assert len(tones) == 5
    assert len({len(prompts) for prompts in tones}) == 1


def test_bootstrap_interval_covers_a_mean() -> None:
    values = np.random.default_rng(0).normal(3.0, 1.0, 400)
    low, high = bootstrap_interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.2)
    assert np.isnan(bootstrap_interval(np.array([]))).all()
