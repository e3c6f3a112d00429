"""Every check passes what is sound and catches the break that it is made for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from mms_apps.robustness.attacks.base import AttackConfig
from mms_apps.robustness.attacks.run import run_attack
from mms_apps.robustness.checks import base, linear_case, of_controls, of_curves, of_model
from mms_apps.robustness.checks.of_controls import ControlGroup
from mms_apps.robustness.models import Squeezed, ZeroShot
from mms_apps.robustness.tasks import Task
from tests.robustness.conftest import small_case

SHORT = AttackConfig(pgd_steps=10, steps=10, queries=30)


def test_bounds() -> None:
    clean = torch.full((2, 3, 4, 4), 0.5)
    inside = clean + 8 / 255
    assert of_curves.inside_bounds(of_curves.bounds_excess(clean, inside, 8 / 255, "Linf")).passed
    for broken in (clean + 9 / 255, clean + 0.6, clean * torch.nan):
        excess = of_curves.bounds_excess(clean, broken, 8 / 255, "Linf")
        assert not of_curves.inside_bounds(excess).passed
    assert not of_curves.inside_bounds(of_curves.bounds_excess(clean, inside, 8 / 255, "L2")).passed


def test_dropout_outside_eval_mode_is_caught(model: ZeroShot, task: Task) -> None:
    assert of_model.repeatable(model, task.pixels).passed

    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.dropout = model, nn.Dropout(0.2)

        def forward(self, pixels: Tensor) -> Tensor:
            return self.model(self.dropout(pixels))

    broken = Dropping()
    broken.dropout.train()
    assert not of_model.repeatable(broken, task.pixels).passed
    assert of_model.repeatable(broken.eval(), task.pixels).passed


def test_statistics_of_the_batch_are_caught() -> None:
    net, pixels, _ = small_case(3)
    model = nn.Sequential(nn.BatchNorm2d(3), net)
    assert of_model.repeatable(model.eval(), pixels).passed
    assert not of_model.repeatable(model.train(), pixels).passed


def test_probabilities_are_caught() -> None:
    model, pixels, _ = small_case(3)
    assert of_model.gives_logits(model, pixels).passed
    assert not of_model.gives_logits(nn.Sequential(model, nn.Softmax(1)), pixels).passed


@pytest.mark.parametrize("loss", ["cross-entropy", "margin"])
def test_quantisation_that_masks_gradients_is_caught(
    model: ZeroShot, task: Task, loss: str
) -> None:
    assert of_model.gradients(model, task.pixels, task.labels, loss).passed
    broken = model.with_defence(None, Squeezed(5, straight_through=False))
    found = of_model.gradients(broken, task.pixels, task.labels, loss)
    assert not found.passed
    assert found.value == 1
    stand_in = model.with_defence(None, Squeezed(5, straight_through=True))
    assert of_model.gradients(stand_in, task.pixels, task.labels, loss).passed


def test_gradients_that_are_no_numbers_are_caught() -> None:
    class Root(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            value = (pixels.flatten(1).sum(1) * 0).sqrt()
            return torch.stack([value, 1 - value], dim=1)

    _, pixels, labels = small_case(2)
    assert not of_model.gradients(Root(), pixels, labels, "margin").passed


def test_an_attack_of_no_steps_is_caught(model: ZeroShot, task: Task) -> None:
    nothing = AttackConfig(pgd_steps=0)
    for attack, passes in ((AttackConfig(pgd_steps=20), True), (nothing, False)):
        found = of_model.huge_eps(model, task.pixels, task.labels, attack, task.chance)
        assert found.passed is passes
        ran = run_attack(model, task.pixels, task.labels, "pgd", 8 / 255, attack)
        assert of_curves.flattened(ran.history).passed is passes


def test_rises_are_caught() -> None:
    falling = {"pgd": {0.1: 0.8, 0.2: 0.4}, "fgsm": {0.1: 0.8, 0.2: 0.9}}
    assert of_curves.never_rises(falling).passed
    found = of_curves.never_rises({**falling, "worst case": {0.1: 0.4, 0.2: 0.5}})
    assert not found.passed
    assert found.value == pytest.approx(0.1)


def test_more_work() -> None:
    model, pixels, labels = small_case(3)
    assert of_model.more_work(model, pixels, labels, 0.05, SHORT).passed


def test_an_order_that_is_upside_down_is_caught() -> None:
    sound = {"noise": {0.1: 0.9}, "fgsm": {0.1: 0.5}, "pgd": {0.1: 0.4}, "worst case": {0.1: 0.4}}
    assert of_curves.ordering(sound).passed
    assert not of_curves.ordering({**sound, "pgd": {0.1: 0.6}}).passed


@pytest.mark.parametrize(
    ("name", "check"),
    [("square", of_curves.square_not_stronger), ("transfer", of_curves.transfer_not_stronger)],
)
def test_blind_attacks_that_win_are_caught(name: str, check) -> None:
    assert check({"pgd": {0.1: 0.4}, name: {0.1: 0.6}}).passed
    assert not check({"pgd": {0.1: 0.4}, name: {0.1: 0.3}}).passed
    assert not check({name: {0.1: 0.3}}).passed


def test_a_loss_that_still_rises_is_caught() -> None:
    assert of_curves.flattened([1 - 0.5**step for step in range(40)]).passed
    assert not of_curves.flattened([float(step) for step in range(20)]).passed
    assert not of_curves.flattened([]).passed
    assert not of_curves.flattened([1.0] * 20).passed


def test_lost_iterates_and_means_are_caught() -> None:
    assert of_curves.best_kept(0, 10).passed
    assert not of_curves.best_kept(1, 10).passed
    one, two = torch.tensor([True, True, False]), torch.tensor([True, False, True])
    assert of_curves.per_sample_worst({0.1: one & two}, {0.1: [one, two]}).passed
    assert not of_curves.per_sample_worst({0.1: one}, {0.1: [one, two]}).passed


def test_what_rounding_undoes_is_caught() -> None:
    assert of_curves.survives_rounding(0.2, 0.21).passed
    assert not of_curves.survives_rounding(0.2, 0.4).passed


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_analytic_case(norm) -> None:
    found = linear_case.analytic(norm)
    assert found.passed
    assert 1 <= found.value <= 1.25


def test_a_search_that_finds_nothing_fails_the_analytic_case(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        linear_case,
        "minimal_eps",
        lambda model, pixels, *_, **__: torch.full((len(pixels),), math.inf),
    )
    found = linear_case.analytic("Linf")
    assert not found.passed
    assert found.value is None


def test_a_defence_that_was_not_attacked_through_is_caught() -> None:
    assert of_controls.attacked_through({"keep": 0.3}, {"keep": 0.5}).passed
    assert not of_controls.attacked_through({"keep": 0.6}, {"keep": 0.5}).passed
    assert not of_controls.attacked_through({}, {"keep": 0.5}).passed


def test_groups_without_their_controls_are_caught() -> None:
    kinds = of_controls.CONTROL_KINDS
    full = [ControlGroup("ImgD", kind, seed, 1.0) for kind in kinds for seed in range(5)]
    assert of_controls.against_controls({"ImgD": 1.0}, full).passed
    assert not of_controls.against_controls({"ImgD": 1.0}, full[:-1]).passed
    assert not of_controls.against_controls({"ImgD": 2.0}, full).passed


def test_one_failure_marks_all() -> None:
    good, bad = of_curves.best_kept(0, 1), of_curves.best_kept(1, 1)
    assert base.all_passed([good, good])
    assert not base.all_passed([good, bad])
