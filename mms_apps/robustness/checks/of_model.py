"""Checks of a model and of attacks that run on it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mms_apps.robustness.attacks.base import AttackConfig
from mms_apps.robustness.attacks.run import run_attack
from mms_apps.robustness.checks.base import SLACK, Check, check
from mms_apps.robustness.losses import attack_scale, input_gradients
from mms_apps.robustness.models import BATCH, batched, correct, undisturbed

REPEAT_TOLERANCE = 1e-3
"""Of logits, whose scale is that of cosines times 50 to 100; float32 in another batch order gives
1e-5."""
GRADIENT_SHARE = 0.05
HUGE_STEPS = 20


def repeatable(model: nn.Module, pixels: Tensor) -> Check:
    """Two passes over the same images agree, the second in two batches, in the mode in which the
    model is: dropout and batch statistics show up."""
    half = -(-len(pixels) // 2)
    first, second = batched(model, pixels), batched(model, pixels, half)
    return check(
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
    return check(
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
    scale = attack_scale(batched(model, pixels), labels)  # as attacks see the logits
    for images, own in zip(pixels.split(BATCH), labels.split(BATCH), strict=True):
        with undisturbed(model, 0):
            gradient = input_gradients(model, images, own, loss, scale)
        if gradient is None:
            unusable.append(torch.ones(len(images), dtype=torch.bool))
            continue
        flat = gradient.flatten(1).cpu()
        unusable.append(~torch.isfinite(flat).all(1) | (flat == 0).all(1))
    return check(
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
    return check(
        "a huge eps breaks it",
        float(correct(model, attacked.images, labels).float().mean()),
        chance,
        "With half the range of every pixel any image can be made any other, so this attack does "
        "not work: check its steps, its loss and the gradients.",
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
    return check(
        "more work never weakens an attack",
        max(accuracy[1:]) - accuracy[0],
        SLACK,
        "Longer attacks find less, which points at noise or at masked gradients: look at the other "
        "checks first.",
    )
