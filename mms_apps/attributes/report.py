"""The HTML reports: predictions explained, an audit, a comparison of de-biasing methods. Each is
one file that needs no network."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.analysis.search import exemplars
from features.errors import UserError
from features.evidence.pictures import picture_evidence
from features.files import write_whole
from features.percent import percent
from features.reports.layers import CSS, Layer, Marked, layer_of, marked_captions, switch
from features.reports.page import CLASS_NAMES, picture_url, templates
from features.space.space import FeatureSpace
from features.space.tables import thumbnail
from mms_apps.attributes.audit import Audit
from mms_apps.attributes.debias.choosing import ChosenFeatures
from mms_apps.attributes.debias.comparison import MethodRow
from mms_apps.attributes.edits import WAY_NAMES
from mms_apps.attributes.explain import Explanation, logit_scores
from mms_apps.attributes.measures import SMALL_GROUP
from mms_apps.attributes.model import AttributeModel, ModelConfig
from mms_apps.attributes.permutation import Difference
from mms_apps.attributes.predict import PredictionSummary

if TYPE_CHECKING:
    from jinja2 import Environment
    from PIL import Image

    from mms_apps.attributes.edits import EmbeddingEdit

EDITED_GRID = 8
SHOWN_FEATURES = 8
"""Contributions of a prediction that are shown."""
SHOWN_EXEMPLARS = 5
SHOWN_ROLES = 12
METHOD_NAMES = {
    "zero_shot": "zero-shot prompts",
    "linear_probe": "linear probe on embeddings",
    "sparse_probe": "sparse probe on features",
}
EDIT_NAMES = {
    "none": "no change",
    "features": "chosen features",
    "mean_difference": "mean difference",
    "debias_vl": "debias_vl",
    "leace": "LEACE",
    "reweighting": "reweighting",
    "last_layer": "last layer again (DFR)",
    "random": "random features",
}


@dataclass(frozen=True)
class Explained:
    """One sample's explanation as the page shows it."""

    sample_id: str
    caption: str
    label: str | None
    image: Image.Image | None
    explanation: Explanation
    credit: str = ""
    """Whose the image is and under which licence."""
    layer: Layer | None = None
    """Of a prediction from images, what it rests on in this one."""
    marked: Marked | None = None
    """Of a prediction from texts, the caption with the words that it rests on."""


def rests_on(
    model: AttributeModel,
    edit: EmbeddingEdit | None,
    label: str,
    image: Image.Image | None,
    caption: str,
) -> tuple[Layer | None, Marked | None]:
    """What the prediction of a class rests on in an image, or in a caption, as the model reads
    these or those; None of the other, of one that is not there, and where the encoder is not at
    hand.

    Edits let no gradient through: with one, the parts of an image are covered on a coarser grid.
    """
    scores = logit_scores(model, label, edit)
    try:
        encoder = model.space.encoder
    except UserError:
        return None, None
    if model.config.modality == "text":
        return None, marked_captions(encoder, scores, [caption])[0] if caption else None
    if image is None:
        return None, None
    if edit is None:
        [found] = picture_evidence(encoder, [image], scores, "fast")
    else:
        [found] = picture_evidence(encoder, [image], scores, "exact", grid=EDITED_GRID)
    return layer_of(found, image.size), None


def write_predictions_report(
    config: ModelConfig,
    summary: PredictionSummary,
    explained: Sequence[Explained],
    space: FeatureSpace,
    out: Path,
) -> Path:
    """Write the page of a run of predictions, with some of them explained."""
    shown = [e.explanation.contributions[:SHOWN_FEATURES] for e in explained]
    features = {c.feature for contributions in shown for c in contributions}
    samples = [
        {
            "id": e.sample_id,
            "caption": e.caption,
            "label": e.label,
            "image": None if e.image is None else picture_url(thumbnail(e.image)),
            "credit": e.credit,
            "explanation": e.explanation,
            "layer": e.layer,
            "marked": e.marked,
            "bars": _bars(e.explanation),
        }
        for e in explained
    ]
    pictures = pictures_of(space, features)
    return write_page(
        "predictions.html.j2",
        out,
        config=config,
        summary=summary,
        samples=samples,
        pictures=pictures,
        rests_on=any(e.layer or e.marked for e in explained),
        layers_css=CSS,
        layers_switch=switch("prediction"),
    )


def write_audit_report(audit: Audit, config: ModelConfig, out: Path) -> Path:
    """Write the page of an audit."""
    return write_page("audit.html.j2", out, audit=audit, config=config, shown_roles=SHOWN_ROLES)


def write_debias_report(
    methods: Sequence[MethodRow],
    choice: ChosenFeatures,
    config: ModelConfig,
    factor: str,
    unrelated: str,
    space: FeatureSpace,
    out: Path,
) -> Path:
    """Write the page of a comparison of de-biasing methods."""
    table = space.features.select(["name", "class", "mds"]).to_pylist()
    chosen = [
        {"feature": feature, "association": association, **table[feature]}
        for feature, association in zip(choice.features, choice.association, strict=True)
    ]
    pictures = pictures_of(space, choice.features)
    others = [row for row in methods if row.method not in ("none", "features", "random")]
    return write_page(
        "debias.html.j2",
        out,
        methods=methods,
        better=[row for row in others if row.worst_less_features.low > 0],
        worse=[row for row in others if row.worst_less_features.high < 0],
        choice=choice,
        chosen=chosen,
        config=config,
        factor=factor,
        unrelated=unrelated,
        pictures=pictures,
    )


def _environment() -> Environment:
    """This package's templates with its filters and words."""
    environment = templates("mms_apps.attributes")
    environment.filters["share"] = _share
    environment.filters["edit_name"] = lambda method: EDIT_NAMES.get(method, method)
    environment.filters["p_value"] = _p_value
    environment.globals.update(
        class_names=CLASS_NAMES,
        method_names=METHOD_NAMES,
        way_names=WAY_NAMES,
        small_group=SMALL_GROUP,
    )
    return environment


def pictures_of(space: FeatureSpace, features: Collection[int]) -> dict[int, list[dict[str, str]]]:
    """The exemplars' images of features, as the pages show them."""
    return {
        feature: [
            {"image": picture_url(row["thumbnail"]), "caption": row["caption"]} for row in rows
        ]
        for feature, rows in exemplars(space, features, SHOWN_EXEMPLARS).items()
    }


def write_page(template: str, out: Path, **context: Any) -> Path:
    """Write one of this package's templates as a page."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, _environment().get_template(template).render(**context).encode())
    return out


def _bars(explanation: Explanation) -> list[dict[str, Any]]:
    """The shown contributions and what is left, as bars around a middle line: `left` and `width`
    in percent."""
    shown = explanation.contributions[:SHOWN_FEATURES]
    others = sum(c.contribution for c in explanation.contributions[SHOWN_FEATURES:])
    count = len(explanation.contributions) - len(shown)
    parts: list[dict[str, Any]] = [
        {
            "name": c.name,
            "feature": c.feature,
            "modality_class": c.modality_class,
            "value": c.contribution,
        }
        for c in shown
    ]
    if count:
        parts.append({"name": f"{count} other features", "value": others})
    parts.append({"name": "constant", "value": explanation.constant})
    if explanation.unexplained:
        parts.append({"name": "not explained by features", "value": explanation.unexplained})
    largest = max(abs(part["value"]) for part in parts) or 1.0
    for part in parts:
        part["width"] = 50 * abs(part["value"]) / largest
        part["left"] = 50 - (part["width"] if part["value"] < 0 else 0)
    return parts


TOO_SMALL = (
    f"fewer than two groups have {SMALL_GROUP} samples of different pictures, too few to compare"
)


def summary_of(audit: Audit) -> str:
    """An audit in a line of plain text."""
    m = audit.measures
    why = "" if m.worst_group else f"; {TOO_SMALL}"
    worst = f"{m.worst_group} {_share(m.worst_accuracy.value)}" if m.worst_group else "n/a"
    return (
        f"accuracy {_share(m.accuracy.value)}; worst group {worst}; gap {against_chance(m.gap)}; "
        f"TPR difference {against_chance(m.tpr_difference)}; smallest group {m.smallest_group} "
        f"({m.smallest_samples} sample{'s' if m.smallest_samples != 1 else ''}){why}"
    )


def against_chance(difference: Difference) -> str:
    """A difference between groups, such as "4.1% (by chance 3.9%, p = 0.32)"."""
    if math.isnan(difference.value):
        return "n/a"
    chance = f"by chance {_share(difference.chance)}, p = {_p_value(difference.p)}"
    return f"{_share(difference.value)} ({chance})"


def _p_value(value: float) -> str:
    return f"{value:.2f}" if value >= 0.095 else f"{value:.3f}"


def _share(value: float | None, digits: int = 1) -> str:
    return percent(value, digits)
