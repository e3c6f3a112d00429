"""The two modalities, and the classes of features by which of them drives a feature."""

from __future__ import annotations

from typing import Literal, get_args

from features.errors import UserError

IMAGE_DOMINANT, TEXT_DOMINANT, CROSS_MODAL, UNSCORED = "ImgD", "TextD", "CrossD", "unscored"
CLASSES = (IMAGE_DOMINANT, TEXT_DOMINANT, CROSS_MODAL, UNSCORED)
Rule = Literal["relative", "fixed"]
RULES: tuple[Rule, ...] = get_args(Rule)
FIXED_BOUNDS = (1 / 3, 2 / 3)
Modality = Literal["image", "text"]
MODALITIES: tuple[Modality, Modality] = ("image", "text")


def place_of(modality: str) -> int:
    """The modality's place among MODALITIES.

    Raises:
        UserError: it is none.
    """
    for place, known in enumerate(MODALITIES):
        if known == modality:
            return place
    raise UserError(f"modality {modality}: use {' or '.join(MODALITIES)}")
