"""Fixtures: the embedded space with a small task, and models that are broken on purpose."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from features.space.space import FeatureSpace
from mms_apps.robustness.models import ZeroShot
from mms_apps.robustness.tasks import Task, load_task


@pytest.fixture(scope="session")
def space() -> FeatureSpace:
    return FeatureSpace.load("embedded", device="cpu")


@pytest.fixture(scope="session")
def task(space: FeatureSpace) -> Task:
    """16 held-out images, man or woman."""
    return load_task("embedded:heldout", space.encoder, label="gender", count=16)


@pytest.fixture(scope="session")
def model(space: FeatureSpace, task: Task) -> ZeroShot:
    return task.classifier(space.encoder)


class SmallNet(nn.Module):
    """A convolution, a ReLU and a linear layer with fixed random weights, on 8-pixel images."""

    def __init__(self, classes: int, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.features = nn.Conv2d(3, 8, 3, padding=1)
            self.dropout = nn.Dropout(0.5)
            self.head = nn.Linear(8 * 64, classes)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        return 5 * self.head(self.dropout(self.features(pixels - 0.5).relu().flatten(1)))


def small_case(classes: int, count: int = 12) -> tuple[SmallNet, Tensor, Tensor]:
    """A net, images, and what it predicts for them."""
    model = SmallNet(classes)
    pixels = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model, pixels, model(pixels).argmax(1)
