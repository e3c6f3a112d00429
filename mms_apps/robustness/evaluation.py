"""An evaluation: attacks at several eps, the worst case of each image, checks, feature groups and
defences.

    run.json              what was evaluated and how; another evaluation is refused
    parts/*.safetensors   one attack at one eps each, so that a killed evaluation goes on
    robustness.json       the result (`Evaluation`)
    report.html           the same to read

What is undefined is null in the JSON.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from features.errors import UserError
from features.files import jsonable, read_json, write_json
from features.space.space import FeatureSpace
from mms_apps.robustness.attacks.registry import (
    ATTACKS,
    require_offered,
    require_size,
    single_attacks,
)
from mms_apps.robustness.checks import of_controls
from mms_apps.robustness.groups import Defence, most_moved
from mms_apps.robustness.models import (
    ZeroShot,
    correct,
    correct_clean,
    require_float32,
    require_gradients,
    require_labelled,
    undisturbed,
)
from mms_apps.robustness.results import (
    SCHEMA,
    TRANSFER,
    WORST,
    Evaluation,
    EvaluationConfig,
    GroupResult,
    image_estimate,
    worst_case,
)
from mms_apps.robustness.runner import Progress, Runner
from mms_apps.robustness.tasks import Task

RESULT = "robustness.json"
RUN = "run.json"


def evaluate(
    model: nn.Module,
    task: Task,
    out: str | Path,
    config: EvaluationConfig | None = None,
    *,
    space: FeatureSpace | None = None,
    surrogate: nn.Module | None = None,
    encoder: str = "",
    surrogate_name: str = "",
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate a model; killed, the same call goes on where it stopped.

    Args:
        model: pixels in [0, 1] -> logits.
        out: folder for parts and results.
        space: of a `ZeroShot` model's encoder, for feature groups and defences.
        surrogate: another model of the same task, for transfer.
        encoder: what to call the model.
        surrogate_name: what to call the other model.

    Raises:
        UserError: the folder holds another evaluation or cannot be made, an attack cannot be run,
            a defence needs a FeatureSpace, or a model does not fit the task (`_require_fitting`).
    """
    config = config or EvaluationConfig()
    for one in (model, *([] if surrogate is None else [surrogate])):
        _require_fitting(one, task, config)
    norm, classes = config.attack.norm, len(task.classes)
    require_offered(list(config.attacks), classes, norm)
    ran = [*config.attacks, *(["square"] if config.defences else [])]
    require_size(single_attacks(ran, classes), norm, task.pixels)
    defences = [Defence.parse(spec) for spec in config.defences]
    if defences and not isinstance(model, ZeroShot):
        raise UserError("defences act on a zero-shot model")
    grouped = [defence.spec for defence in defences if defence.kind != "squeeze"]
    if grouped and space is None:
        raise UserError(f"--defence {grouped[0]}: acts on groups of features; give a FeatureSpace")
    out = Path(out)
    _claim(out, model, task, config, space, surrogate)
    start = time.perf_counter()
    run = Runner(model, task, out, config, space, surrogate, progress)
    right = correct(model, task.pixels, task.labels).cpu()
    by_attack = {
        name: {eps: run.part(name, eps) for eps in sorted(config.eps)} for name in config.attacks
    }
    if surrogate is not None:
        by_attack[TRANSFER] = {config.middle: run.transfer()}
    withstood = {
        name: {eps: part.withstood for eps, part in parts.items()}
        for name, parts in by_attack.items()
    }
    worst = worst_case(withstood, right)
    accuracy = {
        name: {eps: image_estimate(mask, config.attack.seed) for eps, mask in masks.items()}
        for name, masks in {**withstood, WORST: worst}.items()
    }
    curves = {name: {eps: e.value for eps, e in c.items()} for name, c in accuracy.items()}
    minimal = run.minimal(worst, right)
    found = run.checks(curves, by_attack, worst, right)
    groups: list[GroupResult] = []
    moved: list[dict[str, Any]] = []
    drift_attack = next((n for n in ("pgd", *config.attacks) if _drifts(n, by_attack)), None)
    if space is not None and isinstance(model, ZeroShot) and drift_attack is not None:
        attacked = by_attack[drift_attack][config.middle].embedding
        groups, drawn, energies = run.groups(attacked)
        before = space.encode_images(run.clean_embedding)
        moved = most_moved(space, before, space.encode_images(attacked.to(space.device)))
        found.append(of_controls.against_controls(energies, [c.described for c in drawn]))
    results = run.defences(defences, by_attack, right)
    if results:
        adaptive = {d.defence: d.adaptive.value for d in results}
        found += [
            of_controls.attacked_through(
                adaptive, {d.defence: d.nonadaptive.value for d in results}
            ),
            of_controls.square_not_stronger_through(
                {d.defence: d.square.value for d in results}, adaptive
            ),
        ]
    evaluation = Evaluation(
        task=task.label,
        pairs=task.pairs,
        encoder=encoder,
        classes=list(task.classes),
        images=len(task),
        config=config,
        clean=image_estimate(right, config.attack.seed),
        accuracy=accuracy,
        minimal=minimal.tolist(),
        checks=found,
        groups=groups,
        moved=moved,
        drift_attack=drift_attack,
        defences=results,
        surrogate=None if surrogate is None else surrogate_name,
        surrogate_clean=None if surrogate is None else run.surrogate_clean(),
        left_out=_left_out(surrogate is not None, space is not None, bool(groups)),
        seconds=time.perf_counter() - start,
        shown=run.pictures(by_attack, worst, right),
    )
    write_json(out / RESULT, evaluation.record())
    return evaluation


def _require_fitting(model: nn.Module, task: Task, config: EvaluationConfig) -> None:
    """Raise UserError where a model cannot be attacked on a task: it is no module in float32 that
    gives finite logits of the task's classes, with gradients, or the task has no images."""
    if len(task) == 0:
        raise UserError(f"task {task.label}: has no images; load it from other pairs")
    require_float32(model, task.pixels)
    with undisturbed(model, config.attack.seed):
        classes = require_labelled(model, task.pixels, task.labels)
        require_gradients(model, task.pixels)
        correct_clean(model, task.pixels, task.labels)
    if classes != len(task.classes):
        raise UserError(
            f"the model gives {classes} logits an image, but the task {task.label} has "
            f"{len(task.classes)} classes; give a model of these in their order, such as "
            "task.classifier(encoder)"
        )


def _left_out(transferred: bool, has_space: bool, grouped: bool) -> list[str]:
    """Sentences about what was not done."""
    found = []
    if not transferred:
        found.append(
            "Transfer is left out: no other encoder is known to fit; --surrogate names one."
        )
    if not has_space:
        found.append(
            "Feature groups are left out: there is no FeatureSpace of this encoder; mms run makes "
            "one, and --space names it."
        )
    elif not grouped:
        found.append("Feature groups are left out: no attack by gradients was run.")
    return found


def _drifts(name: str, by_attack: Mapping[str, Any]) -> bool:
    return name in by_attack and name in ATTACKS and ATTACKS[name].gradients


def _claim(
    out: Path,
    model: nn.Module,
    task: Task,
    config: EvaluationConfig,
    space: FeatureSpace | None,
    surrogate: nn.Module | None,
) -> None:
    """Write what is evaluated, or raise UserError where the folder holds another evaluation or a
    damaged one, or cannot be made."""
    settings = {
        "schema": SCHEMA,
        "model": _fingerprint(model),
        "space": None if space is None else space.config.dictionary_fingerprint,
        "surrogate": None if surrogate is None else _fingerprint(surrogate),
        "task": task.fingerprint(),
        "config": jsonable(config),
    }
    if (out / RUN).is_file():
        earlier = read_json(out / RUN)
        changed = [name for name, value in settings.items() if earlier.get(name) != value]
        if changed:
            raise UserError(
                f"{out}: holds another evaluation ({', '.join(changed)} differ); name another "
                "folder or remove this one"
            )
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}; name another folder") from None
    write_json(out / RUN, settings)


def _fingerprint(model: nn.Module) -> str:
    """sha256 over a model's modules and state."""
    digest = hashlib.sha256(repr(model).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
