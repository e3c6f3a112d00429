"""Checks of an evaluation: a result that fails one is not to be relied on.

After Carlini et al. 2019 (arXiv 1902.06705), Athalye et al. 2018 (arXiv 1802.00420), Pintor et al.
2022 (arXiv 2106.09947) and the flags of AutoAttack. Accuracies and shares are in [0, 1].
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mms_apps.robustness.attacks import ATTACKS, AttackConfig, run_attack
from mms_apps.robustness.distances import TOLERANCE, Norm, distances
from mms_apps.robustness.losses import input_gradients
from mms_apps.robustness.models import BATCH, batched, correct, undisturbed
from mms_apps.robustness.nearest import minimal_eps

SLACK = 0.01
"""One image in a hundred: by so much accuracies may differ the wrong way by the luck of a start."""
REPEAT_TOLERANCE = 1e-3
"""Of logits, whose scale is that of cosines times 50 to 100; float32 in another batch order gives
1e-5."""
GRADIENT_SHARE = 0.05
FLAT = 0.05
NEAREST_RATIO = 1.25
ROUNDING_LOSS = 0.05
ENERGY_MISMATCH = 0.1
MIN_CONTROL_SEEDS = 5
HUGE_STEPS = 20


@dataclass(frozen=True)
class Check:
    """One check."""

    name: str
    passed: bool
    value: float | None
    """None where it could not be measured."""
    threshold: float
    """What the value may be at most."""
    advice: str
    """What it means, and what to do if it failed."""


CONTROL_KINDS = ("size", "energy", "pca")
"""Random features of the same number, of the same activation energy; principal components of the
same number as the group has active features an image."""


@dataclass(frozen=True)
class ControlGroup:
    """What stands beside a group."""

    group: str
    kind: str
    seed: int
    energy: float
    """Sum of the members' mean squared activations; for pca the rank."""


def _check(name: str, value: float, threshold: float, advice: str) -> Check:
    """A check that passes up to the threshold; what cannot be measured fails."""
    known = math.isfinite(value)
    passed = known and value <= threshold + 1e-9
    return Check(name, passed, float(value) if known else None, threshold, advice)


def inside_bounds(worst_excess: float) -> Check:
    """Perturbations and outputs are inside eps and [0, 1], as we compute them.

    Args:
        worst_excess: as `bounds_excess` gives it, over all attacks.
    """
    return _check(
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


def repeatable(model: nn.Module, pixels: Tensor) -> Check:
    """Two passes over the same images agree, the second in two batches, in the mode in which the
    model is: dropout and batch statistics show up."""
    half = -(-len(pixels) // 2)
    first, second = batched(model, pixels), batched(model, pixels, half)
    return _check(
        "repeated passes agree",
        float((first - second).abs().max()),
        REPEAT_TOLERANCE,
        "The model is random, so single gradients mislead: put it into eval mode, or average "
        "gradients over its randomness.",
    )


def gives_logits(model: nn.Module, pixels: Tensor) -> Check:
    """The outputs are logits, not probabilities: the share of rows that are in [0, 1] and sum to
    one."""
    outputs = batched(model, pixels)
    positive = (outputs >= 0).all(1) & (outputs <= 1).all(1)
    one = (outputs.sum(1) - 1).abs() < 1e-4
    return _check(
        "outputs are logits",
        float((positive & one).float().mean()),
        0.0,
        "The model ends in a softmax, which makes gradients vanish: give logits.",
    )


def gradients(model: nn.Module, pixels: Tensor, labels: Tensor, loss: str) -> Check:
    """The share of images whose gradient is zero, NaN or infinite.

    Args:
        loss: "cross-entropy" or "margin".
    """
    unusable = []
    for images, own in zip(pixels.split(BATCH), labels.split(BATCH), strict=True):
        with undisturbed(model, 0):
            gradient = input_gradients(model, images, own, loss)
        if gradient is None:
            unusable.append(torch.ones(len(images), dtype=torch.bool))
            continue
        flat = gradient.flatten(1).cpu()
        unusable.append(~torch.isfinite(flat).all(1) | (flat == 0).all(1))
    return _check(
        f"gradients of the {loss}",
        float(torch.cat(unusable).float().mean()),
        GRADIENT_SHARE,
        "Gradients vanish or break for these images, so gradient attacks find nothing there and "
        "the model only looks robust: attack through a differentiable stand-in (straight-through), "
        "use the margin, or trust Square and transfer.",
    )


def huge_eps(
    model: nn.Module, pixels: Tensor, labels: Tensor, config: AttackConfig, chance: float
) -> Check:
    """PGD with an eps of half the pixels' range brings accuracy to chance or below."""
    eps = 0.5 if config.norm == "Linf" else 0.5 * math.sqrt(pixels[0].numel())
    short = AttackConfig(
        norm=config.norm, pgd_steps=min(config.pgd_steps, HUGE_STEPS), seed=config.seed
    )
    attacked = run_attack(model, pixels, labels, "pgd", eps, short)
    return _check(
        "a huge eps breaks it",
        float(correct(model, attacked.images, labels).float().mean()),
        chance,
        "With half the range of every pixel any image can be made any other, so this attack does "
        "not work: check its steps, its loss and the gradients.",
    )


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
    return _check(
        "accuracy never rises with eps",
        max(rises),
        SLACK,
        "A larger ball holds the smaller one, so the attack at the larger eps is too weak: give it "
        "more steps or restarts.",
    )


def more_work(
    model: nn.Module, pixels: Tensor, labels: Tensor, eps: float, config: AttackConfig
) -> Check:
    """Twice the steps, and a second start, never weaken PGD."""
    short = AttackConfig(norm=config.norm, pgd_steps=config.pgd_steps, seed=config.seed)
    longer = AttackConfig(norm=config.norm, pgd_steps=2 * config.pgd_steps, seed=config.seed)
    twice = AttackConfig(norm=config.norm, pgd_steps=config.pgd_steps, restarts=2, seed=config.seed)
    accuracy = [
        float(
            correct(model, run_attack(model, pixels, labels, "pgd", eps, c).images, labels)
            .float()
            .mean()
        )
        for c in (short, longer, twice)
    ]
    return _check(
        "more work never weakens an attack",
        max(accuracy[1:]) - accuracy[0],
        SLACK,
        "Longer attacks find less, which points at noise or at masked gradients: look at the other "
        "checks first.",
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
    return _check(
        "stronger attacks are stronger",
        max(inversions),
        SLACK,
        "A weaker attack fools more images than a stronger one: the stronger is cut short or its "
        "gradients are masked.",
    )


def square_not_stronger(curves: Mapping[str, Mapping[float, float]]) -> Check:
    """Square, which sees no gradient, does not beat the best attack that does."""
    return _check(
        "Square does not beat gradients",
        _beats(curves, "square"),
        SLACK,
        "An attack that sees no gradient finds more, so gradients are masked: take the worst case, "
        "and attack through a differentiable stand-in.",
    )


def transfer_not_stronger(curves: Mapping[str, Mapping[float, float]]) -> Check:
    """Images made against another model do not beat the attacks on this one."""
    return _check(
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
    return _check(
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
    return _check(
        "the best iterate is kept",
        lost / max(attacked, 1),
        0.0,
        "The attack returns its last iterate although an earlier one fooled the model: keep the "
        "best.",
    )


def per_sample_worst(
    worst: Mapping[float, Tensor], by_attack: Mapping[str, Mapping[float, Tensor]]
) -> Check:
    """The worst case is taken image by image over all attacks, and is no mean: the share of images
    on which it differs from that.

    Args:
        worst: whether each image withstands all attacks, by eps, `[n]` bool.
        by_attack: whether it withstands one, by attack and eps.
    """
    differing, total = 0, 0
    for eps, withstood in worst.items():
        every = torch.stack([masks[eps] for masks in by_attack.values() if eps in masks]).all(0)
        differing += int((every != withstood).sum())
        total += len(withstood)
    return _check(
        "worst case image by image",
        differing / max(total, 1),
        0.0,
        "Means over attacks hide images that one of them fools: take the worst for each image.",
    )


def survives_rounding(before: float, after: float) -> Check:
    """Rounded to 8 bits, as a file holds it, an adversarial image still fools the model.

    Args:
        before: worst-case accuracy at the largest eps.
        after: the same with every adversarial image rounded.
    """
    return _check(
        "still adversarial in 8 bits",
        after - before,
        ROUNDING_LOSS,
        "Part of the attack lives below one step of an 8-bit image, which a saved picture does not "
        "keep: report the rounded figures, or take a larger eps.",
    )


class LinearModel(nn.Module):
    """Two classes and logits linear in the pixels, whose nearest adversarial is known."""

    def __init__(self, weight: Tensor, bias: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)  # [3, height, width]
        self.bias = nn.Parameter(torch.tensor(bias))

    def forward(self, pixels: Tensor) -> Tensor:
        value = (pixels * self.weight).flatten(1).sum(1) + self.bias  # [n]
        return torch.stack([-value, value], dim=1)

    def nearest(self, pixels: Tensor, norm: Norm) -> Tensor:
        """Distance of each image to the boundary where no pixel meets 0 or 1: `[n]`."""
        dual = self.weight.abs().sum() if norm == "Linf" else self.weight.norm()
        return ((pixels * self.weight).flatten(1).sum(1) + self.bias).abs() / dual


def linear_case(count: int, seed: int) -> tuple[LinearModel, Tensor, Tensor]:
    """A linear model with images near its boundary, and what it predicts for them."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 8, 8, generator=generator)
    pixels = 0.5 + 0.05 * torch.randn(count, 3, 8, 8, generator=generator).clamp(-2, 2)
    model = LinearModel(weight, float(-0.5 * weight.sum()))
    with torch.no_grad():
        return model, pixels, model(pixels).argmax(1)


def analytic(norm: Norm, seed: int = 0, count: int = 16) -> Check:
    """On a linear model, PGD at 1.25 times the known distance fools every image, and the search for
    the smallest eps ends within 1.25 times it: the largest ratio of the two."""
    model, pixels, labels = linear_case(count, seed)
    with torch.no_grad():
        nearest = model.nearest(pixels, norm)
    found = minimal_eps(model, pixels, labels, norm=norm, high=0.5 if norm == "Linf" else 5.0)
    ratios = [float((found / nearest).max())]
    config = AttackConfig(norm=norm, seed=seed)
    for image in range(count):
        eps = NEAREST_RATIO * float(nearest[image])
        one = slice(image, image + 1)
        attacked = run_attack(model, pixels[one], labels[one], "pgd", eps, config)
        if bool(correct(model, attacked.images, labels[one])):
            ratios.append(math.inf)
    return _check(
        "a known nearest adversarial is found",
        max(ratios),
        NEAREST_RATIO,
        "The attack misses an adversarial image that is known to be there: it is not to be used.",
    )


def attacked_through(adaptive: Mapping[str, float], nonadaptive: Mapping[str, float]) -> Check:
    """Every defence was attacked through itself too, and no worse than without: by how much the
    adaptive accuracy is above the non-adaptive one.

    Args:
        adaptive: accuracy by defence, attacked through it.
        nonadaptive: accuracy by defence under images made against the undefended model.
    """
    gaps = [adaptive.get(name, math.nan) - nonadaptive[name] for name in nonadaptive]
    worst = max((math.inf if math.isnan(gap) else gap for gap in gaps), default=math.nan)
    return _check(
        "defences are attacked through themselves",
        worst,
        SLACK,
        "Images made without knowing the defence hurt it more than those that know it, or those "
        "are missing: gradients through it are masked, so attack through a differentiable "
        "stand-in.",
    )


def against_controls(group_energy: Mapping[str, float], controls: Iterable[ControlGroup]) -> Check:
    """Every group stands beside random groups of its size, random groups of its energy and PCA of
    its rank, five seeds each: the largest relative error of the matched energy.

    Args:
        group_energy: by group.
        controls: all of them.
    """
    kinds: dict[tuple[str, str], list[float]] = {}
    for control in controls:
        kinds.setdefault((control.group, control.kind), []).append(control.energy)
    worst = 0.0
    for group, energy in group_energy.items():
        for kind in CONTROL_KINDS:
            drawn = kinds.get((group, kind), [])
            if len(drawn) < MIN_CONTROL_SEEDS:
                worst = math.inf
            elif kind == "energy" and energy > 0:
                worst = max(worst, *(abs(e - energy) / energy for e in drawn))
    return _check(
        "groups stand beside controls",
        worst,
        ENERGY_MISMATCH,
        "Without controls of the same size, energy and rank, what a group does may be what any "
        "group does: run them over at least five seeds.",
    )


def all_passed(checks: Iterable[Check]) -> bool:
    """Whether a result may be relied on."""
    return all(check.passed for check in checks)
