"""What an attack moved in single pictures, and where: planted moves are named and located, drawn
and said."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from features.errors import UserError
from features.space.space import FeatureSpace
from mms_apps.robustness import moved as moved_module
from mms_apps.robustness.attacks.base import AttackConfig
from mms_apps.robustness.evaluation import evaluate
from mms_apps.robustness.models import ZeroShot
from mms_apps.robustness.moved import MovedFeature, moved_features, moved_html
from mms_apps.robustness.pictures import LOWERED, RAISED, change_drawn, readable_change
from mms_apps.robustness.report import write_robustness_report
from mms_apps.robustness.results import Evaluation, EvaluationConfig
from mms_apps.robustness.tasks import Task
from tests.browser import assert_accessible, keep_picture, needs_chromium, opened

CORNERS = {
    "the upper left": (slice(0, 21), slice(0, 21)),
    "the upper right": (slice(0, 21), slice(43, 64)),
    "the lower left": (slice(43, 64), slice(0, 21)),
    "the lower right": (slice(43, 64), slice(43, 64)),
}


def raised(
    model: ZeroShot, space: FeatureSpace, pixels: Tensor, feature: int, corner: tuple[slice, slice]
) -> Tensor:
    """Pictures changed in a corner only, so that one feature rises."""
    change = torch.zeros_like(pixels)
    inside = torch.zeros_like(pixels)
    inside[..., corner[0], corner[1]] = 1
    for _ in range(60):
        change = change.detach().requires_grad_()
        embedding = model.plain((pixels + change).clamp(0, 1))
        value = space.dictionary.pre_activations(embedding, "image")[:, feature].sum()
        (gradient,) = torch.autograd.grad(value, change)
        change = (change + 0.05 * gradient.sign() * inside).clamp(-0.5, 0.5)
    return (pixels + change.detach()).clamp(0, 1)


def quiet_features(space: FeatureSpace, model: ZeroShot, pixels: Tensor) -> list[int]:
    """Those that the pictures do not activate, the most usual first."""
    with torch.no_grad():
        quiet = (space.encode_images(model.plain(pixels)) == 0).all(0)
    usual = torch.tensor(space.features["image_density"].to_numpy()) * quiet
    found: list[int] = usual.argsort(descending=True).tolist()
    return found


@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("place", [0, 2])
def test_a_feature_that_was_raised_in_a_corner_is_named_and_located(
    space: FeatureSpace, task: Task, model: ZeroShot, corner: str, place: int
) -> None:
    feature = quiet_features(space, model, task.pixels)[place]
    clean = task.pixels[:2]
    attacked = raised(model, space, clean, feature, CORNERS[corner])
    with torch.no_grad():
        change = space.encode_images(model.plain(attacked)) - space.encode_images(
            model.plain(clean)
        )
    for features, own in zip(moved_features(model, space, clean, attacked), change, strict=True):
        assert [one.feature for one in features] == own.abs().topk(3).indices.tolist()
        [planted] = [one for one in features if one.feature == feature]
        assert planted.before == 0 < planted.after
        assert planted.change is not None and planted.change > 1
        assert planted.rests == corner and corner in planted.words


def test_pictures_that_did_not_change_have_no_moved_features(
    space: FeatureSpace, task: Task, model: ZeroShot
) -> None:
    clean = task.pixels[:2]
    assert moved_features(model, space, clean, clean) == [[], []]


def test_without_a_map_to_look_at_features_are_named_without_layers(
    space: FeatureSpace, task: Task, model: ZeroShot, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_map(*given: object) -> None:
        raise UserError("no map")

    monkeypatch.setattr(moved_module, "prepared_evidence", no_map)
    clean = task.pixels[:1]
    attacked = (clean + 0.1).clamp(0, 1)
    [features] = moved_features(model, space, clean, attacked)
    page = moved_html(features, clean[0], attacked[0])
    assert features[0].name in page and "<img" not in page


def test_a_change_is_drawn_by_its_sign_on_one_scale() -> None:
    clean = torch.full((2, 3, 1, 3), 0.5)
    attacked = clean.clone()
    attacked[0, 2, 0, 0] += 0.02  # blue alone
    attacked[0, :, 0, 1] -= torch.tensor([0.005, 0.01, 0.0])
    attacked[1, 0, 0, 0] -= 0.02
    drawn, largest = change_drawn(clean, attacked)
    assert largest == pytest.approx(0.02) and readable_change(largest) == "5.1/255"
    full = [torch.tensor(colour) / 255 for colour in (RAISED, LOWERED)]
    assert torch.allclose(drawn[0, :, 0, 0], full[0], atol=1e-4)
    assert torch.allclose(drawn[1, :, 0, 0], full[1], atol=1e-4)
    assert torch.allclose(drawn[0, :, 0, 1], (1 + full[1]) / 2, atol=1e-4)
    assert (drawn[:, :, 0, 2] == 1).all()
    assert (change_drawn(clean, clean)[0] == 1).all()


def test_a_change_is_said_in_units_of_the_mean_activation() -> None:
    one = MovedFeature(3, "car", "CrossD", before=0.1, after=0.4, mean_active=0.2)
    assert one.change == pytest.approx(1.5)
    page = moved_html([one], torch.zeros(3, 4, 4), torch.ones(3, 4, 4))
    assert "<b>+1.5</b> \u00d7 its mean activation: 0.100 → 0.400" in page
    never = dataclasses.replace(one, mean_active=0.0)
    assert never.change is None and "mean activation" not in moved_html(
        [never], torch.zeros(3, 4, 4), torch.ones(3, 4, 4)
    )


@pytest.fixture(scope="module")
def evaluated(
    space: FeatureSpace, task: Task, model: ZeroShot, tmp_path_factory: pytest.TempPathFactory
) -> Evaluation:
    config = EvaluationConfig(
        attacks=("pgd",), eps=(8 / 255,), attack=AttackConfig(pgd_steps=10), check_images=4
    )
    out = tmp_path_factory.mktemp("moved")
    return evaluate(model, task, out, config, space=space, encoder="embedded")


def test_the_report_shows_what_moved_those_pictures_first_that_moved_most(
    evaluated: Evaluation, space: FeatureSpace, model: ZeroShot, tmp_path: Path
) -> None:
    shown = evaluated.shown
    with torch.no_grad():
        before, after = (
            space.encode_images(model.plain(shown[key])) for key in ("clean", "adversarial")
        )
    far = (after - before).norm(dim=1)
    assert len(far) > 1 and (far[:-1] >= far[1:] - 1e-4).all()
    page = write_robustness_report(evaluated, tmp_path / "report.html").read_text()
    assert page.count('class="layer"') == 2 * sum(map(len, shown["moved"])) > 0
    assert page.count("The attacked picture; ") == page.count("The clean picture; ")
    assert page.count("The change, magnified; most of it lies in ") == len(far)
    assert "\u00d7 its mean activation" in page and "rests most on" in page


def test_the_report_says_whose_the_pictures_are_and_cuts_long_captions(
    evaluated: Evaluation, tmp_path: Path
) -> None:
    count = len(evaluated.shown["labels"])
    whose = ["A. Jones, CC BY 2.0"] + [""] * (count - 1)
    long = "a cat on a mat " * 20
    shown = evaluated.shown | {"credits": whose, "predicted": [long] * count}
    found = dataclasses.replace(evaluated, shown=shown)
    page = write_robustness_report(found, tmp_path / "report.html").read_text()
    assert page.count("Image: ") == page.count("Image: A. Jones, CC BY 2.0") == 1
    assert f'title="{long}"' in page and f">{long}" not in page
    bare = write_robustness_report(evaluated, tmp_path / "bare.html").read_text()
    assert "Image: " not in bare


@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (375, "dark")])
def test_the_report_in_a_browser(
    evaluated: Evaluation, tmp_path: Path, width: int, scheme: str
) -> None:
    file = write_robustness_report(evaluated, tmp_path / "report.html")
    with opened(file.as_uri(), width=width, scheme=scheme) as page:  # type: ignore[arg-type]
        layer = page.locator(".moved .layer").first
        opacity = "element => getComputedStyle(element).opacity"
        assert layer.evaluate(opacity) == "1"
        page.get_by_label("Show what each feature rests on").uncheck()
        assert layer.evaluate(opacity) == "0"
        page.get_by_label("Show what each feature rests on").check()
        assert page.evaluate("document.body.scrollWidth") <= width
        assert_accessible(page)
        keep_picture(page, f"robustness-report-{width}")
