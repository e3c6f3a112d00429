"""The shared core: pairs -> encoder -> activation store -> dictionary -> scores -> FeatureSpace.

Names are loaded when they are first used, so that `import features` stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from features.dictionary import TrainConfig, fit_dictionary, load_dictionary
    from features.encoders.load import load_encoder
    from features.errors import UserError
    from features.evidence.pictures import picture_evidence
    from features.evidence.words import word_evidence
    from features.pairs.open import open_pairs
    from features.space.score import score
    from features.space.space import FeatureSpace
    from features.store.store import ActivationStore

__all__ = [
    "ActivationStore",
    "FeatureSpace",
    "TrainConfig",
    "UserError",
    "fit_dictionary",
    "load_dictionary",
    "load_encoder",
    "open_pairs",
    "picture_evidence",
    "score",
    "word_evidence",
]

_MODULES = {
    "ActivationStore": "features.store.store",
    "FeatureSpace": "features.space.space",
    "TrainConfig": "features.dictionary",
    "UserError": "features.errors",
    "fit_dictionary": "features.dictionary",
    "load_dictionary": "features.dictionary",
    "load_encoder": "features.encoders.load",
    "open_pairs": "features.pairs.open",
    "picture_evidence": "features.evidence.pictures",
    "score": "features.space.score",
    "word_evidence": "features.evidence.words",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'features' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
