"""Benchmark of the attacks themselves: known cases, broken models, CW against PGD, two classes."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn

from benchmarks.common import Result, mean_row
from features.space.space import FeatureSpace
from mms_apps.robustness.attacks.base import AttackConfig
from mms_apps.robustness.attacks.registry import offered
from mms_apps.robustness.attacks.run import run_attack
from mms_apps.robustness.checks import linear_case, of_curves, of_model
from mms_apps.robustness.distances import NORMS, Norm
from mms_apps.robustness.models import Squeezed, correct
from mms_apps.robustness.nearest_adversarial import minimal_eps
from mms_apps.robustness.tasks import Task, load_task

PARITY_EPS: dict[Norm, float] = {"Linf": 4 / 255, "L2": 0.5}
TWO_CLASS_IMAGES = 16
CW_IMAGES = 50
SHIFTS = (-20.0, 0.0, 100.0)


def share_row(name: str, values: np.ndarray, seed: int, unit: str = "share") -> Result:
    """The mean of one value an image with its interval."""
    return mean_row(name, values, unit, seed)


class Shifted(nn.Module):
    """A model whose logits all have the same number added."""

    def __init__(self, model: nn.Module, shift: float) -> None:
        super().__init__()
        self.model, self.shift = model, shift

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixels) + self.shift


def cw_rows(space: FeatureSpace, seed: int) -> list[Result]:
    """What CW leaves over what PGD leaves, L2, whatever is added to the logits."""
    linear, pixels, labels = linear_case.linear_case(CW_IMAGES, seed)
    with torch.no_grad():
        distances = linear.nearest(pixels, "L2").sort().values
    half = float(distances[CW_IMAGES // 2 - 1 : CW_IMAGES // 2 + 1].mean())
    task = load_task("embedded:heldout", space.encoder, label="gender", count=CW_IMAGES)
    cases = {
        "linear_shift": (linear, pixels, labels, half),
        "gender_L2": (task.classifier(space.encoder), task.pixels, task.labels, PARITY_EPS["L2"]),
    }
    config = AttackConfig(norm="L2", seed=seed)
    rows = []
    for case, (model, images, own, eps) in cases.items():
        found = []
        for shift in track(SHIFTS, f"CW, {case}"):
            shifted = Shifted(model, shift)
            right = {
                name: correct(
                    shifted, run_attack(shifted, images, own, name, eps, config).images, own
                ).numpy()
                for name in ("cw", "pgd")
            }
            more = right["cw"].astype(float) - right["pgd"]
            found.append(share_row(f"cw/{case}/{shift:+g}", more, seed, "difference"))
        worst = max(found, key=lambda row: row.value)
        rows += [*found, dataclasses.replace(worst, name=f"cw/{case}")]
    return rows


def broken_rows(space: FeatureSpace, task: Task) -> list[Result]:
    """Whether each broken model is caught by the check made for it, and the plain one by none."""
    few = task.first(64)
    model = few.classifier(space.encoder)
    quantised = model.with_defence(None, Squeezed(5, straight_through=False))
    dropping = nn.Sequential(nn.Dropout(0.2), model)
    dropping[0].train()
    nothing = AttackConfig(pgd_steps=0)

    def masked(of: nn.Module) -> bool:
        losses = ("cross-entropy", "margin")
        return any(not of_model.gradients(of, few.pixels, few.labels, x).passed for x in losses)

    def idle(attack: AttackConfig) -> bool:
        ran = run_attack(model, few.pixels, few.labels, "pgd", 4 / 255, attack)
        huge = of_model.huge_eps(model, few.pixels, few.labels, attack, few.chance)
        return not huge.passed and not of_curves.flattened(ran.history).passed

    caught = {
        "quantisation": masked(quantised),
        "dropout": not of_model.repeatable(dropping, few.pixels).passed,
        "zero_steps": idle(nothing),
        "plain": masked(model) or not of_model.repeatable(model, few.pixels).passed
        or idle(AttackConfig()),
    }  # fmt: skip
    return [
        Result(f"caught/{k}", float(v), float(v), float(v), 1, "0 or 1") for k, v in caught.items()
    ]


def analytic_rows(seed: int, count: int = 64) -> list[Result]:
    """The smallest adversarial distance found over the known one, on a linear model."""
    rows = []
    for norm in NORMS:
        model, pixels, labels = linear_case.linear_case(count, seed)
        high = 0.5 if norm == "Linf" else 5.0
        with torch.no_grad():
            nearest = model.nearest(pixels, norm)
        found = minimal_eps(model, pixels, labels, norm=norm, high=high) / nearest
        rows.append(share_row(f"analytic/{norm}", found.numpy(), seed, "ratio"))
        most = float(found.max())
        rows.append(Result(f"analytic/{norm}/largest", most, most, most, count, "ratio"))
        eps = 1.25 * nearest
        pgd = [
            not bool(correct(model, run_attack(
                model, pixels[i : i + 1], labels[i : i + 1], "pgd", float(eps[i]),
                AttackConfig(norm=norm, seed=seed)).images, labels[i : i + 1]))
            for i in range(count)
        ]  # fmt: skip
        rows.append(share_row(f"analytic/{norm}/pgd_at_1.25", np.array(pgd), seed))
    return rows


def two_class_rows(space: FeatureSpace, seed: int) -> list[Result]:
    """Gender, with every attack offered: accuracy under each."""
    task = load_task("embedded:heldout", space.encoder, label="gender", count=TWO_CLASS_IMAGES)
    model = task.classifier(space.encoder)
    rows = []
    for norm, eps in PARITY_EPS.items():
        for name in track(offered(2, norm), f"two classes, {norm}"):
            config = AttackConfig(norm=norm, seed=seed)
            found = run_attack(model, task.pixels, task.labels, name, eps, config)
            right = correct(model, found.images, task.labels)
            rows.append(share_row(f"two_classes/{norm}/{name}", right.numpy(), seed))
    return rows
