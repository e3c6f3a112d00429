"""The drawings that a generator is trained on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from features.embedded.world import EmbeddedPairs, PlantedFactors, caption, render


@dataclass(frozen=True)
class Drawn:
    """The training images, one row each.

    pixels: uint8 `[n, 64, 64, 3]`.
    captions: n prompts.
    people: whether it is a person, bool `[n]`.
    """

    pixels: Tensor
    captions: list[str]
    people: Tensor


def draw_images(source: EmbeddedPairs, draws: int, seed: int) -> Drawn:
    """Each drawing under several draws of its planted factors; half of the captions are in a
    register, the others are the bare names."""
    rng = random.Random(seed)
    pixels, captions = [], []
    for index, row in enumerate(source.rows):
        drawing = source.drawing(index)
        for _ in range(draws):
            factors = PlantedFactors.draw(rng)
            pixels.append(np.asarray(render(drawing, factors)))
            captions.append(caption(row["text"], factors) if rng.random() < 0.5 else row["text"])
    people = torch.tensor([row["gender"] is not None for row in source.rows])
    return Drawn(torch.from_numpy(np.stack(pixels)), captions, people.repeat_interleave(draws))


def scaled(pixels: Tensor) -> Tensor:
    """uint8 `[n, h, w, 3]` -> `[n, 3, h, w]` in [-1, 1]."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def random_pictures(drawings: Sequence[Image.Image], key: str, batch: int) -> Tensor:
    """Drawings under random planted factors, the same ones for the same key:
    `[batch, 3, 64, 64]` in [-1, 1]."""
    rng = random.Random(key)
    pictures = [
        np.asarray(render(rng.choice(drawings), PlantedFactors.draw(rng))) for _ in range(batch)
    ]
    return scaled(torch.from_numpy(np.stack(pictures)))
