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

Intervals are bootstrapped over images; those of a control's drift and restricted accuracy are the
range over seeds, of its cross-modal attacks each image counts with its mean over them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.progress import track

from benchmarks.common import (
    Result,
    estimate_row,
    median_row,
    options,
    run_sections,
)
from benchmarks.robustness_attacks import (
    PARITY_EPS,
    analytic_rows,
    broken_rows,
    cw_rows,
    share_row,
    two_class_rows,
)
from benchmarks.robustness_peers import PEERS, withstood_by_peer, write_data
from features.bootstrap import Estimate
from features.encoders.encoder import Encoder
from features.encoders.load import load_encoder
from features.space.space import FeatureSpace
from mms_apps.robustness.attacks.base import AttackConfig
from mms_apps.robustness.attacks.run import run_attack
from mms_apps.robustness.crossmodal import ALL, CrossModal, CrossModalStudy
from mms_apps.robustness.distances import Norm, readable_eps
from mms_apps.robustness.evaluation import evaluate
from mms_apps.robustness.groups import GROUPS
from mms_apps.robustness.label_words import label_words
from mms_apps.robustness.models import ZeroShot, batched, correct
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
PARITY_IMAGES = 150
CROSS_IMAGES = 120
CROSS_EPS = 8 / 255
CROSS_SEEDS = 3
TEXTS = 100


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
    rows.append(share_row("checks/passed", np.array(passed), seed))
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
                shares = np.mean([value.numpy() for value in values], axis=0)  # [images]
                always = np.isin(shares, (0, 1)).all()  # in every draw or in none: counts, as hits
                rows.append(
                    share_row(
                        f"crossmodal/{kind}/{group}{suffix}",
                        shares.astype(bool) if always else shares,
                        seed,
                    )
                )
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
        share_row(f"crossmodal/{group}{suffix}", value.numpy(), seed,
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
    rows = [share_row(name, value.numpy(), seed) for name, value in hits.items()]
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
    return [share_row(f"text/{name}", np.array(value), seed) for name, value in kept.items()]


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
            rows.append(share_row(f"parity/{library}/{name}", difference, seed, "difference"))
            rows.append(share_row(f"parity/{library}/{name}/theirs", theirs, seed))
            rows.append(share_row(f"parity/{library}/{name}/ours", ours[name], seed))
    return rows


def _row(name: str, estimate: Estimate, n: int) -> Result:
    return estimate_row(name, estimate, n, "share")


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
