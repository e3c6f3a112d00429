"""Several FeatureSpaces at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from features.encoders.fingerprint import same_encoder
from features.encoders.load import load_encoder
from features.errors import UserError
from features.space.space import FeatureSpace


def load_spaces(
    names: Sequence[str], encoders: Sequence[str] | None, device: torch.device | str
) -> list[FeatureSpace]:
    """FeatureSpaces, each with the one of the encoders that it belongs to.

    Args:
        names: as `FeatureSpace.load` takes them.
        encoders: ids of encoders that have moved; None for none.

    Raises:
        UserError: a space or an encoder cannot be loaded, or an encoder belongs to no space.
    """
    models = {name: load_encoder(name, device=device) for name in encoders or []}
    spaces = []
    used = set()
    for name in names:
        space = FeatureSpace.load(name, device=device)
        for encoder, model in models.items():
            if same_encoder(model.fingerprint, space.config.encoder_fingerprint):
                space = FeatureSpace.load(name, device=device, encoder=model)
                used.add(encoder)
        spaces.append(space)
    for encoder in models.keys() - used:
        raise UserError(f"--encoder {encoder}: none of the spaces belongs to it")
    return spaces
