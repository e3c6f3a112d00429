"""Checks of the results of attacks: accuracies by eps, histories, single images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mms_apps.robustness.attacks.registry import ATTACKS
from mms_apps.robustness.checks.base import SLACK, Check, check
from mms_apps.robustness.distances import TOLERANCE, Norm, distances

FLAT = 0.05
ROUNDING_LOSS = 0.05
REPEATED = 0.02
"""Images that lie on the boundary, where float32 in another batch may say otherwise."""


def inside_bounds(worst_excess: float) -> Check:
    """Perturbations and outputs are inside eps and [0, 1], as we compute them.

    Args:
        worst_excess: as `bounds_excess` gives it, over all attacks.
    """
    return check(
        "inside eps and [0, 1]",
        worst_excess,
        1.0,
        "An attack left its eps or the pixels' range, so its figures are of another eps: mend the "
        "attack. The value is the excess over what float32 rounding explains.",
    )


def bounds_excess(clean: Tensor, adversarial: Tensor, eps: float, norm: Norm) -> float:
    """By how much images leave eps or [0, 1], in units of what float32 rounding explains."""
    if not bool(torch.isfinite(adversarial).all()):
        return math.inf
    beyond = distances(clean, adversarial, norm).max() - eps
    outside = torch.maximum(-adversarial.min(), adversarial.max() - 1)
    allowed = TOLERANCE * (1 + eps)
    return float(torch.maximum(beyond, outside).clamp(min=0) / allowed)


def never_rises(curves: Mapping[str, Mapping[float, float]]) -> Check:
    """Accuracy never rises with eps, for attacks of more than one step and for the worst case.

    FGSM is left out: one step of a larger size may overshoot (Goodfellow et al. 2015).

    Args:
        curves: accuracy by attack and eps.
    """
    rises = [0.0]
    for name, curve in curves.items():
        if name in ATTACKS and not ATTACKS[name].iterated:
            continue
        values = [curve[eps] for eps in sorted(curve)]
        rises += [after - before for before, after in itertools.pairwise(values)]
    return check(
        "accuracy never rises with eps",
        max(rises),
        SLACK,
        "A larger ball holds the smaller one, so the attack at the larger eps is too weak: give it "
        "more steps or restarts.",
    )


def ordering(curves: Mapping[str, Mapping[float, float]]) -> Check:
    """Noise >= FGSM >= PGD >= APGD >= worst case at every eps: the largest inversion.

    Args:
        curves: accuracy by attack and eps, "worst case" among them.
    """
    order = [n for n in ("noise", "fgsm", "pgd", "apgd", "worst case") if n in curves]
    inversions = [0.0]
    for weak, strong in itertools.pairwise(order):
        shared = curves[weak].keys() & curves[strong].keys()
        inversions += [curves[strong][eps] - curves[weak][eps] for eps in shared]
    return check(
        "stronger attacks are stronger",
        max(inversions),
        SLACK,
        "A weaker attack fools more images than a stronger one: the stronger is cut short or its "
        "gradients are masked.",
    )


def square_not_stronger(curves: Mapping[str, Mapping[float, float]]) -> Check:
    """Square, which sees no gradient, does not beat the best attack that does."""
    return check(
        "Square does not beat gradients",
        _beats(curves, "square"),
        SLACK,
        "An attack that sees no gradient finds more, so gradients are masked: take the worst case, "
        "and attack through a differentiable stand-in.",
    )


def transfer_not_stronger(curves: Mapping[str, Mapping[float, float]]) -> Check:
    """Images made against another model do not beat the attacks on this one."""
    return check(
        "transfer does not beat gradients",
        _beats(curves, "transfer"),
        SLACK,
        "Images made against another model fool this one more often than attacks on itself: its "
        "gradients are masked.",
    )


def _beats(curves: Mapping[str, Mapping[float, float]], name: str) -> float:
    """By how much a blind attack's accuracy is lower than that of the best with gradients."""
    seeing = [n for n in curves if (n in ATTACKS and ATTACKS[n].gradients) or n == "autoattack"]
    gains = [
        min(curves[n][eps] for n in seeing if eps in curves[n]) - accuracy
        for eps, accuracy in curves.get(name, {}).items()
        if any(eps in curves[n] for n in seeing)
    ]
    return max(gains, default=math.nan)


def flattened(history: Sequence[float]) -> Check:
    """The loss had stopped rising when the attack ended: what the last tenth of the steps added,
    over the whole rise.

    Args:
        history: the mean loss at every step.
    """
    tail = max(1, len(history) // 10)
    if len(history) < 2 or not max(history) - history[0] > 0:
        value = math.nan
    else:
        best_before = max(history[:-tail])
        value = max(0.0, max(history) - best_before) / (max(history) - history[0])
    return check(
        "the loss has flattened",
        value,
        FLAT,
        "The loss was still rising, or never rose: give the attack more steps, or check its "
        "gradients. No value means that it made no step that raised the loss.",
    )


def best_kept(lost: int, attacked: int) -> Check:
    """No image that fooled the model during an attack was lost in what the attack returned.

    Args:
        lost: images that were fooled on the way and are classified right at the end.
        attacked: all attacked images.
    """
    return check(
        "the best iterate is kept",
        lost / max(attacked, 1),
        0.0,
        "The attack returns its last iterate although an earlier one fooled the model: keep the "
        "best.",
    )


def per_sample_worst(
    worst: Mapping[float, Tensor], of_images: Mapping[float, Sequence[Tensor]]
) -> Check:
    """The worst case says of each image what the model says of its adversarial images: the share on
    which it does not.

    Args:
        worst: the reported worst case: whether each image withstands all attacks, by eps, `[n]`
            bool.
        of_images: by eps, whether a model is right on the first images and on the adversarial ones
            that were kept of each attack, `[kept]` bool each.
    """
    differing, total = 0, 0
    for eps, masks in of_images.items():
        withstood = torch.stack(list(masks)).all(0)
        differing += int((withstood != worst[eps][: len(withstood)]).sum())
        total += len(withstood)
    return check(
        "worst case image by image",
        differing / max(total, 1),
        REPEATED,
        "Asked again about the adversarial images, the model is fooled by others than the worst "
        "case says: take the worst of all attacks for each image, and no mean over them.",
    )


def survives_rounding(before: float, after: float) -> Check:
    """Rounded to 8 bits, as a file holds it, an adversarial image still fools the model.

    Args:
        before: worst-case accuracy at the largest eps.
        after: the same with every adversarial image rounded.
    """
    return check(
        "still adversarial in 8 bits",
        after - before,
        ROUNDING_LOSS,
        "Part of the attack lives below one step of an 8-bit image, which a saved picture does not "
        "keep: report the rounded figures, or take a larger eps.",
    )
