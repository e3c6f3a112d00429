"""Text-controlled image generation by edits of features.

steering = Steering(as_edits(choose(space, "more woman, less moustache")))
images = pipe(**steering.inputs(space, pipe, image=photo)).images

Names are loaded when they are first used, so that the command line stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mms_apps.steering.choosing import Choice, as_edits, between, choose
    from mms_apps.steering.edits import Blend, Edit, Steered, Steering
    from mms_apps.steering.generator import Generated, SteeredGenerator

__all__ = [
    "Blend",
    "Choice",
    "Edit",
    "Generated",
    "Steered",
    "SteeredGenerator",
    "Steering",
    "as_edits",
    "between",
    "choose",
]

_MODULES = {
    "Blend": "edits",
    "Choice": "choosing",
    "Edit": "edits",
    "Generated": "generator",
    "Steered": "edits",
    "SteeredGenerator": "generator",
    "Steering": "edits",
    "as_edits": "choosing",
    "between": "choosing",
    "choose": "choosing",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'mms_apps.steering' has no attribute {name!r}")
    return getattr(import_module(f"mms_apps.steering.{_MODULES[name]}"), name)
