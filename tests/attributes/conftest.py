"""A synthetic FeatureSpace whose features are known, and a tiny CLIP with a FeatureSpace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from features.dictionary import TrainConfig, fit_dictionary
from features.encoders.load import load_encoder
from features.pairs.open import open_pairs
from features.space.score import score
from features.space.space import FeatureSpace
from features.store.extract import extract
from mms_apps.attributes.labels import Samples


@pytest.fixture(scope="session")
def space_folder(
    clip_folder: Path, imagefolder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A saved FeatureSpace of the tiny CLIP over the drawn shapes."""
    work = tmp_path_factory.mktemp("attributes")
    encoder = load_encoder(f"local-dir:{clip_folder}", device="cpu")
    source = open_pairs(str(imagefolder))
    store = extract(source, encoder, work / "store", progress=False, workers=0)
    config = TrainConfig(features=24, k=4, steps=200)
    dictionary = fit_dictionary(store, config, work / "dictionary", device="cpu", progress=False)
    scored = score(store, dictionary, source=source, min_pairs=2, device="cpu", progress=False)
    return scored.save(work / "space")


@pytest.fixture
def space(space_folder: Path, clip_folder: Path) -> FeatureSpace:
    """The tiny FeatureSpace with its encoder."""
    return FeatureSpace.load(space_folder, device="cpu", encoder=f"local-dir:{clip_folder}")


@pytest.fixture
def samples() -> Samples:
    """200 embeddings of 16 dimensions: axis 0 tells `kind`, axis 1 `place`, the rest is noise."""
    rng = np.random.default_rng(0)
    kind = np.array(["cat", "dog"], dtype=object)[np.arange(200) % 2]
    place = np.array(["lawn", "sofa"], dtype=object)[np.arange(200) // 2 % 2]
    x = rng.normal(size=(200, 16)) * 0.3
    x[:, 0] += np.where(kind == "cat", -1, 1)
    x[:, 1] += np.where(place == "lawn", -1, 1)
    unit = torch.nn.functional.normalize(torch.from_numpy(x).float(), dim=-1)
    ids = np.array([f"{i:03d}" for i in range(200)], dtype=object)
    return Samples(unit, ids, {"kind": kind, "place": place})
