"""How near the nearest adversarial of each image is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mms_apps.robustness.distances import Norm, distances, read_norm
from mms_apps.robustness.losses import margin
from mms_apps.robustness.models import (
    BATCH,
    Progress,
    correct_clean,
    require_float32,
    require_gradients,
    require_labelled,
    undisturbed,
)
from mms_apps.robustness.projected_gradient import pgd

LINE_HALVINGS = 8


def minimal_eps(
    model: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    *,
    low: Tensor | float = 0.0,
    high: Tensor | float = 1.0,
    norm: Norm = "Linf",
    steps: int = 40,
    halvings: int = 6,
    batch_size: int = BATCH,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """The smallest eps at which each image could be made adversarial: `[n]`; 0 where the
    prediction is wrong from the start, infinite where nothing was found.

    It halves the span between an eps that fails and one that works, with PGD on the margin; what
    PGD finds is drawn back towards the clean image as far as it still fools the model.

    Args:
        model: pixels in [0, 1] -> logits.
        pixels: float32 `[n, 3, height, width]`.
        labels: `[n]`.
        low: an eps that is known to fail, or one for each image, `[n]`.
        high: where the search begins; infinite for images to leave out.
        halvings: the span is left this many times smaller by halves.

    Raises:
        UserError: something is not float32, the pixels are not in [0, 1], the labels no classes,
            the norm is unknown, or the model gives no gradients or logits that are not finite.
    """
    norm = read_norm(norm)
    require_float32(model, pixels)
    found = torch.full((len(pixels),), torch.inf, device=pixels.device)
    lows, highs = (
        torch.as_tensor(bound, dtype=torch.float32, device=pixels.device).expand(len(pixels))
        for bound in (low, high)
    )
    with undisturbed(model, seed):
        require_labelled(model, pixels, labels)
        require_gradients(model, pixels)
        right = correct_clean(model, pixels, labels, batch_size)
        found[~right] = 0
        todo = (right & highs.isfinite()).nonzero().squeeze(1)
        batches = todo.split(batch_size) if len(todo) else ()
        for number, rows in enumerate(batches):
            found[rows] = _searched(
                model, pixels[rows], labels[rows], lows[rows], highs[rows], norm, steps, halvings
            )
            if progress is not None:
                progress((number + 1) / len(batches))
    return found


def _searched(
    model: nn.Module,
    clean: Tensor,
    labels: Tensor,
    low: Tensor,
    high: Tensor,
    norm: Norm,
    steps: int,
    halvings: int,
) -> Tensor:
    """The smallest eps of images that are classified right: `[n]`."""
    least = torch.full_like(high, torch.inf)
    eps = high
    for _ in range(halvings + 1):
        ascent = pgd(lambda x: margin(model(x), labels), clean, eps, norm=norm, steps=steps)
        fooled = ascent.loss > 0
        reached = distances(clean, _drawn_back(model, labels, clean, ascent.images), norm)
        least = torch.where(fooled, torch.minimum(least, reached), least)
        high = torch.where(fooled, torch.minimum(reached, eps), high)
        low = torch.where(fooled, low, eps)
        eps = torch.where(least.isfinite(), (low + high) / 2, eps)
    return least


@torch.no_grad()
def _drawn_back(model: nn.Module, labels: Tensor, clean: Tensor, adversarial: Tensor) -> Tensor:
    """Adversarial images moved straight towards the clean ones as far as they stay adversarial."""
    shape = (-1, 1, 1, 1)
    fails, works = torch.zeros(len(clean), device=clean.device), torch.ones_like(clean[:, 0, 0, 0])
    for _ in range(LINE_HALVINGS):
        middle = (fails + works) / 2
        images = clean + middle.view(shape) * (adversarial - clean)
        fooled = margin(model(images), labels) > 0
        fails, works = torch.where(fooled, fails, middle), torch.where(fooled, middle, works)
    return clean + works.view(shape) * (adversarial - clean)
