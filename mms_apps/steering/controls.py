"""A steering as the controls of a page: features on sliders, one blend, the steps and the drift."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from features.errors import UserError
from features.space.space import FeatureSpace
from mms_apps.steering.edits import MAX_DRIFT, Blend, Edit, Steering

SLOTS = 4
"""Sliders in the row."""


@dataclass(frozen=True)
class Sliders:
    """Features on a row of sliders. A slider without a feature, or at 0, is free.

    features: `[SLOTS]`.
    strengths: `[SLOTS]`, as those of `Edit`.
    """

    features: tuple[int | None, ...] = (None,) * SLOTS
    strengths: tuple[float, ...] = (0.0,) * SLOTS

    @classmethod
    def of(cls, edits: Sequence[Edit]) -> Sliders:
        """The first edits, from the first slider on."""
        taken = edits[:SLOTS]
        empty = SLOTS - len(taken)
        return cls(
            (*(edit.feature for edit in taken), *[None] * empty),
            (*(edit.strength for edit in taken), *[0.0] * empty),
        )

    def edits(self) -> tuple[Edit, ...]:
        """One edit a slider that is not free."""
        pairs = zip(self.features, self.strengths, strict=True)
        return tuple(Edit(int(f), float(s)) for f, s in pairs if f is not None and s)

    def put(self, feature: int) -> Sliders:
        """With one more feature, of strength 1, on the first free slider.

        Raises:
            UserError: none is free.
        """
        pairs = zip(self.features, self.strengths, strict=True)
        free = [place for place, (f, s) in enumerate(pairs) if f is None or not s]
        if not free:
            raise UserError(f"All {SLOTS} sliders are taken; reset one.")
        features, strengths = list(self.features), list(self.strengths)
        features[free[0]], strengths[free[0]] = feature, 1.0
        return Sliders(tuple(features), tuple(strengths))


@dataclass(frozen=True)
class Controls:
    """What the controls of a page are set to.

    towards: prompt that the blend goes towards.
    blended: the class that is blended, or None.
    alpha: of the blend; at 0 there is none.
    end, max_drift: as those of `Steering`.
    """

    towards: str | None = None
    blended: str | None = None
    alpha: float = 0.0
    end: float = 1.0
    max_drift: float = MAX_DRIFT
    sliders: Sliders = field(default_factory=Sliders)

    @classmethod
    def of(cls, steering: Steering) -> Controls:
        """The controls that show a steering: its first edits and its first blend."""
        blend = steering.blends[0] if steering.blends else None
        return cls(
            steering.prompt,
            None if blend is None else blend.modality_class,
            0.0 if blend is None else blend.alpha,
            steering.end,
            steering.max_drift,
            Sliders.of(steering.edits),
        )

    @classmethod
    def read(cls, text: str, space: FeatureSpace) -> Controls:
        """The controls that show a steering's JSON.

        Raises:
            UserError: it is none, or was made for another space.
        """
        try:
            record = json.loads(text or "{}")
        except ValueError as error:
            raise UserError(f"the edits are not JSON ({error})") from None
        return cls.of(Steering.from_record(record, space, "the edits"))

    def steering(self) -> Steering:
        """What the controls mean.

        Raises:
            UserError: a blend lacks the prompt that it goes towards, or a value is out of range.
        """
        blends = (Blend(self.blended, self.alpha),) if self.blended and self.alpha else ()
        prompt = (self.towards or "").strip() or None
        return Steering(
            self.sliders.edits(), blends, prompt, end=self.end, max_drift=self.max_drift
        )
