"""A generator trained in miniature, and what the embedded encoder gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from features.embedded.world import EmbeddedPairs
from features.encoders.encoder import Encoder
from features.encoders.load import load_encoder
from features.space.score import score
from features.space.space import FeatureSpace
from mms_apps.steering.generator import SteeredGenerator
from mms_apps.steering.generator_training import train
from mms_apps.steering.generator_training.settings import (
    AutoencoderTraining,
    DecoderTraining,
    DenoiserTraining,
    GeneratorTraining,
    RefinementTraining,
)
from tests.steering import pipelines
from tests.test_space import axes, make_store

TINY = GeneratorTraining(
    autoencoder=AutoencoderTraining(channels=(8, 8, 8), latent_channels=4, steps=3, batch=2),
    decoder=DecoderTraining(steps=2, batch=2),
    denoiser=DenoiserTraining(channels=(16, 16), time_channels=32, steps=4, batch=4, draws=1),
    refinement=RefinementTraining(steps=3, batch=2, own=3, own_steps=2),
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
    return SteeredGenerator.load(folder, device="cpu")


@pytest.fixture(scope="package")
def space(tmp_path_factory: pytest.TempPathFactory) -> FeatureSpace:
    """Features of an encoder that is nowhere to be found."""
    store = make_store(tmp_path_factory.mktemp("stores") / "store")
    return score(store, axes(), progress=False)


MAKERS: dict[str, Callable[[], Any]] = {
    "unclip": pipelines.stable_unclip,
    "kandinsky": pipelines.kandinsky22,
    "sd-ip": pipelines.stable_diffusion,
    "sdxl-ip": pipelines.stable_diffusion_xl,
    "flux-ip": pipelines.flux,
    "sdxl-pooled": pipelines.stable_diffusion_xl,
    "sd3-pooled": pipelines.stable_diffusion_3,
}


@pytest.fixture(scope="package")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Loads a pipeline of a family from its folder, where it was saved, with its IP-Adapter."""
    root = tmp_path_factory.mktemp("pipelines")

    def load(name: str) -> Any:
        folder = root / name
        if not folder.exists():
            with torch.random.fork_rng():
                torch.manual_seed(0)
                MAKERS[name]().save_pretrained(folder)
        pipe = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        weights = root / f"{name}.safetensors"
        with torch.random.fork_rng():
            torch.manual_seed(1)
            if name in ("sd-ip", "sdxl-ip"):
                pipelines.save_unet_ip_adapter(pipe.unet, weights)
                pipe.load_ip_adapter(
                    root, subfolder="", weight_name=weights.name, image_encoder_folder=None
                )
            if name == "flux-ip":
                pipelines.save_flux_ip_adapter(pipe.transformer, weights)
                pipe.load_ip_adapter(
                    root,
                    weight_name=weights.name,
                    image_encoder_pretrained_model_name_or_path=None,
                )
        return pipe

    return load


@pytest.fixture(scope="package")
def pipes(fresh: Callable[[str], Any]) -> dict[str, Any]:
    """One pipeline of each family, that tests leave as it is."""
    return {name: fresh(name) for name in MAKERS}


@pytest.fixture(scope="package")
def embedded() -> FeatureSpace:
    return FeatureSpace.load("embedded-ssl", device="cpu")
