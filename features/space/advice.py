"""What to do where a FeatureSpace says little."""

from __future__ import annotations

import numpy as np

from features.space.space import FeatureSpace


def few_pairs(space: FeatureSpace) -> str | None:
    """A sentence on how little could be scored and what would help, where fewer than half of the
    features that are ever active could be; None elsewhere."""
    active = np.asarray(space.features["active_pairs"]) > 0
    scored = np.asarray(space.features["active_pairs"]) >= space.config.min_pairs
    if 2 * scored.sum() >= active.sum():
        return None
    return (
        f"{space.config.pair_count:,} pairs are few for this dictionary: of {active.sum():,} "
        f"features that are ever active, {scored.sum():,} are active on {space.config.min_pairs} "
        "pairs or more, and the others have no score. What helps: more pairs, a dictionary that is "
        "trained already (--space or --dictionary), or one with fewer features (--features)."
    )
