"""Benchmark of robustness: attacks, checks, feature groups, defences, cross-modal attacks, parity.

    python -m benchmarks.robustness --out runs/benchmark-robustness.json

On held-out combinations of the embedded world, `embedded` telling skin tones apart, L-inf. Each
section, as `--only` names them, takes less than half an hour on two cores.

- accuracy/ATTACK/EPS, worst_case/EPS, checks/passed, seconds: one evaluation;
- caught/BREAK: whether the checks made for a broken model failed on it (1) or not (0);
- analytic/NORM: smallest adversarial distance found over the known one, the mean over images;
- drift/CLASS, drift/CONTROL/CLASS: share of what PGD moves; restricted/...: accuracy by it alone;
- defence/DEFENCE/KIND: clean, nonadaptive, adaptive, square; worst_case/DEFENCE: image by image
  under all of these; worst_case/none: the undefended model under the same attacks;
- cw/linear_shift/SHIFT, cw/gender_L2/SHIFT: accuracy that CW leaves less what PGD leaves, with so
  much added to all logits; cw/linear_shift, cw/gender_L2: the largest of these;
- crossmodal/CLASS: the target text is nearest; crossmodal/CLASS/nearer: nearer than the own one;
  .../transfer: the same in embedded-ssl; crossmodal/CONTROL/CLASS: controls;
- retrieval/i2t, retrieval/t2i, text/greedy, text/random: recall at 1 under attack; texts keep the
  words that state the label, and embedded-ssl must still find the image by them;
- parity/LIBRARY/ATTACK: their robust accuracy less ours, with the same attack.

Intervals are bootstrapped over images; those of controls are the range over seeds.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import nn

from benchmarks.common import (
    Result,
    estimate_row,
    mean_row,
    median_row,
    options,
    run_sections,
)
from benchmarks.robustness_peers import PEERS, withstood_by_peer, write_data
from features.bootstrap import Estimate
from features.encoders.encoder import Encoder
from features.encoders.load import load_encoder
from features.space.space import FeatureSpace
from mms_apps.robustness.attacks.base import AttackConfig
from mms_apps.robustness.attacks.registry import offered
from mms_apps.robustness.attacks.run import run_attack
from mms_apps.robustness.checks import linear_case, of_curves, of_model
from mms_apps.robustness.crossmodal import ALL, CrossModal, CrossModalStudy
from mms_apps.robustness.distances import NORMS, Norm, readable_eps
from mms_apps.robustness.evaluation import evaluate
from mms_apps.robustness.groups import GROUPS
from mms_apps.robustness.label_words import label_words
from mms_apps.robustness.models import Squeezed, ZeroShot, batched, correct
from mms_apps.robustness.nearest_adversarial import minimal_eps
from mms_apps.robustness.results import Evaluation, EvaluationConfig
from mms_apps.robustness.retrieval import found_by_caption, text_to_image
from mms_apps.robustness.tasks import Task, load_task
from mms_apps.robustness.text_attacks import (
    Judge,
    TextAttackConfig,
    attack_text,
    vocabulary_of,
)

SECTIONS = (
    "analytic", "broken", "cw", "evaluation", "defences", "crossmodal", "retrieval", "two_classes",
    "parity",
)  # fmt: skip
DEFENCES = ("keep:CrossD", "remove:ImgD", "remove:TextD", "weight:ImgD=0.5", "squeeze:3")
PARITY_EPS: dict[Norm, float] = {"Linf": 4 / 255, "L2": 0.5}
PARITY_IMAGES = 150
CROSS_IMAGES = 120
CROSS_EPS = 8 / 255
CROSS_SEEDS = 2
TEXTS = 100
TWO_CLASS_IMAGES = 16
CW_IMAGES = 50
SHIFTS = (-20.0, 0.0, 100.0)


def evaluation_rows(
    space: FeatureSpace, other: Encoder, task: Task, out: Path, seed: int
) -> list[Result]:
    """One evaluation with groups."""
    encoder = space.encoder
    config = EvaluationConfig(attack=AttackConfig(seed=seed))
    start = time.perf_counter()
    found = evaluate(
        task.classifier(encoder),
        task,
        out,
        config,
        space=space,
        surrogate=task.classifier(other),
        encoder=encoder.id,
    )
    seconds = time.perf_counter() - start
    rows = [_row("accuracy/clean", found.clean, found.images)]
    for attack, curve in found.accuracy.items():
        name = "worst_case" if attack == "worst case" else f"accuracy/{attack}"
        rows += [
            _row(f"{name}/{readable_eps(e).replace('/', '_')}", v, found.images)
            for e, v in curve.items()
        ]
    passed = [check.passed for check in found.checks]
    rows.append(_shares("checks/passed", np.array(passed), seed))
    rows.append(Result("seconds/evaluation", seconds, seconds, seconds, 1, "s"))
    for check in found.checks:
        if not check.passed:
            print(f"check failed: {check.name}: {check.value} over {check.threshold}")
    return rows + _group_rows(found)


def _group_rows(found: Evaluation) -> list[Result]:
    rows = []
    for group in found.groups:
        rows.append(_row(f"drift/{group.group}", group.drift, group.moved))
        rows += [_range(f"drift/{k}/{group.group}", v) for k, v in group.control_drift.items()]
        rows.append(_row(f"restricted/{group.group}", group.accuracy, found.images))
        rows += [
            _range(f"restricted/{k}/{group.group}", v) for k, v in group.control_accuracy.items()
        ]
    return rows


def defence_rows(space: FeatureSpace, task: Task, out: Path, seed: int) -> list[Result]:
    """Every defence under all that it meets at one eps."""
    encoder = space.encoder
    config = EvaluationConfig(
        attacks=("pgd", "apgd", "square"),
        eps=(4 / 255,),
        attack=AttackConfig(seed=seed),
        defences=DEFENCES,
    )
    start = time.perf_counter()
    found = evaluate(task.classifier(encoder), task, out, config, space=space, encoder=encoder.id)
    seconds = time.perf_counter() - start
    rows = [_row("worst_case/none", found.defences[0].undefended, found.images)]
    for defence in found.defences:
        rows.append(_row(f"worst_case/{defence.defence}", defence.worst, found.images))
        for kind in ("clean", "nonadaptive", "adaptive", "square"):
            name = f"defence/{defence.defence}/{kind}"
            rows.append(_row(name, getattr(defence, kind), found.images))
    rows.append(Result("seconds/defences", seconds, seconds, seconds, 1, "s"))
    return rows


class Shifted(nn.Module):
    """A model whose logits all have the same number added."""

    def __init__(self, model: nn.Module, shift: float) -> None:
        super().__init__()
        self.model, self.shift = model, shift

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model(pixels) + self.shift


def cw_rows(space: FeatureSpace, seed: int) -> list[Result]:
    """What CW leaves over what PGD leaves, L2, whatever is added to the logits."""
    linear, pixels, labels = linear_case.linear_case(CW_IMAGES, seed)
    with torch.no_grad():
        half = float(linear.nearest(pixels, "L2").median())
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
            found.append(_shares(f"cw/{case}/{shift:+g}", more, seed, "difference"))
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
        rows.append(_shares(f"analytic/{norm}", found.numpy(), seed, "ratio"))
        most = float(found.max())
        rows.append(Result(f"analytic/{norm}/largest", most, most, most, count, "ratio"))
        eps = 1.25 * nearest
        pgd = [
            not bool(correct(model, run_attack(
                model, pixels[i : i + 1], labels[i : i + 1], "pgd", float(eps[i]),
                AttackConfig(norm=norm, seed=seed)).images, labels[i : i + 1]))
            for i in range(count)
        ]  # fmt: skip
        rows.append(_shares(f"analytic/{norm}/pgd_at_1.25", np.array(pgd), seed))
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
            rows.append(_shares(f"two_classes/{norm}/{name}", right.numpy(), seed))
    return rows


def crossmodal_rows(space: FeatureSpace, other: Encoder, seed: int) -> list[Result]:
    """Success of pushing each class of features to a target text's, here and in the other
    encoder."""
    task = load_task(
        "embedded:heldout", space.encoder, label="retrieval", count=CROSS_IMAGES, seed=seed
    )
    study = CrossModalStudy(
        space, task.pixels, list(task.captions), other, eps=CROSS_EPS, seed=seed
    )
    rows = _crossmodal("clean", study.without_attack(), seed)
    for group in track((ALL, *GROUPS), "cross-modal"):
        rows += _crossmodal(group, study.run(group), seed)
    for group in GROUPS:
        found: dict[str, list[CrossModal]] = {}
        for control in track(study.controls(group, CROSS_SEEDS), f"controls of {group}"):
            found.setdefault(control.described.kind, []).append(study.run_control(control))
        for kind, runs in found.items():
            for suffix, values in (
                ("", [r.first for r in runs]),
                ("/nearer", [r.nearer for r in runs]),
                ("/nearer/transfer", [r.transferred_nearer for r in runs]),
            ):
                means = [float(value.float().mean()) for value in values]
                rows.append(_range(f"crossmodal/{kind}/{group}{suffix}", means))
    return rows


def _crossmodal(group: str, found: CrossModal, seed: int) -> list[Result]:
    shares = {
        "": found.first,
        "/nearer": found.nearer,
        "/transfer": found.transferred_first,
        "/nearer/transfer": found.transferred_nearer,
        "/matched": found.matched,
    }
    return [
        _shares(f"crossmodal/{group}{suffix}", value.numpy(), seed,
                "cosine" if suffix == "/matched" else "share")
        for suffix, value in shares.items()
    ]  # fmt: skip


def retrieval_rows(space: FeatureSpace, other: Encoder, seed: int) -> list[Result]:
    """Recall at 1 in both directions, clean and under PGD, and of texts with one word replaced."""
    encoder = space.encoder
    task = load_task("embedded:heldout", encoder, label="retrieval", count=CROSS_IMAGES, seed=seed)
    model = task.classifier(encoder)
    config = AttackConfig(seed=seed)
    eps = 4 / 255
    attacked = run_attack(model, task.pixels, task.labels, "pgd", eps, config).images
    away = text_to_image(model, task.pixels, task.labels, eps, seed=seed)
    noise = run_attack(model, task.pixels, task.labels, "noise", eps, config).images
    hits = {
        "retrieval/i2t/clean": correct(model, task.pixels, task.labels),
        "retrieval/i2t/noise": correct(model, noise, task.labels),
        "retrieval/i2t/pgd": correct(model, attacked, task.labels),
        "retrieval/t2i/clean": found_by_caption(model, task.pixels, task.pixels, task.labels),
        "retrieval/t2i/noise": found_by_caption(model, task.pixels, noise, task.labels),
        "retrieval/t2i/pgd": found_by_caption(model, task.pixels, away, task.labels),
    }
    rows = [_shares(name, value.numpy(), seed) for name, value in hits.items()]
    return rows + _text_rows(model, other, task, seed)


def _text_rows(model: ZeroShot, other: Encoder, task: Task, seed: int) -> list[Result]:
    """Of texts whose image both encoders find: those that still find it."""
    encoder = model.encoder
    images = batched(model.embed, task.pixels)
    judge = Judge(other, batched(task.classifier(other).embed, task.pixels))
    texts = list(task.captions)
    found = (encoder.encode_texts(texts) @ images.T).argmax(1).tolist()
    usable = [
        row for row, text in enumerate(texts)
        if found[row] == row and bool(judge.accepts([text], row))
    ][:TEXTS]  # fmt: skip
    words = vocabulary_of(task.captions)
    config = TextAttackConfig(seed=seed)
    kept: dict[str, list[bool]] = {"greedy": [], "random": []}
    for row in track(usable, "texts"):
        labels = label_words(task, row)
        for name, greedy in (("greedy", True), ("random", False)):
            attacked = attack_text(
                encoder, texts[row], row, images, words, config,
                labels=labels, judge=judge, greedy=greedy,
            )  # fmt: skip
            kept[name].append(not attacked.found)
    return [_shares(f"text/{name}", np.array(value), seed) for name, value in kept.items()]


def parity_rows(
    space: FeatureSpace, task: Task, peers: str | None, work: Path, seed: int
) -> list[Result]:
    """Robust accuracy of other libraries' attacks less ours, image by image."""
    if peers is None:
        return []
    few = task.first(PARITY_IMAGES)
    model = few.classifier(space.encoder)
    work.mkdir(parents=True, exist_ok=True)
    write_data(work / "data.safetensors", model, few.pixels, few.labels)
    rows, ours = [], {}
    for library, attacks in PEERS.items():
        for name in attacks:
            norm: Norm = "L2" if name.endswith("-l2") else "Linf"
            eps = PARITY_EPS[norm]
            if name not in ours:
                config = AttackConfig(norm=norm, seed=seed)
                kind = name.removesuffix("-l2")
                found = run_attack(model, few.pixels, few.labels, kind, eps, config)
                ours[name] = correct(model, found.images, few.labels).numpy()
            theirs = withstood_by_peer(
                peers, library, name, eps, work / "data.safetensors", work / "peer.json"
            )
            if theirs is None:
                continue
            difference = theirs.astype(float) - ours[name]
            rows.append(_shares(f"parity/{library}/{name}", difference, seed, "difference"))
            rows.append(_shares(f"parity/{library}/{name}/theirs", theirs, seed))
            rows.append(_shares(f"parity/{library}/{name}/ours", ours[name], seed))
    return rows


def _row(name: str, estimate: Estimate, n: int) -> Result:
    return estimate_row(name, estimate, n, "share")


def _shares(name: str, values: np.ndarray, seed: int, unit: str = "share") -> Result:
    """The mean of one value an image with its interval."""
    return mean_row(name, values.astype(float), unit, seed)


def _range(name: str, values: list[float]) -> Result:
    """The median over seeds with their range."""
    return median_row(name, values, "share")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--count", type=int, default=150, help="held-out images")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--work", type=Path, help="folder to go on in after an interruption")
    parser.add_argument("--peers", help="Python of an environment that holds the other libraries")
    arguments = parser.parse_args()
    seed = arguments.seed
    space = FeatureSpace.load("embedded", device=arguments.device)
    other = load_encoder("embedded-ssl", device=arguments.device)
    task = load_task(
        "embedded:heldout", space.encoder, label="skin_tone", count=arguments.count, seed=seed
    )
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        sections: dict[str, Callable[[], list[Result]]] = {
            "analytic": lambda: analytic_rows(seed),
            "broken": lambda: broken_rows(space, task),
            "cw": lambda: cw_rows(space, seed),
            "evaluation": lambda: evaluation_rows(space, other, task, work / "evaluation", seed),
            "defences": lambda: defence_rows(space, task, work / "defences", seed),
            "crossmodal": lambda: crossmodal_rows(space, other, seed),
            "retrieval": lambda: retrieval_rows(space, other, seed),
            "two_classes": lambda: two_class_rows(space, seed),
            "parity": lambda: parity_rows(space, task, arguments.peers, work / "parity", seed),
        }
        run_sections([sections[name] for name in arguments.only], arguments.out, seed=seed)


if __name__ == "__main__":
    main()
