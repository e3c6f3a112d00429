"""How far apart the samples of a store lie."""

from __future__ import annotations

import torch
from torch import Tensor

from features.store.store import ActivationStore

SAMPLES = 2000
QUANTILE = 0.05


def near_angles(store: ActivationStore) -> dict[str, float]:
    """By modality, the angle in degrees that one pair of samples of twenty stays below.

    Measured between at most SAMPLES samples, evenly over the store.
    """
    if len(store) < 2:
        return {}
    rows = torch.linspace(0, len(store) - 1, min(len(store), SAMPLES)).long().unique()
    images, texts = store.rows(rows)
    return {"image": _near(images), "text": _near(texts)}


def _near(embeddings: Tensor) -> float:
    unit = torch.nn.functional.normalize(embeddings.float(), dim=1)
    cosines = unit @ unit.T  # [samples, samples]
    places = torch.triu_indices(len(unit), len(unit), offset=1)
    between = cosines[places[0], places[1]].clamp(-1, 1)  # [samples * (samples - 1) / 2]
    nearest = max(1, round(QUANTILE * len(between)))
    return float(between.topk(nearest).values[-1].arccos().rad2deg())
