"""The report of a FeatureSpace: one HTML file that needs no network."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from features.analysis.search import telling_first
from features.errors import UserError
from features.files import write_whole
from features.modality import CROSS_MODAL, IMAGE_DOMINANT, TEXT_DOMINANT
from features.reports.layers import CSS, add_layers, marked_captions, switch
from features.reports.page import (
    CLASS_NAMES,
    MODALITY_CLASSES,
    class_in_words,
    count_axis,
    histogram,
    picture_url,
    templates,
)
from features.space.advice import few_pairs
from features.space.space import FeatureSpace
from features.store.credits import credit_line

HTML = (".html", ".htm")
OPENING_EACH = 4
"""Features of each class that the report opens with."""
OPENING_IMAGES = 4
OPENING_TEXTS = 3
SHOWN_EACH = 12
"""Features of each class that the gallery opens with."""
SHOWN_EXEMPLARS = 6
SHOWN_CAPTIONS = 4
GALLERY = 1000
"""Features in the gallery at most, which bounds the file's size."""
MEASURES = {"embsim": "EmbSim", "winrate": "WinRate", "ms": "MS", "agreement": "Agreement"}
MODALITIES = {"image": "images", "text": "texts", "cross": "across"}
HELD_OUT_NAMES = {
    "within": "both, within modality",
    "image": "images",
    "text": "texts",
    "overall": "both, about one mean",
}


def write_report(space: FeatureSpace, out: str | Path, *, evidence: bool = True) -> Path:
    """Write the report of a FeatureSpace to the HTML file `out`.

    Args:
        evidence: show what the features rest on with which the report opens, where the space's
            encoder can be loaded.

    Raises:
        UserError: `out` is there and no HTML file.
    """
    out = Path(out)
    if out.is_file() and out.suffix.lower() not in HTML:
        raise UserError(f"{out}: exists and is no report; name another file, such as report.html")
    features = space.features.to_pylist()
    scored = [f for f in features if f["class"] in MODALITY_CLASSES]
    peak, ticks = count_axis(features)
    held_out = space.config.dictionary.get("held_out") or {}
    gallery, thumbnails = _gallery(space, features)
    means = _monosemanticity_rows(space)
    opening = _opening(gallery)
    shown, missing = _add_evidence(space, opening) if evidence and opening else (False, "")
    page = (
        templates()
        .get_template("report.html.j2")
        .render(
            config=space.config,
            class_names=CLASS_NAMES,
            count=len(features),
            scored=len(scored),
            few_pairs=few_pairs(space),
            uncertain=sum(f["uncertain"] for f in scored),
            classes=[_class_card(features, name, len(scored)) for name in MODALITY_CLASSES],
            bars=histogram(features),
            peak=peak,
            ticks=ticks,
            monosemanticity=[
                row
                for row in means
                if row["m"] in (None, space.config.top_m) and row["label"] != MEASURES["agreement"]
            ],
            sweep=[row for row in means if row["m"] is not None],
            agreement=[row for row in means if row["label"] == MEASURES["agreement"]],
            held_out=[
                (label, held_out[key]) for key, label in HELD_OUT_NAMES.items() if key in held_out
            ],
            sparsity=sparsity_in_words(space),
            opening=opening,
            evidence=shown,
            evidence_missing=missing,
            layers_css=CSS,
            layers_switch=switch(),
            opening_images=OPENING_IMAGES,
            opening_texts=OPENING_TEXTS,
            gallery=gallery,
            credits=_credits(gallery),
            gallery_limit=GALLERY,
            thumbnails=thumbnails,
        )
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, page.encode())
    return out


def sparsity_in_words(space: FeatureSpace) -> str:
    """How many features of a dictionary are active for one sample: what is bounded, and what was
    counted on held-out pairs."""
    config = space.config.dictionary
    counted = ((config.get("held_out") or {}).get("within") or {}).get("l0")
    return space.dictionary.sparsity + (
        f"; {counted:.1f} on average on held-out pairs" if counted is not None else ""
    )


def _class_card(features: list[dict[str, Any]], name: str, scored: int) -> dict[str, Any]:
    own = [f for f in features if f["class"] == name]
    return {
        "key": name,
        "name": CLASS_NAMES[name],
        "count": len(own),
        "share": len(own) / scored if scored else None,
        "uncertain": sum(f["uncertain"] for f in own),
        "fixed": sum(f["class_fixed"] == name for f in features),
        "shared": sum(f["shared"] for f in own) if name == CROSS_MODAL else None,
    }


def _monosemanticity_rows(space: FeatureSpace) -> list[dict[str, Any]]:
    """Each measure's mean by class, with its interval, one row a modality and number of samples."""
    rows: dict[tuple[str, str, int | None], dict[str, Any]] = {}
    for record in space.config.class_means:
        key = (record["measure"], record["modality"], record["m"])
        row = rows.setdefault(
            key,
            {
                "label": MEASURES[record["measure"]],
                "over": MODALITIES[record["modality"]],
                "m": record["m"],
                "floor": record["floor"],
                "means": {},
            },
        )
        row["means"][record["class"]] = record
    return list(rows.values())


def _gallery(
    space: FeatureSpace, features: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The features of the gallery in the order of `telling_first`, and the thumbnails (as URLs) to
    which their images' `number`s point."""
    ordered = [features[number] for number in telling_first(space).tolist()]
    chosen = [f for f in ordered if f["active_pairs"] > 0][:GALLERY]
    exemplars = _exemplars(space, {f["feature"] for f in chosen})
    numbers: dict[bytes, int] = {}
    opened: dict[str, int] = defaultdict(int)
    for feature in chosen:
        images, texts = (exemplars[feature["feature"], m] for m in ("image", "text"))
        for row in images:
            row["credit"] = credit_line(row)
            if row["thumbnail"] is not None:
                row["number"] = numbers.setdefault(row["thumbnail"], len(numbers))
        feature["images"] = images
        feature["texts"] = list(dict.fromkeys(row["caption"] for row in texts))[:SHOWN_CAPTIONS]
        opened[feature["class"]] += 1
        feature["opened"] = (
            feature["class"] in MODALITY_CLASSES and opened[feature["class"]] <= SHOWN_EACH
        )
        words = [feature["name"], *(row["caption"] for row in images + texts)]
        feature["kind"] = class_in_words(feature)
        feature["search"] = " ".join(dict.fromkeys(words)).lower()
    return chosen, [picture_url(thumbnail) for thumbnail in numbers]


def _opening(gallery: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By class, the first named features of the gallery, of cross-modal ones the shared, no two of
    one name: `key`, `name` and `features`. Classes without such a feature are left out; all are
    where no feature's images are at hand."""
    if not any("number" in row for feature in gallery for row in feature["images"]):
        return []
    found = []
    for name in MODALITY_CLASSES:
        by_name: dict[str, dict[str, Any]] = {}
        for feature in gallery:
            telling = feature["name"] and (name != CROSS_MODAL or feature["shared"])
            if feature["class"] == name and telling:
                by_name.setdefault(feature["name"], feature)
        if by_name:
            features = list(by_name.values())[:OPENING_EACH]
            found.append({"key": name, "name": CLASS_NAMES[name], "features": features})
    return found


def _add_evidence(space: FeatureSpace, opening: list[dict[str, Any]]) -> tuple[bool, str]:
    """Give the opening's features what they rest on: their images a `layer`, their texts `marked`.

    Returns:
        Whether there is any, and why not.
    """
    try:
        for group in opening:
            for feature in group["features"]:
                target = [feature["feature"]]
                if group["key"] != TEXT_DOMINANT:
                    add_layers(space, target, feature["images"][:OPENING_IMAGES])
                if group["key"] != IMAGE_DOMINANT:
                    texts = feature["texts"][
                        : OPENING_TEXTS if group["key"] == TEXT_DOMINANT else 1
                    ]
                    feature["marked"] = marked_captions(space, target, texts)
    except UserError as error:  # most often, the encoder is not at hand
        return False, str(error)
    return True, ""


def _credits(gallery: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The credit of each image that has one, and the images' captions."""
    rows = [row for f in gallery for row in f["images"] if "number" in row and row["credit"]]
    return sorted({row["sample_id"]: (row["caption"], row["credit"]) for row in rows}.values())


def _exemplars(
    space: FeatureSpace, wanted: set[int]
) -> dict[tuple[int, str], list[dict[str, Any]]]:
    """Exemplars by feature and modality, most activating first."""
    found: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(space.exemplars.to_pylist(), key=lambda row: row["rank"]):
        if row["rank"] < SHOWN_EXEMPLARS and row["feature"] in wanted:
            found[row["feature"], row["modality"]].append(row)
    return found
