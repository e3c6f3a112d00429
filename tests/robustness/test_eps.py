"""An eps, wherever one is taken: numbers and texts are read, what is none is refused, and a size in
255ths without its denominator is asked about."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from features.errors import UserError
from features.space.space import FeatureSpace
from mms_apps.robustness.attacks.base import AttackConfig
from mms_apps.robustness.attacks.registry import offered
from mms_apps.robustness.attacks.run import run_attack
from mms_apps.robustness.crossmodal import push
from mms_apps.robustness.distances import (
    distances,
    project,
    random_in_ball,
    read_eps,
    read_norm,
    readable_eps,
)
from mms_apps.robustness.losses import margin
from mms_apps.robustness.models import ZeroShot
from mms_apps.robustness.nearest_adversarial import minimal_eps
from mms_apps.robustness.projected_gradient import pgd
from mms_apps.robustness.results import EvaluationConfig
from mms_apps.robustness.retrieval import text_to_image
from mms_apps.robustness.session import Session
from mms_apps.robustness.tasks import Task
from tests.robustness.conftest import small_case

NONE = ["x", "0", "-1", "-8/255", "1/0", "inf", "nan", "", "4/255/2", 0, -0.1, math.nan, math.inf]
QUICK = AttackConfig(pgd_steps=2, steps=2, queries=5)
QUICK_L2 = AttackConfig(norm="L2", pgd_steps=2, steps=2, queries=5)


def taken(where: str, eps, model: ZeroShot, task: Task, space: FeatureSpace, norm: str = "Linf"):
    """Give an eps to one of the places that take one."""
    net, pixels, labels = small_case(2)
    few = task.first(1)
    config = QUICK if norm == "Linf" else QUICK_L2
    if where == "run_attack":
        return run_attack(net, pixels, labels, "noise", eps, config)
    if where == "pgd":
        return pgd(lambda x: margin(net(x), labels), pixels, eps, norm=norm, steps=2)
    if where == "EvaluationConfig":
        return EvaluationConfig(eps=(0.01, eps), attack=config)
    if where == "Session":
        session = Session(space, [])
        picture = few.pixels.new_zeros(8, 8, 3).byte().numpy()
        from PIL import Image

        return session.attack(Image.fromarray(picture), "a, b", "noise", eps, norm)
    if where == "text_to_image":
        return text_to_image(model, few.pixels, few.labels, eps, norm=norm, steps=1)
    towards, mean = model.vectors[:1], model.vectors.mean(0)
    return push(model, few.pixels, towards, mean, eps, norm=norm, steps=1)


PLACES = ("run_attack", "pgd", "EvaluationConfig", "Session", "text_to_image", "push")


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("eps", [8, 1.5, "8", "16.0"])
def test_255ths_without_their_denominator_are_asked_about(
    where: str, eps, model: ZeroShot, task: Task, space: FeatureSpace
) -> None:
    with pytest.raises(UserError, match=rf"eps {eps}: .* {float(eps):g}/255\?"):
        taken(where, eps, model, task, space)


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("eps", ["nan", 0, -0.1])
def test_what_is_no_eps_is_refused_everywhere(
    where: str, eps, model: ZeroShot, task: Task, space: FeatureSpace
) -> None:
    with pytest.raises(UserError, match="must be a positive number"):
        taken(where, eps, model, task, space)


@pytest.mark.parametrize("where", [place for place in PLACES if place != "Session"])
@pytest.mark.parametrize(("eps", "norm"), [("8/255", "Linf"), (1, "Linf"), (8, "L2"), ("3", "L2")])
def test_what_is_one_is_taken(
    where: str, eps, norm: str, model: ZeroShot, task: Task, space: FeatureSpace
) -> None:
    taken(where, eps, model, task, space, norm)


def test_a_radius_for_every_image_is_read_too() -> None:
    net, pixels, labels = small_case(2)

    def loss(images: torch.Tensor) -> torch.Tensor:
        return margin(net(images), labels)

    for eps, message in (
        (torch.linspace(0.1, 8, len(pixels)), "8/255"),
        (torch.linspace(-0.1, 0.1, len(pixels)), "positive"),
    ):
        with pytest.raises(UserError, match=message):
            pgd(loss, pixels, eps, steps=1)
    with pytest.raises(UserError, match="8/255"):
        minimal_eps(net, pixels, labels, high=8.0, steps=1)


@pytest.mark.parametrize("given", NONE)
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_what_is_none_is_refused(given, norm: str) -> None:
    with pytest.raises(UserError, match="must be a positive number"):
        read_eps(given, norm)


def test_eps_as_a_user_gives_it() -> None:
    assert read_eps("4/255", "Linf") == read_eps(4 / 255, "Linf") == 4 / 255
    assert read_eps(" 4 / 255 ", "Linf") == 4 / 255
    assert read_eps(torch.tensor(0.25), "Linf") == read_eps(torch.tensor([0.25]), "Linf") == 0.25
    assert read_eps("0.5", "L2") == read_eps(np.float64(0.5), "L2") == 0.5
    assert EvaluationConfig(eps=("8/255", "2/255", 2 / 255)).eps == (2 / 255, 8 / 255)
    assert readable_eps(4 / 255) == "4/255"
    assert readable_eps(0.25) == "0.25"
    with pytest.raises(UserError, match="give several one by one"):
        read_eps("4/255,8/255", "Linf")


@pytest.mark.parametrize("written", ["Linf", "linf", "LINF", " L2", "l2"])
def test_norms_in_any_case(written: str) -> None:
    assert read_norm(written).lower() == written.strip().lower()
    assert AttackConfig(norm=written).norm == read_norm(written)  # type: ignore[arg-type]
    assert offered(2, written) == offered(2, read_norm(written))  # type: ignore[arg-type]


def measured(where: str, norm: Any) -> torch.Tensor:
    """What one of the places that take a norm gives in it."""
    net, pixels, labels = small_case(2)
    radius = torch.full((len(pixels), 1, 1, 1), 0.05)
    if where == "minimal_eps":
        return minimal_eps(net, pixels, labels, norm=norm, steps=3, halvings=2)
    if where == "pgd":
        return pgd(lambda x: margin(net(x), labels), pixels, 0.05, norm=norm, steps=3).images
    if where == "run_attack":
        config = AttackConfig(norm=norm, pgd_steps=3)
        return run_attack(net, pixels, labels, "pgd", 0.05, config).images
    if where == "distances":
        return distances(pixels, pixels.flip(0), norm)
    if where == "project":
        return project(pixels.flip(0), pixels, radius, norm)
    return random_in_ball(pixels, radius, norm, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "where", ["minimal_eps", "pgd", "run_attack", "distances", "project", "random_in_ball"]
)
def test_a_norm_means_the_same_wherever_it_is_given(where: str) -> None:
    for written, norm in (("linf", "Linf"), (" LINF", "Linf"), ("l2", "L2")):
        torch.testing.assert_close(measured(where, written), measured(where, norm), rtol=0, atol=0)
    assert not torch.equal(measured(where, "linf"), measured(where, "l2"))
    for unknown in ("L1", "inf", 2, None):
        with pytest.raises(UserError, match=f"{unknown}: unknown norm; use Linf or L2"):
            measured(where, unknown)


def test_a_radius_above_1_is_refused_in_l_inf_however_it_is_written() -> None:
    with pytest.raises(UserError, match=r"8/255\?"):
        read_eps(8, "linf")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("eps", "written"),
    [(0.25 / 255, "0.25/255"), (1.5 / 255, "1.5/255"), (0.03, "0.03"), (0.5, "0.5"), (2.0, "2")],
)
def test_parts_of_a_255th_are_written_as_they_are_given(eps: float, written: str) -> None:
    assert readable_eps(eps) == written
    assert read_eps(written, "L2") == pytest.approx(eps)
