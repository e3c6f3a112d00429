"""Every check has a planted fault that it alone catches: a whole evaluation with one thing broken,
and the checks that fail."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from features.space.space import FeatureSpace
from mms_apps.robustness import evaluation, runner
from mms_apps.robustness.attacks.base import AttackConfig
from mms_apps.robustness.attacks.registry import ATTACKS
from mms_apps.robustness.checks import linear_case
from mms_apps.robustness.checks.base import Check
from mms_apps.robustness.evaluation import evaluate
from mms_apps.robustness.groups import Defence
from mms_apps.robustness.losses import margin
from mms_apps.robustness.models import ZeroShot
from mms_apps.robustness.results import EvaluationConfig, worst_case
from mms_apps.robustness.tasks import Task
from tests.robustness.conftest import SmallNet, small_case

COUNT = 60
KEPT: dict[str, Any] = {}
ATTACK = AttackConfig(pgd_steps=20, steps=20, queries=60)
CONFIG = EvaluationConfig(
    attacks=("noise", "fgsm", "pgd", "apgd"), eps=(0.01, 0.03), attack=ATTACK, examples=COUNT // 4
)


@dataclasses.dataclass
class Case:
    """What is evaluated; a fault changes it, or what evaluates it."""

    model: nn.Module
    pixels: Tensor
    labels: Tensor
    surrogate: nn.Module
    config: EvaluationConfig = CONFIG

    def failed(self, out: Path) -> set[str]:
        """Names of the checks that fail."""
        classes = tuple("abc")
        task = Task(
            "kind", "planted", self.pixels, self.labels, classes, tuple((c,) for c in classes),
            tuple(map(str, range(len(self.labels)))), ("",) * len(self.labels),
            ({},) * len(self.labels),
        )  # fmt: skip
        found = evaluate(self.model, task, out, self.config, surrogate=self.surrogate)
        assert found.reliable == all(check.passed for check in found.checks)
        return {check.name for check in found.checks if not check.passed}


@pytest.fixture
def case() -> Case:
    model, pixels, labels = small_case(3, count=COUNT)
    return Case(model, pixels, labels, SmallNet(3, seed=7))


@pytest.fixture(autouse=True)
def computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks of attacks on a linear model run once for the same attacks, since they take long."""
    for name in ("analytic", "of_attacks"):
        real = getattr(linear_case, name)

        def kept(*given: Any, name: str = name, real: Callable = real) -> Any:
            key = repr((name, given, sorted(ATTACKS.items()), linear_case.minimal_eps))
            if key not in KEPT:
                found = real(*given)
                KEPT[key] = found if isinstance(found, Check) else list(found)
            return KEPT[key]

        monkeypatch.setattr(linear_case, name, kept)


def replaced(monkeypatch: pytest.MonkeyPatch, name: str, **changes: Any) -> None:
    """Change an attack."""
    monkeypatch.setitem(ATTACKS, name, dataclasses.replace(ATTACKS[name], **changes))


def with_eps(name: str, new: Callable[[float], float]) -> Callable:
    """An attack that takes another eps than it was given; none where that is 0."""
    run = ATTACKS[name].run

    def other(model, images, labels, eps, config):
        eps = new(eps)
        return run(model, images, labels, eps, config) if eps else images.clone()

    return other


class Around(nn.Module):
    """A model whose logits are changed on the way out."""

    def __init__(self, model: nn.Module, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.change = model, change
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.change(self.model(pixels), pixels)


def noise_leaves_its_eps(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    replaced(monkeypatch, "noise", run=with_eps("noise", lambda eps: 1.1 * eps))


def logits_are_random_in_training_mode(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    """By a number that all logits of an image share: no prediction hangs on it."""

    class Jitter(nn.Module):
        def forward(self, logits: Tensor) -> Tensor:
            return logits + 0.01 * torch.randn(len(logits), 1) if self.training else logits

    case.model = nn.Sequential(case.model, Jitter())
    case.model[1].train()


def outputs_are_probabilities(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    case.model = Around(case.model, lambda logits, _: logits.softmax(1))


def brightest_tenth(case: Case) -> Callable[[Tensor], Tensor]:
    """Tells one image in ten: `[n, 1]` bool, of pixels."""
    least = case.pixels.flatten(1).mean(1).topk(COUNT // 10).values.min() - 1e-3
    return lambda pixels: pixels.detach().flatten(1).mean(1, keepdim=True) >= least


def cross_entropy_is_saturated(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    """For one image in ten the logits are a thousand times as large."""
    chosen = brightest_tenth(case)
    case.model = Around(case.model, lambda x, pixels: torch.where(chosen(pixels), 1000 * x, x))
    case.config = dataclasses.replace(CONFIG, attacks=("noise", "fgsm", "pgd"))


def margin_has_no_gradient(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    """For one image in ten a gradient goes through the least likely class alone."""
    chosen = brightest_tenth(case)

    def change(logits: Tensor, pixels: Tensor) -> Tensor:
        least = logits == logits.amin(1, keepdim=True)
        return torch.where(chosen(pixels) & ~least, logits.detach(), logits)

    case.model = Around(case.model, change)


def pgd_is_capped(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    replaced(monkeypatch, "pgd", run=with_eps("pgd", lambda eps: eps if eps < 0.4 else 0.0))


def a_second_start_forgets_the_first(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    run = ATTACKS["pgd"].run

    def forgetful(model, images, labels, eps, config):
        return run(model, images, labels, eps, config) if config.restarts == 1 else images.clone()

    replaced(monkeypatch, "pgd", run=forgetful)


def the_nearest_is_overshot(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    search = linear_case.minimal_eps
    monkeypatch.setattr(linear_case, "minimal_eps", lambda *a, **k: 1.4 * search(*a, **k))


def square_tires_at_a_larger_eps(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    def strong(model, images, labels, eps, config):
        """As good as the gradients at a small eps, and idle at a large one."""
        return ATTACKS["pgd"].run(model, images, labels, eps if eps < 0.02 else 1e-6, config)

    replaced(monkeypatch, "square", run=strong)
    case.config = dataclasses.replace(CONFIG, attacks=(*CONFIG.attacks, "square"))


def apgd_is_weak(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    replaced(monkeypatch, "apgd", run=with_eps("apgd", lambda eps: 0.85 * eps))


def square_loses_what_it_found(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    def loses(model, images, labels, eps, config):
        found = ATTACKS["pgd"].run(model, images, labels, eps, config)
        found[1::2] = images[1::2]
        return found

    replaced(monkeypatch, "square", run=loses)
    case.config = dataclasses.replace(CONFIG, attacks=(*CONFIG.attacks, "square"))


def masks_of_attacks_are_shifted(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    """The worst case is taken over different images of each attack."""

    def wrong(withstood, right):
        moved = {
            name: {eps: mask.roll(place) for eps, mask in masks.items()}
            for place, (name, masks) in enumerate(withstood.items())
        }
        return worst_case(moved, right)

    for module in (evaluation, runner):
        monkeypatch.setattr(module, "worst_case", wrong)


def eps_is_below_a_step_of_8_bits(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    case.config = dataclasses.replace(CONFIG, eps=(0.1 / 255, 0.45 / 255))
    case.model = Around(case.model, lambda logits, _: logits)
    keep = -margin(case.model(case.pixels), case.labels)
    chosen = keep.topk(20, largest=False).indices
    case.pixels = (case.pixels[chosen] * 255).round() / 255
    case.labels = case.model(case.pixels).argmax(1)


def too_few_steps(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    attack = dataclasses.replace(ATTACK, pgd_steps=2)
    case.config = dataclasses.replace(CONFIG, attacks=("noise", "pgd"), attack=attack)


class Misleading(torch.autograd.Function):
    """Pixels, with the gradient of the images that are marked turned round."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, marked: Tensor) -> Tensor:
        ctx.save_for_backward(marked)
        return pixels.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        [marked] = ctx.saved_tensors
        return torch.where(marked[:, None, None, None], -gradients[0], gradients[0]), None


class Masked(nn.Module):
    """A model whose gradient misleads for the brightest third of the images."""

    def __init__(self, model: nn.Module, pixels: Tensor) -> None:
        super().__init__()
        self.model = model
        self.bright = float(pixels.flatten(1).mean(1).quantile(0.67))
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        marked = pixels.detach().flatten(1).mean(1) > self.bright
        return self.model(Misleading.apply(pixels, marked))


def gradients_mislead_before_square(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    case.model = Masked(case.model, case.pixels)
    attack = dataclasses.replace(ATTACK, queries=300)
    attacks = ("noise", "pgd", "square")
    case.config = dataclasses.replace(CONFIG, attacks=attacks, attack=attack, eps=(0.02, 0.1))


def gradients_mislead_before_transfer(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    case.surrogate = case.model
    case.model = Masked(case.model, case.pixels)
    case.config = dataclasses.replace(CONFIG, attacks=("noise", "pgd"), eps=(0.02, 0.1))


def an_attack_depends_on_a_shift(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    """A loss of the right logit alone, cut off below zero, as of some implementations of CW."""
    run = ATTACKS["fgsm"].run

    def clamped(model, images, labels, eps, config):
        return run(
            Around(model, lambda logits, _: logits.clamp(min=0)), images, labels, eps, config
        )

    replaced(monkeypatch, "fgsm", run=clamped)
    case.config = dataclasses.replace(CONFIG, attacks=("noise", "fgsm"))
    case.model = Around(case.model, lambda logits, _: logits + 50)


def extremes_are_stuck(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    """An attack that leaves pixels of 0 and 1 as they are, as an arctanh does."""
    run = ATTACKS["apgd"].run

    def stuck(model, images, labels, eps, config):
        found = run(model, images, labels, eps, config)
        return torch.where((images == 0) | (images == 1), images, found)

    replaced(monkeypatch, "apgd", run=stuck)


FAULTS: list[tuple[Callable, set[str]]] = [
    (noise_leaves_its_eps, {"inside eps and [0, 1]"}),
    (logits_are_random_in_training_mode, {"repeated passes agree"}),
    (outputs_are_probabilities, {"outputs are logits"}),
    (cross_entropy_is_saturated, {"gradients of the cross-entropy"}),
    (margin_has_no_gradient, {"gradients of the margin"}),
    (pgd_is_capped, {"a huge eps breaks it"}),
    (a_second_start_forgets_the_first, {"more work never weakens an attack"}),
    (the_nearest_is_overshot, {"a known nearest adversarial is found"}),
    (square_tires_at_a_larger_eps, {"accuracy never rises with eps"}),
    (apgd_is_weak, {"stronger attacks are stronger"}),
    (square_loses_what_it_found, {"the best iterate is kept"}),
    (masks_of_attacks_are_shifted, {"worst case image by image"}),
    (eps_is_below_a_step_of_8_bits, {"still adversarial in 8 bits"}),
    (too_few_steps, {"the loss has flattened"}),
    (gradients_mislead_before_square, {"Square does not beat gradients"}),
    (gradients_mislead_before_transfer, {"transfer does not beat gradients"}),
    (an_attack_depends_on_a_shift, {"a shift or scale of the logits is nothing"}),
    (extremes_are_stuck, {"pixels at 0 and 1 can move"}),
]


def test_what_is_sound_passes(case: Case, tmp_path: Path) -> None:
    assert case.failed(tmp_path) == set()


@pytest.mark.parametrize(("fault", "caught"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_a_planted_fault_is_caught(
    fault: Callable, caught: set[str], case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch, case)
    assert case.failed(tmp_path) == caught


# Feature groups and defences need a FeatureSpace and so a real encoder.

SPACE_CONFIG = EvaluationConfig(
    attacks=("pgd",),
    eps=(8 / 255,),
    attack=AttackConfig(pgd_steps=15, queries=20),
    defences=("squeeze:3",),
    check_images=4,
)


def failed_with_a_space(
    space: FeatureSpace, task: Task, model: ZeroShot, out: Path, **changes: Any
) -> set[str]:
    config = dataclasses.replace(SPACE_CONFIG, **changes)
    found = evaluate(model, task.first(8), out, config, space=space)
    return {check.name for check in found.checks if not check.passed}


def test_what_is_sound_passes_with_a_space(
    space: FeatureSpace, task: Task, model: ZeroShot, tmp_path: Path
) -> None:
    assert failed_with_a_space(space, task, model, tmp_path) == set()


def test_too_few_controls_are_caught(
    space: FeatureSpace, task: Task, model: ZeroShot, tmp_path: Path
) -> None:
    failed = failed_with_a_space(space, task, model, tmp_path, control_seeds=2, defences=())
    assert failed == {"groups stand beside controls"}


def test_a_defence_that_is_not_attacked_through_is_caught(
    space: FeatureSpace,
    task: Task,
    model: ZeroShot,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its rounding hides the gradient from the attack that should know it."""
    before = Defence.before
    monkeypatch.setattr(
        Defence, "before", lambda self, straight_through: before(self, straight_through=False)
    )
    replaced(monkeypatch, "square", run=ATTACKS["noise"].run)
    failed = failed_with_a_space(space, task, model, tmp_path)
    assert failed == {"defences are attacked through themselves"}


def test_a_defence_that_hides_gradients_from_all_but_square_is_caught(
    space: FeatureSpace,
    task: Task,
    model: ZeroShot,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = runner.Runner._defended

    def hidden(self: runner.Runner, *given: Any) -> dict[str, Tensor]:
        masks = real(self, *given)
        clean = masks["clean"]
        found = clean & (torch.arange(len(clean)) % 2 == 0)
        return {"clean": clean, "nonadaptive": clean, "adaptive": clean, "square": found}

    monkeypatch.setattr(runner.Runner, "_defended", hidden)
    failed = failed_with_a_space(space, task, model, tmp_path)
    assert failed == {"Square does not beat gradients through a defence"}
