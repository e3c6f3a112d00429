"""Losses of logits, one value an image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """`[n]`, of logits `[n, classes]`."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The best wrong logit over the right one, positive where the prediction is wrong: `[n]`."""
    own = F.one_hot(labels, logits.shape[1]).bool()
    right = logits.gather(1, labels[:, None]).squeeze(1)
    return logits.masked_fill(own, -torch.inf).amax(1) - right


def input_gradients(
    model: torch.nn.Module, pixels: Tensor, labels: Tensor, loss: str
) -> Tensor | None:
    """Each image's gradient of its own loss, of pixels `[n, 3, height, width]`: of that shape.

    None where the output does not hang on the pixels by any path that can be differentiated.

    Args:
        loss: "cross-entropy" or "margin".
    """
    measure = cross_entropy if loss == "cross-entropy" else margin
    with torch.enable_grad():
        inputs = pixels.detach().clone().requires_grad_()
        total = measure(model(inputs), labels).sum()
        if not total.requires_grad:
            return None
        [gradient] = torch.autograd.grad(total, inputs, allow_unused=True)
    return gradient
