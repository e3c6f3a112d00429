"""A whole evaluation: its record, resuming, refusals, groups, defences, and the task."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from features.bootstrap import Estimate, share_estimate
from features.encoders.load import load_encoder
from features.errors import UserError
from features.space.space import FeatureSpace
from mms_apps.robustness import evaluation as evaluation_module
from mms_apps.robustness.attacks.base import AttackConfig
from mms_apps.robustness.attacks.registry import offered
from mms_apps.robustness.attacks.run import run_attack
from mms_apps.robustness.distances import NORMS, within
from mms_apps.robustness.evaluation import evaluate
from mms_apps.robustness.groups import Defence, controls, keep_only, shares
from mms_apps.robustness.models import Squeezed, ZeroShot, batched, correct, pixels_of
from mms_apps.robustness.parts import Part
from mms_apps.robustness.report import defence_words, write_robustness_report
from mms_apps.robustness.results import DefenceResult, EvaluationConfig, worst_case
from mms_apps.robustness.tasks import Task, load_task
from tests.robustness.conftest import SmallNet, small_case

SHORT = AttackConfig(pgd_steps=8, steps=8, queries=20)
CONFIG = EvaluationConfig(
    attacks=("noise", "pgd", "square"),
    eps=(2 / 255, 16 / 255),
    attack=SHORT,
    defences=("keep:CrossD", "squeeze:3"),
    check_images=6,
)


@pytest.fixture(scope="module")
def finished(space: FeatureSpace, task: Task, model: ZeroShot, tmp_path_factory):
    """An evaluation and its folder."""
    out = tmp_path_factory.mktemp("robustness")
    return evaluate(model, task, out, CONFIG, space=space, encoder="embedded"), out


def test_the_record_holds_everything(finished, task: Task) -> None:
    _, out = finished
    record = json.loads((out / "robustness.json").read_text())
    assert set(record["accuracy"]) == {"noise", "pgd", "square", "worst case"}
    assert [row["eps"] for row in record["accuracy"]["pgd"]] == [2 / 255, 16 / 255]
    row = record["accuracy"]["worst case"][1]
    assert row["low"] <= row["value"] <= row["high"]
    assert record["reliable"] == all(check["passed"] for check in record["checks"])
    assert {check["name"] for check in record["checks"]} >= {
        "inside eps and [0, 1]",
        "repeated passes agree",
        "gradients of the margin",
        "groups stand beside controls",
        "defences are attacked through themselves",
    }
    assert [group["group"] for group in record["groups"]] == ["ImgD", "TextD", "CrossD"]
    assert len(record["groups"][0]["control_drift"]["energy"]) == 5
    assert len(record["minimal"]) == len(task)
    assert record["defences"][0]["defence"] == "keep:CrossD"
    assert sum(group["drift"]["value"] for group in record["groups"]) == pytest.approx(1, abs=0.05)


def test_the_smallest_eps_agrees_with_the_curve(finished) -> None:
    found, _ = finished
    smallest = torch.tensor(found.minimal)
    for eps, estimate in found.accuracy["worst case"].items():
        assert float((smallest > eps).float().mean()) <= estimate.value + 1e-6


def test_the_report_says_whether_to_rely_on_it(finished, tmp_path: Path) -> None:
    found, _ = finished
    page = write_robustness_report(found, tmp_path / "report.html").read_text()
    assert "http://" not in page and "https://" not in page
    assert ("All" in page and "checks passed" in page) == found.reliable
    bad = dataclasses.replace(found.checks[0], passed=False)
    broken = dataclasses.replace(found, checks=[bad, *found.checks[1:]])
    page = write_robustness_report(broken, tmp_path / "broken.html").read_text()
    assert "not to be relied on" in page
    assert broken.record()["reliable"] is False


def test_a_killed_evaluation_goes_on(
    finished, space: FeatureSpace, task: Task, model: ZeroShot, tmp_path: Path
) -> None:
    class Killed(BaseException):
        pass

    def kill(share: float, what: str) -> None:
        if what.startswith("square"):
            raise Killed

    with pytest.raises(Killed):
        evaluate(model, task, tmp_path, CONFIG, space=space, progress=kill)
    parts = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    assert any(name.startswith("pgd") for name in parts)
    assert not any("tmp" in name for name in parts)
    again = evaluate(model, task, tmp_path, CONFIG, space=space)
    for name, written in parts.items():
        assert (tmp_path / "parts" / name).stat().st_mtime_ns == written
    whole, _ = finished
    assert again.accuracy == whole.accuracy
    assert again.minimal == whole.minimal
    assert again.checks == whole.checks
    assert again.defences == whole.defences
    assert again.shown["moved"] == whole.shown["moved"] != []


def test_another_evaluation_in_the_folder_is_refused(
    finished, space: FeatureSpace, task: Task, model: ZeroShot
) -> None:
    _, out = finished
    other = EvaluationConfig(attacks=("noise",), eps=(0.1,), attack=SHORT)
    with pytest.raises(UserError, match=r"config.*differ"):
        evaluate(model, task, out, other, space=space)
    with pytest.raises(UserError, match=r"task.*differ"):
        evaluate(model, task.first(3), out, CONFIG, space=space)
    with pytest.raises(UserError, match="keep:CrossD: acts on groups of features"):
        evaluate(model, task, out, CONFIG)
    squeezed = model.with_defence(None, Squeezed(4, straight_through=True))
    with pytest.raises(UserError, match=r"model.*differ"):
        evaluate(squeezed, task, out, CONFIG, space=space)


def small_task(classes: int = 2, **changed: Any) -> tuple[SmallNet, Task]:
    """A small net with a task that it can do."""
    net, pixels, labels = small_case(classes, count=4)
    names, count = tuple("abcde"[:classes]), len(labels)
    prompts = tuple((name,) for name in names)
    ids = tuple(map(str, range(count)))
    task = Task("kind", "made", pixels, labels, names, prompts, ids, ("",) * count, ({},) * count)
    return net, dataclasses.replace(task, **changed)


TINY = EvaluationConfig(
    attacks=("fgsm",), eps=(0.05,), attack=AttackConfig(pgd_steps=2, queries=5), check_images=2
)


def test_running_statistics_stay_as_they_are_and_the_evaluation_goes_on(tmp_path: Path) -> None:
    net, task = small_task()
    model = nn.Sequential(nn.BatchNorm2d(3).train(), net)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = evaluate(model, task, tmp_path, TINY)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model[0].training and model[0].track_running_stats
    assert evaluate(model, task, tmp_path, TINY).accuracy == first.accuracy


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d])
@pytest.mark.parametrize("training", [True, False])
def test_running_statistics_are_neither_changed_nor_left_out(
    norm: Callable[..., nn.Module], training: bool
) -> None:
    pixels = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    layer = norm(3, track_running_stats=True)
    layer(3 * pixels)
    layer.train(training)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    found = batched(layer, pixels)
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())
    assert torch.equal(found, layer(pixels))


@pytest.mark.parametrize("shape", [(1, 6, 6), (4, 5, 9)])
def test_images_of_any_channels_and_shape_come_into_the_report(
    shape: tuple[int, int, int], tmp_path: Path
) -> None:
    _, task = small_task()
    pixels = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Flatten(), nn.Linear(pixels[0].numel(), 2)).eval()
    labels = model(pixels).argmax(1)
    task = dataclasses.replace(task, pixels=pixels.requires_grad_(), labels=labels)
    found = evaluate(model, task, tmp_path, dataclasses.replace(TINY, eps=(0.9,)))
    assert len(found.shown["clean"])
    write_robustness_report(found, tmp_path / "report.html")


class Constant(nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[1.0, 0.0]]).expand(len(pixels), -1)


class LastIs(nn.Module):
    """Logits of which the last is a constant."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return torch.cat([logits[:, :-1], torch.full_like(logits[:, -1:], self.value)], dim=1)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda pixels: pixels, "the model is a function; give a torch.nn.Module"),
        (SmallNet(2).half(), "float16, but attacks are computed in float32"),
        (SmallNet(2).to(torch.bfloat16), "bfloat16, but attacks are computed in float32"),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), r"the model fails on images \[3, 8, 8\]"),
        (SmallNet(5), "the model gives 5 logits an image, but the task kind has 2"),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 1)), "the model gives 1 logits an image"),
        (nn.Identity(), r"the model gives \[1, 3, 8, 8\]; wrap it"),
        (nn.Sequential(SmallNet(2), LastIs(-torch.inf)), "not finite for 4 of 4 images"),
        (Constant(), "no gradient of the model's logits reaches its images"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_anything_runs(
    model: Any, message: str, tmp_path: Path
) -> None:
    net, task = small_task()
    for given in ((model, None), (net, model)):
        with pytest.raises(UserError, match=message):
            evaluate(given[0], task, tmp_path / "out", CONFIG, surrogate=given[1])
    assert not (tmp_path / "out").exists()


def test_a_task_that_does_not_fit_is_refused_before_anything_runs(tmp_path: Path) -> None:
    net, task = small_task()
    for changed, message in (
        ({"pixels": task.pixels[:, :1]}, r"the model fails on images \[1, 8, 8\]"),
        ({"pixels": 255 * task.pixels}, "images reach from"),
        ({"labels": task.labels.int()}, "labels are torch.int32"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(net, dataclasses.replace(task, **changed), tmp_path / "out", CONFIG)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 7 * 8, 2))
    wide = dataclasses.replace(task, pixels=task.pixels[:, :, 1:])
    in_l2 = dataclasses.replace(CONFIG, attack=dataclasses.replace(SHORT, norm="L2"), defences=())
    with pytest.raises(UserError, match="square: in L2 it takes square images of 5 pixels"):
        evaluate(net, wide, tmp_path / "out", in_l2)
    with pytest.raises(UserError, match="task kind: has no images"):
        evaluate(net, task.first(0), tmp_path / "out", CONFIG)
    assert not (tmp_path / "out").exists()
    for changed, message in (
        ({"ids": ()}, "task kind: 0 ids for 4 labels; give one for each image"),
        ({"captions": ("a",)}, "1 captions for 4 labels"),
        ({"attributes": ()}, "0 attributes for 4 labels"),
        ({"pixels": task.pixels[:2]}, "2 pixels for 4 labels"),
        ({"prompts": (("a",),)}, "1 prompts for 2 classes"),
    ):
        with pytest.raises(UserError, match=message):
            small_task(**changed)


def test_a_folder_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    net, task = small_task()
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=rf"{place}: .*; name another folder"):
            evaluate(net, task, place, EvaluationConfig(attacks=("noise",)))
    for damaged, message in (("{", "run.json: damaged"), ("[]", "run.json: holds no JSON object")):
        (tmp_path / "run.json").write_text(damaged)
        with pytest.raises(UserError, match=message):
            evaluate(net, task, tmp_path, EvaluationConfig(attacks=("noise",)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"eps": 8 / 255}, r"eps 0.03.*: give a tuple, such as \(4 / 255, 8 / 255\)"),
        ({"eps": "8/255"}, "eps '8/255': give a tuple"),
        ({"attacks": "pgd"}, "attacks 'pgd': give a tuple"),
        ({"defences": "squeeze:3"}, "defences 'squeeze:3': give a tuple"),
        ({"attacks": None}, "attacks None: give a tuple"),
    ],
)
def test_one_where_several_are_wanted_is_said(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EvaluationConfig(**given)


def test_lists_and_generators_serve_as_tuples() -> None:
    found = EvaluationConfig(["pgd"], (eps / 255 for eps in (8, 4)), defences=[])  # type: ignore[arg-type]
    assert (found.attacks, found.eps, found.defences) == (("pgd",), (4 / 255, 8 / 255), ())


def test_a_quantised_model_is_marked_unreliable(
    task: Task, model: ZeroShot, tmp_path: Path
) -> None:
    broken = model.with_defence(None, Squeezed(4, straight_through=False))
    config = EvaluationConfig(attacks=("noise", "pgd"), eps=(8 / 255,), attack=SHORT)
    found = evaluate(broken, task.first(6), tmp_path, config)
    failed = {check.name for check in found.checks if not check.passed}
    assert {"gradients of the cross-entropy", "gradients of the margin"} <= failed
    assert not found.reliable


def test_a_zero_step_attack_is_marked_unreliable(
    task: Task, model: ZeroShot, tmp_path: Path
) -> None:
    nothing = EvaluationConfig(
        attacks=("noise", "pgd"), eps=(8 / 255,), attack=AttackConfig(pgd_steps=0)
    )
    found = evaluate(model, task.first(6), tmp_path, nothing)
    failed = {check.name for check in found.checks if not check.passed}
    assert {"the loss has flattened", "a huge eps breaks it"} <= failed


@pytest.mark.parametrize("norm", NORMS)
def test_a_task_of_two_classes_works_with_every_attack(
    task: Task, model: ZeroShot, norm: str
) -> None:
    few = task.first(4)
    eps = 8 / 255 if norm == "Linf" else 1.0
    for name in offered(2, norm):
        config = AttackConfig(norm=norm, pgd_steps=5, steps=5, queries=10)
        if name == "autoattack":  # its parts are the same; 5,000 queries of Square are slow
            continue
        found = run_attack(model, few.pixels, few.labels, name, eps, config)
        assert within(few.pixels, found.images, eps, norm).all(), name


def test_the_worst_case_is_taken_image_by_image() -> None:
    right = torch.tensor([True, True, True, False])
    one = {0.1: torch.tensor([True, False, True, True])}
    two = {0.1: torch.tensor([False, True, True, True])}
    found = worst_case({"pgd": one, "square": two}, right)
    assert found[0.1].tolist() == [False, False, True, False]


def test_parts_come_back_as_they_were(tmp_path: Path) -> None:
    part = Part(
        torch.tensor([True, False]), torch.tensor([True, True]), 0.5, 1, [1.0, 2.0],
        torch.rand(1, 3, 2, 2), torch.rand(2, 4),
    )  # fmt: skip
    part.save(tmp_path / "part.safetensors")
    back = Part.load(tmp_path / "part.safetensors")
    assert torch.equal(back.withstood, part.withstood) and torch.equal(back.shown, part.shown)
    assert (back.lost, back.history, back.excess) == (1, [1.0, 2.0], 0.5)


def test_pixels_and_logits_are_the_encoders_own(space: FeatureSpace, task: Task) -> None:
    from features.embedded.world import EmbeddedPairs

    source = EmbeddedPairs("heldout")
    images = [source.pair(index).image for index in range(3)]
    model = task.classifier(space.encoder)
    vectors = model.vectors
    with torch.no_grad():
        logits = model(pixels_of(space.encoder, images))
    own = space.encoder.encode_images(images) @ vectors.T
    assert torch.allclose(logits / model.scale, own, atol=1e-5)


def test_group_edits(space: FeatureSpace, task: Task, model: ZeroShot) -> None:
    with torch.no_grad():
        embedding = model.plain(task.pixels)
    every = torch.arange(len(space))
    as_it_is = Defence.parse("weight:ImgD=1").edit(space)
    assert torch.allclose(as_it_is(embedding), embedding, atol=1e-5)
    kept = keep_only(space, every)(embedding)
    assert torch.allclose(kept, space.decode(space.encode_images(embedding), "image"), atol=1e-5)
    text = Defence.parse("remove:TextD").edit(space)(embedding)
    image = Defence.parse("remove:ImgD").edit(space)(embedding)
    assert (text - embedding).norm() < (image - embedding).norm()
    attacked = torch.nn.functional.normalize(embedding + 0.1 * torch.randn_like(embedding), dim=1)
    moved = space.encode_images(attacked) - space.encode_images(embedding)
    drift = shares(space, moved)
    assert all(((share >= 0) & (share <= 1)).all() for share in drift.values())
    assert torch.isnan(shares(space, torch.zeros_like(moved))["ImgD"]).all()


def test_controls_match_what_they_control(space: FeatureSpace, model: ZeroShot, task: Task) -> None:
    with torch.no_grad():
        embedding = model.plain(task.pixels)
    own = space.select("ImgD")
    mean_square = space.encode_images(embedding).square().mean(0)
    energy = float(mean_square[own].sum())
    drawn = list(controls(space, "ImgD", embedding))
    assert len(drawn) == 15
    assert len({tuple(c.features.tolist()) for c in drawn if c.features is not None}) == 10
    for control in drawn:
        if control.described.kind == "size":
            assert len(control.features) == len(own)
        elif control.described.kind == "energy":
            assert control.described.energy == pytest.approx(energy, rel=0.1)
        else:
            rows = control.pca.components
            assert torch.allclose(rows @ rows.T, torch.eye(len(rows)), atol=1e-4)


@pytest.mark.parametrize(
    "spec",
    ["keep", "keep:Nothing", "weight:ImgD", "weight:ImgD=x", "squeeze:9", "squeeze:a", "no:ImgD"],
)
def test_defences_that_are_none_are_refused(spec: str) -> None:
    with pytest.raises(UserError, match="--defence"):
        Defence.parse(spec)


def test_defences_are_read(space: FeatureSpace) -> None:
    weighted = Defence.parse("weight:ImgD=0.5,CrossD=2").edit(space)
    assert set(weighted.weights[space.select("ImgD")].tolist()) == {0.5}
    assert set(weighted.weights[space.select("TextD")].tolist()) == {1.0}
    kept = Defence.parse("keep:CrossD+ImgD").edit(space)
    assert set(kept.weights[space.select("TextD")].tolist()) == {0.0}
    assert Defence.parse("squeeze:3").edit(space) is None


def test_words_of_a_defence(finished) -> None:
    found, _ = finished
    for defence in found.defences:
        words = defence_words(defence, found.clean)
        assert any(word in words for word in ("holds", "not shown to hold", "harm"))


@pytest.mark.parametrize(
    ("without", "with_it", "costs"),
    [(0.6, 0.6, False), (0.6, 0.5, False), (1.0, 0.95, False), (1.0, 0.85, True), (0.6, 0.3, True)],
)
def test_a_defence_costs_what_the_undefended_model_has(
    without: float, with_it: float, costs: bool
) -> None:
    def share(of: float) -> Estimate:
        return share_estimate(np.arange(100) < 100 * of)

    rest = [share(0.2)] * 5
    words = defence_words(DefenceResult("squeeze:3", share(with_it), *rest), share(without))
    assert ("costs accuracy on clean images" in words) is costs
    assert "is not shown to hold" in words


def test_the_tasks(space: FeatureSpace) -> None:
    retrieval = load_task("embedded:heldout", space.encoder, label="retrieval", count=8)
    assert [retrieval.classes[label] for label in retrieval.labels] == list(retrieval.captions)
    assert retrieval.prompts == tuple((name,) for name in retrieval.classes)
    tones = load_task("embedded:heldout", space.encoder, label="skin_tone", count=8)
    assert len(tones.classes) == 5 and tones.chance == 0.2
    ground = load_task(
        "embedded:heldout", space.encoder, label="background", templates=["on {}"], count=8
    )
    assert ground.prompts[0] == (f"on {ground.classes[0]}",)
    again = load_task("embedded:heldout", space.encoder, label="skin_tone", count=8)
    assert again.fingerprint() == tones.fingerprint()
    other = load_task("embedded:heldout", space.encoder, label="skin_tone", count=8, seed=1)
    assert other.fingerprint() != tones.fingerprint()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "nothing"}, "no such attribute"),
        ({"label": "gender", "classes": ["cat", "dog"]}, "no pair"),
        ({"label": "gender", "classes": ["man"]}, "only one class"),
        ({"label": "gender", "classes": ["man", "woman", "wman"]}, "--classes wman: no pair"),
        ({"templates": ["no place"]}, "has no"),
        ({"count": 0}, "at least 1"),
    ],
)
def test_tasks_that_cannot_be_are_refused(space: FeatureSpace, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_task("embedded:heldout", space.encoder, **options)


def test_an_attack_lowers_the_accuracy_of_the_embedded_model(task: Task, model: ZeroShot) -> None:
    config = AttackConfig(pgd_steps=15)
    found = run_attack(model, task.pixels, task.labels, "pgd", 16 / 255, config)
    assert correct(model, found.images, task.labels).float().mean() < 0.3


def test_transfer_from_another_encoder(
    space: FeatureSpace, task: Task, model: ZeroShot, tmp_path: Path
) -> None:
    other = load_encoder("embedded-ssl", device="cpu")
    config = EvaluationConfig(attacks=("pgd",), eps=(8 / 255,), attack=SHORT, check_images=4)
    found = evaluate(model, task.first(6), tmp_path, config, surrogate=task.classifier(other))
    assert list(found.accuracy["transfer"]) == [config.middle]
    assert any(check.name.startswith("transfer") for check in found.checks)
    assert not math.isnan(found.clean.value)
    assert evaluation_module.RESULT in {path.name for path in tmp_path.iterdir()}
