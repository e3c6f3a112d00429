"""Attacks: inside eps, strong on a known case, the best kept, nothing left behind."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torchattacks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from features.errors import UserError
from mms_apps.robustness.attacks.base import AttackConfig
from mms_apps.robustness.attacks.registry import ATTACKS, offered, parts
from mms_apps.robustness.attacks.run import run_attack
from mms_apps.robustness.checks.linear_case import LinearModel, analytic, linear_case
from mms_apps.robustness.distances import NORMS, distances, project, random_in_ball, within
from mms_apps.robustness.losses import margin
from mms_apps.robustness.models import Squeezed, correct, require_labelled, undisturbed
from mms_apps.robustness.nearest_adversarial import minimal_eps
from mms_apps.robustness.projected_gradient import pgd
from tests.robustness.conftest import SmallNet, small_case

SHORT = {"pgd_steps": 10, "steps": 10, "queries": 30}


@settings(max_examples=25, deadline=None)
@given(norm=st.sampled_from(NORMS), eps=st.floats(1e-3, 3), seed=st.integers(0, 1000))
def test_projections_and_starts_are_inside_the_ball(norm: str, eps: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    clean = torch.rand(3, 3, 5, 4, generator=generator)
    far = clean + 4 * torch.randn(clean.shape, generator=generator)
    radius = torch.full((3, 1, 1, 1), eps)
    for images in (
        project(far, clean, radius, norm),
        random_in_ball(clean, radius, norm, generator),
    ):
        assert within(clean, images, eps, norm).all()
        assert images.min() >= 0
        assert images.max() <= 1


def test_a_projection_leaves_what_is_inside() -> None:
    clean = torch.full((1, 3, 2, 2), 0.5)
    near = clean + 0.01
    for norm in NORMS:
        assert torch.allclose(project(near, clean, torch.ones(1, 1, 1, 1), norm), near)


@pytest.mark.parametrize("norm", NORMS)
def test_the_nearest_adversarial_of_a_linear_model_is_found(norm: str) -> None:
    """The distance is known in closed form: |w.x + b| over the dual norm of w."""
    model, pixels, labels = linear_case(32, seed=3)
    nearest = model.nearest(pixels, norm)
    found = minimal_eps(model, pixels, labels, norm=norm, high=0.5 if norm == "Linf" else 5.0)
    assert (found >= nearest * (1 - 1e-4)).all()
    assert (found <= 1.25 * nearest).all()
    assert analytic(norm).passed


def test_a_search_leaves_out_wrong_and_unreachable_images() -> None:
    model, pixels, labels = linear_case(4, seed=0)
    labels = labels.clone()
    labels[0] = 1 - labels[0]
    high = torch.tensor([1.0, torch.inf, 1.0, 1e-6])
    found = minimal_eps(model, pixels, labels, high=high, steps=10)
    assert found[0] == 0
    assert torch.isinf(found[1])
    assert torch.isinf(found[3])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_every_attack_offered_runs(classes: int, norm: str) -> None:
    model, pixels, labels = small_case(classes)
    eps = 0.1 if norm == "Linf" else 1.0
    names = offered(classes, norm)
    assert ("cw" in names) == (norm == "L2")
    assert ("apgd-dlr" in names) == (classes >= 3)
    assert ("apgd-t" in names) == (classes >= 4)
    accuracy = {}
    for name in names:
        found = run_attack(model, pixels, labels, name, eps, AttackConfig(norm=norm, **SHORT))
        assert within(pixels, found.images, eps, norm).all(), name
        assert found.images.min() >= 0 and found.images.max() <= 1
        assert not found.images.requires_grad
        accuracy[name] = float(correct(model, found.images, labels).float().mean())
    assert accuracy["autoattack"] <= min(accuracy["apgd"], accuracy["fab"])
    assert accuracy["pgd"] <= accuracy["noise"]
    assert accuracy["autoattack"] < 1


@pytest.mark.parametrize("name", offered(2, "L2"))
def test_a_single_image_works(name: str) -> None:
    model, pixels, labels = small_case(2, count=1)
    config = AttackConfig(norm="L2", **SHORT)
    assert run_attack(model, pixels, labels, name, 1.0, config).images.shape == pixels.shape


def test_autoattack_takes_the_parts_that_work() -> None:
    assert parts("autoattack", 2) == ["apgd", "fab", "square"]
    assert parts("autoattack", 3) == ["apgd", "apgd-dlr", "fab", "square"]
    assert parts("autoattack", 10) == ["apgd", "apgd-t", "fab", "square"]
    assert AttackConfig().steps == 100


def test_pgd_keeps_the_best_iterate_not_the_last() -> None:
    """A loss with a narrow peak half way: the last iterate is beyond it."""
    clean = torch.zeros(1, 1, 1, 1)
    ascent = pgd(lambda x: -(x.flatten(1).sum(1) - 0.3).abs(), clean, 1.0, steps=7)
    assert float(ascent.loss) == max(ascent.history)

    class Shell(nn.Module):
        """Fooled between 0.6 and 0.7 alone, though its loss points beyond."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            value = self.weight * pixels.flatten(1).mean(1)
            other = torch.where((value > 0.6) & (value < 0.7), value + 1, value - 1)
            return torch.stack([torch.zeros_like(value), other], dim=1)

    pixels, labels = torch.full((4, 3, 2, 2), 0.5), torch.zeros(4, dtype=torch.int64)
    last = torchattacks.PGD(Shell(), eps=0.5, alpha=0.15, steps=8, random_start=False)
    assert correct(Shell(), last(pixels, labels), labels).all()
    found = run_attack(Shell(), pixels, labels, "pgd", 0.5, AttackConfig(pgd_steps=8))
    assert found.fooled.all()
    assert not correct(Shell(), found.images, labels).any()


def test_images_that_are_wrong_stay_as_they_are() -> None:
    model, pixels, labels = small_case(3)
    labels = (labels + 1) % 3
    found = run_attack(model, pixels, labels, "pgd", 0.1, AttackConfig(**SHORT))
    assert torch.equal(found.images, pixels)
    assert not found.fooled.any()


def test_nothing_global_changes_and_the_mode_is_restored() -> None:
    model, pixels, labels = small_case(4)
    model.train()
    model.dropout.eval()
    model.head.weight.requires_grad_(False)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = (random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state())
    for name in offered(4, "L2"):
        run_attack(model, pixels, labels, name, 1.0, AttackConfig(norm="L2", **SHORT))
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert torch.equal(torch.get_rng_state(), before[2])
    assert model.training and model.head.training and not model.dropout.training
    assert not model.head.weight.requires_grad
    assert model.head.bias.requires_grad and model.features.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("training", [False, True])
def test_statistics_of_batch_norm_are_left_alone(training: bool) -> None:
    """torchattacks puts a model into the mode of what wraps it: its statistics must not move."""
    net, pixels, _ = small_case(2)
    model = nn.Sequential(nn.BatchNorm2d(3), net).train(training)
    with torch.no_grad():
        labels = nn.Sequential(*model).eval()(pixels).argmax(1)
    model.train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    runs = [run_attack(model, pixels, labels, n, 0.1, AttackConfig(**SHORT)).images
            for n in ("fgsm", "autoattack", "fgsm")]  # fmt: skip
    assert torch.equal(runs[0], runs[2])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert model.training is training and model[0].training is training


def test_an_exception_restores_the_model() -> None:
    class Breaks(SmallNet):
        calls = 0

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls > 3:
                raise RuntimeError("broken")
            return super().forward(pixels)

    _, pixels, labels = small_case(2)
    model = Breaks(2).train()
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="broken"):
        run_attack(model, pixels, labels, "pgd", 0.1, AttackConfig(**SHORT))
    assert model.training and model.dropout.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_random_state_of_every_gpu_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeding touches all of them, wherever the model is."""
    states = {gpu: torch.tensor([gpu], dtype=torch.uint8) for gpu in range(3)}
    before = dict(states)

    def seed_all(seed: int) -> None:
        states.update(dict.fromkeys(states, torch.tensor([99], dtype=torch.uint8)))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(states))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seed_all)
    monkeypatch.setattr(torch.cuda, "get_rng_state", states.__getitem__)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, gpu: states.update({gpu: state}))
    with undisturbed(SmallNet(3), 0):
        assert not torch.is_autocast_enabled("cpu")
        assert not torch.is_autocast_enabled("cuda")
        assert int(states[2]) == 99
    assert states == before


@pytest.mark.parametrize("given", ["labels", "images"])
def test_tensors_of_two_devices_are_told_of(given: str) -> None:
    class Elsewhere(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("Expected all tensors to be on the same device")

    model, pixels, labels = small_case(3)
    if given == "labels":
        message = "labels are on meta, images on cpu; give both"
        with pytest.raises(UserError, match=message):
            require_labelled(model, pixels, labels.to("meta"))
    else:
        with pytest.raises(UserError, match=r"on cpu \(Expected all.*on its device"):
            require_labelled(Elsewhere(), pixels, labels)


def test_attacks_work_where_gradients_are_off() -> None:
    model, pixels, labels = small_case(2)
    config = AttackConfig(**SHORT)
    plain = run_attack(model, pixels, labels, "pgd", 0.1, config).images
    with torch.no_grad():
        assert torch.equal(run_attack(model, pixels, labels, "pgd", 0.1, config).images, plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(run_attack(model, pixels, labels, "pgd", 0.1, config).images, plain)


def test_the_seed_decides() -> None:
    model, pixels, labels = small_case(2)
    runs = [
        run_attack(model, pixels, labels, "noise", 0.1, AttackConfig(seed=seed)).images
        for seed in (0, 0, 1)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_an_attack_through_rounding_needs_straight_through() -> None:
    """Rounding hides the gradient; letting it pass breaks the defence (BPDA)."""
    net, pixels, _ = small_case(2)
    config = AttackConfig(pgd_steps=20)
    accuracy = {}
    labels = correct_labels(nn.Sequential(Squeezed(4, straight_through=False), net), pixels)
    for passes in (False, True):
        attacked = nn.Sequential(Squeezed(4, straight_through=passes), net)
        defended = nn.Sequential(Squeezed(4, straight_through=False), net)
        images = run_attack(attacked, pixels, labels, "fgsm", 0.1, config).images
        accuracy[passes] = float(correct(defended, images, labels).float().mean())
    assert accuracy[False] == 1
    assert accuracy[True] < 0.5


def correct_labels(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(pixels).argmax(1)


def test_pgd_with_a_radius_for_every_image() -> None:
    model, pixels, labels = small_case(3)
    eps = torch.linspace(0.01, 0.2, len(pixels))
    for norm in NORMS:
        found = pgd(lambda x: margin(model(x), labels), pixels, eps, norm=norm, steps=5, restarts=2)
        assert within(pixels, found.images, eps, norm).all()
        assert (distances(pixels, found.images, norm) > 0.5 * eps).float().mean() > 0.5


@pytest.mark.parametrize(
    ("name", "eps", "norm", "message"),
    [
        ("nothing", 0.1, "Linf", "unknown attack"),
        ("cw", 0.1, "Linf", "cannot be run on 2 classes with norm Linf"),
        ("apgd-t", 0.1, "Linf", "cannot be run on 2 classes"),
    ],
)
def test_what_cannot_be_run_is_refused(name: str, eps: float, norm: str, message: str) -> None:
    model, pixels, labels = small_case(2)
    with pytest.raises(UserError, match=message):
        run_attack(model, pixels, labels, name, eps, AttackConfig(norm=norm))


def test_less_than_float32_is_refused() -> None:
    model, pixels, labels = small_case(2)
    with pytest.raises(UserError, match="float32"):
        run_attack(model.to(torch.bfloat16), pixels, labels, "pgd", 0.1, AttackConfig())
    with pytest.raises(UserError, match="float32"):
        run_attack(SmallNet(2), pixels.half(), labels, "pgd", 0.1, AttackConfig())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "L1"}, "unknown norm"),
        ({"queries": 0}, "queries 0"),
        ({"steps": -1}, "must not be negative"),
        ({"norm": 2}, "2: unknown norm"),
        ({"pgd_steps": "40"}, "pgd_steps '40': must be a whole number"),
        ({"steps": 1.5}, "steps 1.5: must be a whole number"),
        ({"queries": None}, "queries None: must be a whole number"),
        ({"restarts": True}, "restarts True: must be a whole number"),
        ({"seed": 0.5}, "seed 0.5: must be a whole number"),
    ],
)
def test_bad_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        AttackConfig(**settings)


def test_every_kind_names_what_it_needs() -> None:
    assert {name for name, kind in ATTACKS.items() if not kind.gradients} == {"noise", "square"}


class Shifted(nn.Module):
    """A model whose logits are scaled, and shifted by a number or by one of each image's own."""

    def __init__(self, model: nn.Module, scale: float, shift) -> None:
        super().__init__()
        self.model, self.scale, self.shift = model, scale, shift

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        shift = self.shift(pixels)[:, None] if callable(self.shift) else self.shift
        return self.scale * self.model(pixels) + shift


RESCALED = [
    (1.0, -20.0),
    (1.0, 100.0),
    (1.0, lambda pixels: 30 * pixels.flatten(1).mean(1) - 40),
    (1000.0, 0.0),
    (0.001, 5e-3),
]


@pytest.mark.parametrize(("scale", "shift"), RESCALED)
@pytest.mark.parametrize("norm", NORMS)
def test_no_attack_is_moved_by_a_shift_or_scale_of_the_logits(
    norm: str, scale: float, shift
) -> None:
    model, pixels, labels = small_case(4, count=16)
    eps = 0.02 if norm == "Linf" else 0.2
    config = AttackConfig(norm=norm, pgd_steps=10, steps=20, queries=30)
    for name in offered(4, norm)[:-1]:
        left = [
            float(correct(m, run_attack(m, pixels, labels, name, eps, config).images, labels)
                  .float().mean())
            for m in (model, Shifted(model, scale, shift))
        ]  # fmt: skip
        assert abs(left[0] - left[1]) <= 1 / 16, name


@pytest.mark.parametrize("shift", [-20.0, 0.0, 100.0])
def test_cw_leaves_no_more_than_pgd(shift: float) -> None:
    linear, pixels, labels = linear_case(50, seed=1)
    with torch.no_grad():
        distance = linear.nearest(pixels, "L2")
    for eps in distance.quantile(torch.tensor([0.3, 0.6, 0.9])).tolist():
        left = [
            float(correct(m, run_attack(m, pixels, labels, name, eps, AttackConfig(norm="L2"))
                          .images, labels).float().mean())
            for m in (Shifted(linear, 1.0, shift),) for name in ("cw", "pgd")
        ]  # fmt: skip
        assert left[0] <= left[1] + 0.02
        assert left[0] == pytest.approx(float((distance > eps).float().mean()), abs=0.021)


def test_cw_finds_the_nearest() -> None:
    """On a linear model within a tenth of the known distance, whatever eps it was given."""
    linear, pixels, labels = linear_case(20, seed=2)
    with torch.no_grad():
        nearest = linear.nearest(pixels, "L2")
    found = run_attack(linear, pixels, labels, "cw", 0.3, AttackConfig(norm="L2")).images
    assert (distances(pixels, found, "L2") <= 1.1 * nearest + 0.01).all()


@pytest.mark.parametrize("name", ["cw", "pgd", "apgd", "fab"])
@pytest.mark.parametrize("share", [1.0, 0.9])
def test_pixels_at_0_and_1_move(name: str, share: float) -> None:
    """An image that is black and white but for some of its pixels."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 8, 8, generator=generator)
    grey = torch.rand(3, 8, 8, generator=generator) > share
    image = torch.where(grey, 0.5, (weight > 0).float())
    linear = LinearModel(weight, float(0.2 * weight.norm() - (weight * image).sum()))
    pixels, labels = image[None], torch.ones(1, dtype=torch.int64)
    found = run_attack(linear, pixels, labels, name, 0.25, AttackConfig(norm="L2")).images
    assert not correct(linear, found, labels).any()


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (torch.full((2, 3, 4, 4), 255, dtype=torch.uint8), [0, 1], "images are torch.uint8"),
        (torch.full((2, 3, 4, 4), 255.0), [0, 1], "images reach from 255 to 255; give pixels in"),
        (torch.full((2, 3, 4, 4), -1.0), [0, 1], "images reach from -1 to -1; give pixels in"),
        (torch.full((2, 3, 4, 4), torch.nan), [0, 1], "images reach from nan to nan"),
        (torch.rand(2, 3, 4, 4), [0, 3], "labels reach from 0 to 3, but the model has 3 classes"),
        (torch.rand(2, 3, 4, 4), [-1, 0], "labels reach from -1"),
        (torch.rand(2, 3, 4, 4), [0.0, 1.0], "labels are torch.float32"),
        (torch.rand(2, 3, 4, 4), [[1, 0, 0], [0, 1, 0]], r"labels are torch.int64 \[2, 3\]"),
        (torch.rand(2, 3, 4, 4), [0], r"labels are torch.int64 \[1\] for 2 images"),
        (torch.rand(2, 3, 4, 4), "01", "labels are a str; give a tensor"),
        (torch.rand(2, 3, 4, 4).tolist(), [0, 1], "images are a list; give a tensor, float32"),
        (torch.rand(2, 3, 4, 4).numpy(), [0, 1], "images are a ndarray"),
        (torch.rand(2, 3, 4, 4).double(), [0, 1], "images: torch.float64, but attacks are comp"),
        (
            torch.rand(2, 3, 5, 5),
            [0, 1],
            r"the model fails on images \[3, 5, 5\] on cpu \(mat1 and mat2",
        ),
    ],
)
def test_what_cannot_be_attacked_is_said(pixels: Any, labels: Any, message: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    numbers = torch.tensor(labels) if isinstance(labels, list) else labels
    with pytest.raises(UserError, match=message):
        run_attack(model, pixels, numbers, "fgsm", 4 / 255, AttackConfig())
    with pytest.raises(UserError, match=message):
        minimal_eps(model, pixels, numbers)


class Wrapped(nn.Module):
    def __init__(self, give: Any) -> None:
        super().__init__()
        self.give = give

    def forward(self, pixels: Tensor) -> Any:
        return self.give(pixels)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Wrapped(lambda pixels: {"logits": pixels.flatten(1)}), "gives dict; wrap it"),
        (Wrapped(lambda pixels: pixels), r"gives \[1, 3, 4, 4\]; wrap it"),
        (Wrapped(lambda pixels: pixels[:, :1, 0, 0]), "gives 1 logits an image; give one for each"),
        (Wrapped(lambda pixels: pixels[:, :0, 0, 0]), "gives 0 logits an image"),
        (Wrapped(lambda p: p[:, :2, 0, 0] / torch.tensor([[0.0, 1.0]])), "not finite for 2 of 2"),
        (Wrapped(lambda p: p[:, :2, 0, 0].masked_fill(p[:, :1, 0, 0] < 0.5, torch.nan)), "of 2"),
        (lambda pixels: pixels.flatten(1), "the model is a function; give a torch.nn.Module"),
    ],
)
def test_models_that_give_no_logits_are_told_of(model: Any, message: str) -> None:
    pixels, labels = torch.full((2, 3, 4, 4), 0.25), torch.tensor([0, 1])
    pixels[1] += 0.5
    for name in ("fgsm", "autoattack", "noise"):
        with pytest.raises(UserError, match=message):
            run_attack(model, pixels, labels, name, 4 / 255, AttackConfig())
    with pytest.raises(UserError, match=message):
        minimal_eps(model, pixels, labels)


@pytest.mark.parametrize(("height", "width"), [(8, 12), (12, 8), (4, 4), (1, 1)])
def test_sizes_that_square_does_not_take_in_l2_are_said(height: int, width: int) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * height * width, 3)).eval()
    pixels = torch.rand(3, 3, height, width)
    labels = model(pixels).argmax(1)
    for name in ("square", "autoattack"):
        with pytest.raises(UserError, match=f"these have {height} x {width}; leave it out"):
            run_attack(model, pixels, labels, name, 0.1, AttackConfig(norm="L2"))
    for name in ("fgsm", "pgd", "apgd", "fab", "cw"):
        run_attack(model, pixels, labels, name, 0.1, AttackConfig(**SHORT, norm="L2"))
    run_attack(model, pixels, labels, "square", 0.1, AttackConfig(**SHORT))


class Hidden(nn.Module):
    """A model through which no gradient passes."""

    def __init__(self, model: nn.Module, how: str) -> None:
        super().__init__()
        self.model, self.how = model, how

    def forward(self, pixels: Tensor) -> Tensor:
        if self.how == "no_grad":
            with torch.no_grad():
                return self.model(pixels)
        if self.how == "inference_mode":
            with torch.inference_mode():
                return self.model(pixels)
        if self.how == "numpy":
            return self.model(torch.from_numpy(pixels.numpy()))
        return self.model(pixels.detach())


@pytest.mark.parametrize("how", ["no_grad", "inference_mode", "numpy", "detach"])
def test_models_without_gradients_are_refused_where_they_are_needed(how: str) -> None:
    net, pixels, labels = small_case(4)
    hidden = Hidden(net, how)
    config = AttackConfig(pgd_steps=2, steps=2, queries=5)
    for name in (*ATTACKS, "autoattack"):
        if name in ("noise", "square", "cw"):
            continue
        with pytest.raises(UserError, match="no gradient of the model's logits reaches its images"):
            run_attack(hidden, pixels, labels, name, 0.05, config)
    for name in ("noise", "square"):
        assert run_attack(hidden, pixels, labels, name, 0.05, config).images.shape == pixels.shape
    with pytest.raises(UserError, match="no gradient of the model's logits"):
        minimal_eps(hidden, pixels, labels, steps=1)
    if how != "numpy":
        with pytest.raises(UserError, match="no gradient of the loss reaches the images"):
            pgd(lambda x: margin(hidden(x), labels), pixels, 0.05, steps=1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": ["pgd"]}, r"attack \['pgd'\]: give a name"),
        ({"name": None}, "attack None: give a name"),
        ({"config": None}, "config None: give an AttackConfig"),
        ({"config": {"steps": 3}}, "config {'steps': 3}: give an AttackConfig"),
        ({"model": Wrapped(lambda pixels, text: pixels)}, r"the model fails on images .*\(.*text"),
    ],
)
def test_what_is_no_attack_is_said(given: dict[str, Any], message: str) -> None:
    model, pixels, labels = small_case(2)
    plain = {"model": model, "name": "noise", "eps": 0.1, "config": AttackConfig()}
    with pytest.raises(UserError, match=message):
        run_attack(pixels=pixels, labels=labels, **plain | given)  # type: ignore[arg-type]


def test_the_packages_example_is_how_it_is_done() -> None:
    import mms_apps.robustness as package
    from features import FeatureSpace

    taken: list[Any] = []
    lines = [line.strip() for line in (package.__doc__ or "").splitlines() if " = " in line]
    names = {"FeatureSpace": FeatureSpace, "load_task": package.load_task}
    exec("\n".join(lines), {**names, "evaluate": lambda *given: taken.extend(given)})
    model, task, out = taken
    assert correct(model, task.pixels, task.labels).float().mean() > 0.6
    assert isinstance(out, str)
