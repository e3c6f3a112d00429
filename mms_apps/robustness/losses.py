"""Losses of logits, one value an image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MARGIN = 10.0
"""Of the median image while logits are attacked: about what CLIP's own scale gives."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """`[n]`, of logits `[n, classes]`."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The best wrong logit over the right one, positive where the prediction is wrong: `[n]`."""
    own = F.one_hot(labels, logits.shape[1]).bool()
    right = logits.gather(1, labels[:, None]).squeeze(1)
    return logits.masked_fill(own, -torch.inf).amax(1) - right


def attack_scale(logits: Tensor, labels: Tensor) -> float:
    """What logits `[n, classes]` are multiplied by while they are attacked: the median margin of
    the images that are classified right becomes MARGIN.

    Predictions don't hang on the scale of the logits, but the cross-entropy does: its gradient
    vanishes where they are large and spreads over all classes where they are small.
    """
    margins = -margin(logits, labels)
    margins = margins[margins > 0]
    median = float(margins.median()) if len(margins) else 0.0
    return MARGIN / median if 0 < median < math.inf else 1.0


def input_gradients(
    model: torch.nn.Module, pixels: Tensor, labels: Tensor, loss: str, scale: float = 1.0
) -> Tensor | None:
    """Each image's gradient of its own loss, of pixels `[n, 3, height, width]`: of that shape.

    None where the output does not hang on the pixels by any path that can be differentiated.

    Args:
        loss: "cross-entropy" or "margin".
        scale: what the logits are multiplied by.
    """
    measure = cross_entropy if loss == "cross-entropy" else margin
    with torch.enable_grad():
        inputs = pixels.detach().clone().requires_grad_()
        total = measure(scale * model(inputs), labels).sum()
        if not total.requires_grad:
            return None
        [gradient] = torch.autograd.grad(total, inputs, allow_unused=True)
    return gradient
