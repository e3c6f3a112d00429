"""Adversarial checks that can be believed, by feature group.

Names are loaded when they are first used, so that `mms --help` stays fast.

    space = FeatureSpace.load("embedded")
    task = load_task("embedded:heldout", space.encoder, label="gender")
    found = evaluate(task.classifier(space.encoder), task, "runs/robustness")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mms_apps.robustness.attacks.base import AttackConfig
    from mms_apps.robustness.attacks.run import run_attack
    from mms_apps.robustness.checks.base import Check
    from mms_apps.robustness.evaluation import evaluate
    from mms_apps.robustness.groups import GroupEdit, PcaEdit
    from mms_apps.robustness.models import ZeroShot
    from mms_apps.robustness.nearest_adversarial import minimal_eps
    from mms_apps.robustness.projected_gradient import pgd
    from mms_apps.robustness.results import EvaluationConfig
    from mms_apps.robustness.tasks import Task, load_task

__all__ = [
    "AttackConfig",
    "Check",
    "EvaluationConfig",
    "GroupEdit",
    "PcaEdit",
    "Task",
    "ZeroShot",
    "evaluate",
    "load_task",
    "minimal_eps",
    "pgd",
    "run_attack",
]

_MODULES = {
    "AttackConfig": "attacks.base",
    "Check": "checks.base",
    "EvaluationConfig": "results",
    "GroupEdit": "groups",
    "PcaEdit": "groups",
    "Task": "tasks",
    "ZeroShot": "models",
    "evaluate": "evaluation",
    "load_task": "tasks",
    "minimal_eps": "nearest_adversarial",
    "pgd": "projected_gradient",
    "run_attack": "attacks.run",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
