"""Samples whose axes are known, and the tiny FeatureSpace with its encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from features.space.space import FeatureSpace
from mms_apps.attributes.labels import Samples


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
