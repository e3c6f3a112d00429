"""A steering as the controls of a page: features on sliders, one blend, the steps and the drift.

What a saved steering holds beyond that is kept beside the controls, so that it comes back whole.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from features.errors import UserError
from features.space.space import FeatureSpace
from mms_apps.steering.catalogue import title
from mms_apps.steering.edits import Blend, Edit, Mode, Steering
from mms_apps.steering.saved import Source

SLOTS = 4
"""Sliders in the row."""
ADDING: tuple[Mode, ...] = ("add", "add", "add", "add")
STRONGEST = 3.0
"""A slider goes from minus this to this."""


@dataclass(frozen=True)
class Sliders:
    """Features on a row of sliders. A slider without a feature, or that adds 0, is free.

    features: `[SLOTS]`.
    modes: `[SLOTS]`, as those of `Edit`.
    strengths: `[SLOTS]`, as those of `Edit`.
    """

    features: tuple[int | None, ...] = (None,) * SLOTS
    modes: tuple[Mode, ...] = ADDING
    strengths: tuple[float, ...] = (0.0,) * SLOTS

    @classmethod
    def of(cls, edits: Sequence[Edit]) -> Sliders:
        """Edits, at most as many as there are sliders, from the first slider on."""
        empty = SLOTS - len(edits)
        return cls(
            (*(edit.feature for edit in edits), *[None] * empty),
            (*(edit.mode for edit in edits), *ADDING[:empty]),
            (*(edit.strength for edit in edits), *[0.0] * empty),
        )

    def edits(self) -> tuple[Edit, ...]:
        """One edit a slider that is not free."""
        rows = zip(self.features, self.strengths, self.modes, strict=True)
        return tuple(
            Edit(f, s, mode) for f, s, mode in rows if f is not None and not _is_free(f, s, mode)
        )

    def put(self, feature: int) -> Sliders:
        """With one more feature, of strength 1, on the first free slider.

        Raises:
            UserError: none is free.
        """
        rows = list(zip(self.features, self.modes, self.strengths, strict=True))
        free = [place for place, (f, mode, s) in enumerate(rows) if _is_free(f, s, mode)]
        if not free:
            raise UserError(f"All {SLOTS} sliders are taken; reset one.")
        rows[free[0]] = (feature, "add", 1.0)
        return Sliders(*zip(*rows, strict=True))


@dataclass(frozen=True)
class Controls:
    """What the controls of a page are set to.

    towards: prompt that the blend goes towards.
    blended: the class that is blended, or None.
    alpha: of the blend, in [0, 1]; at 0 there is none.
    begin, end: as those of `Steering`.
    max_drift: degrees; 0 for the space's own bound.
    kept: what a steering that was loaded holds and no control shows, to be done after the sliders.
    """

    towards: str | None = None
    blended: str | None = None
    alpha: float = 0.0
    begin: float = 0.0
    end: float = 1.0
    max_drift: float = 0.0
    sliders: Sliders = field(default_factory=Sliders)
    kept: Steering = field(default_factory=Steering)

    @classmethod
    def of(cls, steering: Steering) -> Controls:
        """The controls that show a steering: of its edits and blends the first ones that fit."""
        shown = tuple(takewhile(_on_slider, steering.edits))[:SLOTS]
        blends = tuple(takewhile(_on_control, steering.blends))[:1]
        kept = Steering(
            edits=steering.edits[len(shown) :],
            blends=steering.blends[len(blends) :],
            prompt=steering.prompt,
            score_sets=steering.score_sets,
            stop=steering.stop,
        )
        return cls(
            steering.prompt,
            blends[0].modality_class if blends else None,
            blends[0].alpha if blends else 0.0,
            steering.begin,
            steering.end,
            steering.max_drift or 0.0,
            Sliders.of(shown),
            kept,
        )

    @classmethod
    def read(cls, text: str, space: FeatureSpace) -> tuple[Controls, Source | None]:
        """The controls that show a steering's JSON, and what it was drawn from; None where it does
        not say.

        Raises:
            UserError: it is none, or was made for another space.
        """
        try:
            record = json.loads(text or "{}")
        except ValueError as error:
            raise UserError(f"the edits are not JSON ({error})") from None
        steering = Steering.from_record(record, space, "the edits")
        return cls.of(steering), Source.of(record, "the edits")

    def steering(self) -> Steering:
        """What the controls mean.

        Raises:
            UserError: a blend lacks the prompt that it goes towards, or a value is out of range.
        """
        blends = (Blend(self.blended, self.alpha),) if self.blended and self.alpha else ()
        prompt = (self.towards or "").strip() or None
        return Steering(
            (*self.sliders.edits(), *self.kept.edits),
            (*blends, *self.kept.blends),
            prompt,
            begin=self.begin,
            end=self.end,
            max_drift=self.max_drift or None,
            score_sets=self.kept.score_sets,
            stop=self.kept.stop,
        )

    def told(self, space: FeatureSpace) -> str:
        """What is kept beside the controls, in words; empty where nothing is."""
        parts = [f"{_in_words(edit)} {title(space, edit.feature)}" for edit in self.kept.edits]
        parts += [f"blend {b.modality_class} by {b.alpha:g}" for b in self.kept.blends]
        parts += [f"a score set by {len(s.features)} features" for s in self.kept.score_sets]
        parts += ["each picture's move ends where its probe is sure"] if self.kept.stop else []
        return "; ".join(parts)


def _in_words(edit: Edit) -> str:
    if edit.mode == "remove":
        return "remove" if edit.share == 1 else f"remove {edit.share:g} of"
    if edit.mode == "set":
        return f"set to {edit.strength:g}" + ("" if edit.share == 1 else f" by {edit.share:g}")
    return f"add {edit.strength:g} of"


def _is_free(feature: Any, strength: float, mode: Mode) -> bool:
    return feature is None or (mode == "add" and not strength)


def _on_slider(edit: Edit) -> bool:
    shown = abs(edit.strength) <= STRONGEST and edit.share == 1
    return shown and not _is_free(edit.feature, edit.strength, edit.mode)


def _on_control(blend: Blend) -> bool:
    return blend.rule == "relative" and 0 < blend.alpha <= 1
