"""The report of an evaluation: one HTML file that needs no network."""

from __future__ import annotations

import base64
import io
import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from features.bootstrap import Estimate
from features.evidence.reading import where
from features.files import write_whole
from features.percent import percent
from features.reports import layers
from features.reports.page import CLASS_NAMES, templates
from mms_apps.robustness.checks.of_controls import CONTROL_KINDS
from mms_apps.robustness.distances import readable_eps
from mms_apps.robustness.moved import CSS, LAYERS_SWITCH, moved_html
from mms_apps.robustness.pictures import change_drawn, picture, readable_change
from mms_apps.robustness.results import WORST, DefenceResult, Evaluation
from mms_apps.robustness.tasks import RETRIEVAL

if TYPE_CHECKING:
    from jinja2 import Environment

COLOURS = ("#8a94a3", "#d08a1d", "#1a68a6", "#6447b8", "#1c8a6b", "#b8500f", "#a8357c", "#5f7a1d")
DASHES = ("", "6 4", "2 3", "10 4", "8 3 2 3")
"""By which lines differ for who does not tell the colours apart."""
NORM_NAMES = {"Linf": "L-inf", "L2": "L2"}


def write_robustness_report(evaluation: Evaluation, out: str | Path) -> Path:
    """Write the report of an evaluation to the HTML file `out`."""
    eps = sorted(evaluation.config.eps)
    middle = evaluation.config.middle
    page = (
        _environment()
        .get_template("robustness.html.j2")
        .render(
            e=evaluation,
            task_words=_task_words(evaluation),
            failed=[check for check in evaluation.checks if not check.passed],
            chance=1 / len(evaluation.classes),
            middle=readable_eps(middle),
            worst_middle=evaluation.accuracy[WORST][middle],
            norm_name=NORM_NAMES[evaluation.config.attack.norm],
            curves=_curves(evaluation, eps),
            band=_band(evaluation, eps),
            ticks=_ticks(eps),
            table=[
                {"name": name, "cells": [evaluation.clean, *(curve.get(e) for e in eps)]}
                for name, curve in evaluation.accuracy.items()
            ],
            minimal=_minimal(evaluation.minimal),
            pictures=_pictures(evaluation.shown),
            layers_css=layers.CSS + CSS,
            layers_switch=LAYERS_SWITCH,
            class_names=CLASS_NAMES,
            kinds=CONTROL_KINDS,
        )
    )
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, page.encode())
    return out


def defence_words(defence: DefenceResult, clean: Estimate) -> str:
    """What a defence's figures say, in a sentence: its worst case counts.

    Args:
        clean: accuracy of the undefended model on clean images.
    """
    held, without = defence.worst, defence.undefended
    if held.low > without.high:
        verdict = "holds: in the worst case it stays above the undefended model"
    elif held.high < without.low:
        verdict = "does harm: in the worst case it falls below the undefended model"
    else:
        verdict = "is not shown to hold: in the worst case it may be no better than no defence"
    if defence.nonadaptive.low > held.high:
        verdict += ", although it looks better where the attack does not know it"
    cost = "; it costs accuracy on clean images" if defence.clean.high < clean.low else ""
    return f"{defence.defence} {verdict}{cost}."


def _environment() -> Environment:
    """This package's templates with its filters."""
    environment = templates("mms_apps.robustness")
    environment.filters["spread"] = _spread
    environment.filters["defence_words"] = defence_words
    return environment


def _task_words(evaluation: Evaluation) -> str:
    if evaluation.task == RETRIEVAL:
        return "which caption belongs to an image"
    classes = evaluation.classes
    names = f"{', '.join(classes[:-1])} and {classes[-1]}" if len(classes) <= 6 else ""
    words = evaluation.task.replace("_", " ")
    return f"{words} ({names or str(len(classes)) + ' classes'})"


def _places(eps: list[float]) -> list[float]:
    """Where clean images and each eps stand on the axis, in [0, 1]."""
    return [index / len(eps) for index in range(len(eps) + 1)]


def _ticks(eps: list[float]) -> list[dict[str, Any]]:
    labels = ["clean", *(readable_eps(e) for e in eps)]
    return [
        {"x": round(100 * x, 2), "label": label}
        for x, label in zip(_places(eps), labels, strict=True)
    ]


def _curves(evaluation: Evaluation, eps: list[float]) -> list[dict[str, Any]]:
    """Lines of the chart, the worst case last and so on top; an attack with a single eps has
    none."""
    curves = []
    for number, (name, curve) in enumerate(evaluation.accuracy.items()):
        worst = name == WORST
        if set(curve) != set(eps):
            continue
        values = [evaluation.clean.value, *(curve[e].value for e in eps)]
        curves.append(
            {
                "name": name,
                "worst": worst,
                "colour": "var(--ink)" if worst else COLOURS[number % len(COLOURS)],
                "dashes": "" if worst else DASHES[number % len(DASHES)],
                "points": _points(_places(eps), values),
            }
        )
    return curves


def _band(evaluation: Evaluation, eps: list[float]) -> str:
    """The interval of the worst case as a polygon."""
    worst = [evaluation.clean, *(evaluation.accuracy[WORST][e] for e in eps)]
    places = _places(eps)
    upper = _points(places, [e.high for e in worst])
    return upper + " " + _points(places[::-1], [e.low for e in worst[::-1]])


def _points(places: list[float], values: list[float]) -> str:
    return " ".join(
        f"{1000 * x:.1f},{1000 * (1 - y):.1f}" for x, y in zip(places, values, strict=True)
    )


def _minimal(values: list[float]) -> dict[str, Any]:
    """What is said of the smallest eps; images that were wrong from the start are left out."""
    right = sorted(value for value in values if value > 0)
    known = [value for value in right if math.isfinite(value)]

    def words(value: float) -> str:
        if not math.isfinite(value):
            return "more than the largest eps"
        return f"{255 * value:.2f}/255" if value < 1 / 4 else f"{value:.2f}"

    return {
        "median": words(statistics.median_low(right)) if right else "n/a",
        "tenth": words(right[len(right) // 10]) if right else "n/a",
        "never": len(right) - len(known),
        "wrong": len(values) - len(right),
    }


def _pictures(shown: dict[str, Any]) -> dict[str, Any] | None:
    if not shown:
        return None
    clean, adversarial = shown["clean"], shown["adversarial"]
    changes, largest = change_drawn(clean, adversarial)
    rows = [
        {
            "clean": _png(clean[i]),
            "adversarial": _png(adversarial[i]),
            "change": _png(changes[i]),
            "changed": where(change.abs().amax(0)),
            "label": shown["labels"][i],
            "predicted": shown["predicted"][i],
            "caption": shown["captions"][i],
            "credit": shown["credits"][i],
            "moved": moved_html(shown["moved"][i], clean[i], adversarial[i])
            if shown["moved"]
            else "",
        }
        for i, change in enumerate(adversarial - clean)
    ]
    return {
        "attack": shown["attack"],
        "eps": readable_eps(shown["eps"]),
        "largest": readable_change(largest),
        "rows": rows,
        "moved": bool(shown["moved"]),
        "layers": any(f.layers for features in shown["moved"] for f in features),
    }


def _png(pixels: Tensor) -> str:
    content = io.BytesIO()
    picture(pixels, side=1).save(content, "PNG", optimize=True)
    return base64.b64encode(content.getvalue()).decode()


def _spread(values: list[float]) -> str:
    """The range of values over the seeds, as percentages."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return "n/a"
    low, high = percent(min(known)), percent(max(known))
    return low if low == high else f"{low} to {high}"
