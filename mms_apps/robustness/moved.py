"""What an attack moved in single pictures, and where: the features that moved most, and what each
rests on before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from features.errors import UserError
from features.evidence.pictures import prepared_evidence
from features.evidence.reading import where
from features.reports.layers import Layer, layers_beside, switch
from features.reports.page import CLASS_NAMES, picture_url, templates
from features.space.space import FeatureSpace
from features.space.tables import thumbnail
from mms_apps.robustness.groups import most_moved
from mms_apps.robustness.models import ZeroShot
from mms_apps.robustness.pictures import picture

SHOWN_FEATURES = 3
"""Of each picture."""
LAYERS_SWITCH = switch(full="the strongest place of the two pictures", on=True)
CSS = """
.moved { list-style:none; margin:0; padding:0; display:grid; column-gap:2rem;
  grid-template-columns:repeat(auto-fit, minmax(min(100%, 260px), 1fr)); }
.moved li { display:grid; grid-template-columns:minmax(0, 1fr) 72px 72px; gap:.3rem .6rem;
  align-items:center; padding:.55rem 0; margin:0; border-top:1px solid var(--line,
  var(--border-color-primary)); }
.moved strong { overflow-wrap:anywhere; }
.moved small { display:block; line-height:1.35; }
.moved figure { margin:0; }
.moved figcaption { font-size:.75rem; line-height:1.2; }
.moved .stack img { width:72px; height:72px; object-fit:contain; margin:0; border-radius:4px; }
"""


@dataclass(frozen=True)
class MovedFeature:
    """A feature that an attack moved in a picture.

    before, after: its activation.
    mean_active: its mean activation where it is active.
    layers: what it rests on in the clean picture and in the attacked one, on one scale; None where
        the encoder's tower has no map to look at.
    rested, rests: where most of that is, before and after.
    """

    feature: int
    name: str
    modality_class: str
    before: float
    after: float
    mean_active: float
    layers: tuple[Layer, Layer] | None = None
    rested: str = ""
    rests: str = ""

    @property
    def change(self) -> float | None:
        """In units of its mean activation."""
        return (self.after - self.before) / self.mean_active if self.mean_active > 0 else None

    @property
    def words(self) -> str:
        """Where it rests, before and after."""
        if self.layers is None:
            return ""
        if self.rested == self.rests:
            return f"rests most on {self.rests}, before and after"
        return f"rested most on {self.rested}, now on {self.rests}"


def moved_features(
    model: ZeroShot, space: FeatureSpace, clean: Tensor, attacked: Tensor
) -> list[list[MovedFeature]]:
    """Of each picture the features that moved most, those first that moved more.

    Args:
        space: of the model's encoder.
        clean: pixels in [0, 1], `[n, 3, height, width]`.
        attacked: of the same pictures.
    """
    device = space.device
    clean, attacked = clean.to(device), attacked.to(device)
    with torch.no_grad():
        before, after = (space.encode_images(model.plain(p)) for p in (clean, attacked))
    found = []
    for n, both in enumerate(torch.stack([clean, attacked], 1)):  # [2, 3, height, width]
        rows = most_moved(space, before[n : n + 1], after[n : n + 1], SHOWN_FEATURES)
        moved = [MovedFeature(**_fields(row)) for row in rows]
        found.append(_with_layers(moved, space, model.prepared(both)) if moved else [])
    return found


def moved_html(features: Sequence[MovedFeature], clean: Tensor, attacked: Tensor) -> str:
    """The features that moved in a picture, each with what it rests on before and after.

    Args:
        clean, attacked: the picture's pixels, `[3, height, width]`.
    """
    before, after = (picture_url(thumbnail(picture(p, side=1))) for p in (clean, attacked))
    template = templates("mms_apps.robustness").get_template("moved.html.j2")
    return template.render(features=features, clean=before, attacked=after, class_names=CLASS_NAMES)


def _fields(row: dict[str, Any]) -> dict[str, Any]:
    """Of a row of `most_moved`."""
    kept = {key: row[key] for key in ("feature", "before", "after", "mean_active")}
    return {**kept, "name": row["name"] or "unnamed", "modality_class": row["class"]}


def _with_layers(
    moved: Sequence[MovedFeature], space: FeatureSpace, both: Tensor
) -> list[MovedFeature]:
    """
    Args:
        both: the clean picture and the attacked one, as the encoder takes them.
    """
    try:
        found = prepared_evidence(space, both, [one.feature for one in moved])
    except UserError:
        return list(moved)
    height, width = both.shape[2:]
    filled = []
    for n, one in enumerate(moved):
        first, second = layers_beside(found, (width, height), n)
        rested, rests = (where(evidence.cells[n]) for evidence in found)
        filled.append(replace(one, layers=(first, second), rested=rested, rests=rests))
    return filled
