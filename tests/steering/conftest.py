"""A generator trained in miniature, and what the embedded encoder gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from features.embedded.world import EmbeddedPairs
from features.encoders.encoder import Encoder
from features.encoders.load import load_encoder
from mms_apps.steering.generator import SteeredGenerator
from mms_apps.steering.generator_training import train
from mms_apps.steering.generator_training.settings import (
    AutoencoderTraining,
    DecoderTraining,
    DenoiserTraining,
    GeneratorTraining,
)

TINY = GeneratorTraining(
    autoencoder=AutoencoderTraining(channels=(8, 8, 8), latent_channels=4, steps=3, batch=2),
    decoder=DecoderTraining(steps=2, batch=2),
    denoiser=DenoiserTraining(channels=(16, 16), time_channels=32, steps=4, batch=4, draws=1),
    prior_draws=2,
)


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    return load_encoder("embedded-ssl", device="cpu")


class FewPairs(EmbeddedPairs):
    """The first twelve training pairs."""

    def __init__(self, split: str) -> None:
        super().__init__(split)
        self.rows = self.rows[:12]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("generator")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "EmbeddedPairs", FewPairs)
        train.train_generator(out, TINY)
    return out


@pytest.fixture(scope="session")
def drawer(folder: Path) -> SteeredGenerator:
    return SteeredGenerator.load(str(folder), device="cpu")
