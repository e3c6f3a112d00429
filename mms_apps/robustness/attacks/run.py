"""Running an attack on the images that are classified right."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Callable

import torch
from torch import Tensor, nn

from features.errors import UserError
from features.extras import require
from mms_apps.robustness.attacks.attempts import Attempts
from mms_apps.robustness.attacks.base import AttackConfig, Attacked
from mms_apps.robustness.attacks.registry import (
    ATTACKS,
    AUTOATTACK,
    AUTOATTACK_QUERIES,
    parts,
    require_offered,
    require_size,
)
from mms_apps.robustness.distances import read_eps, within
from mms_apps.robustness.models import (
    Progress,
    correct,
    correct_clean,
    require_float32,
    require_gradients,
    require_labelled,
    undisturbed,
)


def run_attack(
    model: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    name: str,
    eps: float | str,
    config: AttackConfig,
    *,
    progress: Progress | None = None,
) -> Attacked:
    """Attack every image that is classified right.

    Args:
        model: pixels in [0, 1] -> logits `[n, classes]`.
        pixels: float32, `[n, 3, height, width]`.
        labels: `[n]` int64.
        name: of ATTACKS, or autoattack.
        eps: the radius, in pixel values of [0, 1]; also as text, such as 4/255.

    Raises:
        UserError: the attack cannot be run on so many classes, eps is none (`read_eps`), or
            something is not float32, the pixels are not in [0, 1] or of a size that the attack does
            not take, the labels no classes, logits not finite, or the attack needs gradients and
            the model gives none.
    """
    require("robustness")
    if not isinstance(config, AttackConfig):
        raise UserError(f"config {config!r}: give an AttackConfig")
    eps = read_eps(eps, config.norm)
    require_float32(model, pixels)
    pixels = pixels.detach()
    found = pixels.clone()
    fooled = torch.zeros(len(pixels), dtype=torch.bool, device=pixels.device)
    history: list[float] = []
    with undisturbed(model, config.seed):
        classes = require_labelled(model, pixels, labels)
        require_offered([name], classes, config.norm)
        require_size(parts(name, classes), config.norm, pixels)
        if any(ATTACKS[part].gradients for part in parts(name, classes)):
            require_gradients(model, pixels)
        clean_right = correct_clean(model, pixels, labels, config.batch_size)
        starts = range(0, len(pixels), config.batch_size)
        steps = [(start, part) for start in starts for part in parts(name, classes)]
        for number, (start, part) in enumerate(steps):
            rows = slice(start, start + config.batch_size)
            first = part == parts(name, classes)[0]
            right = clean_right[rows] if first else correct(model, found[rows], labels[rows])
            todo = start + right.nonzero().squeeze(1)  # [still right]
            if len(todo):
                own = config
                if name == AUTOATTACK:
                    queries = max(config.queries, AUTOATTACK_QUERIES)
                    own = dataclasses.replace(config, queries=queries)
                expected = ATTACKS[part].passes(own)

                def passed(passes: int, number: int = number, expected: int = expected) -> None:
                    if progress is not None:
                        progress((number + min(1.0, passes / max(expected, 1))) / len(steps))

                one = _run_one(model, pixels[todo], labels[todo], part, eps, own, passed)
                found[todo], fooled[todo] = one.images, one.fooled
                if start == 0:
                    history += one.history
            if progress is not None:
                progress((number + 1) / len(steps))
    return Attacked(found, history, fooled)


def _run_one(
    model: nn.Module,
    clean: Tensor,
    labels: Tensor,
    part: str,
    eps: float,
    config: AttackConfig,
    passed: Callable[[int], None],
) -> Attacked:
    """One single attack on one batch."""
    kind = ATTACKS[part]
    attempts = Attempts(model, clean, labels, eps, config.norm, passed)
    with contextlib.redirect_stdout(io.StringIO()):  # torchattacks prints
        images = kind.run(attempts, clean, labels, eps, config).detach()
    with torch.no_grad():
        logits = model(images)
    attempts.note(images, attempts.scale * logits)
    if kind.keeps_last:
        images = attempts.best
    elif kind.nearest:
        near = within(clean, images, eps, config.norm)
        images = torch.where(near.view(-1, 1, 1, 1), images, clean)
    history = attempts.history if kind.gradients else []
    return Attacked(images, history, attempts.fooled)
