"""Image-text retrieval under attack, in both directions.

Image to text is `models.ZeroShot` over the gallery's captions, which torchattacks can take. Text to
image has another loss: the attacked image must not be found by its own caption any more, while the
rest of the gallery stays clean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mms_apps.robustness.ascent import Progress, pgd
from mms_apps.robustness.distances import Norm
from mms_apps.robustness.models import BATCH, ZeroShot, batched, require_float32, undisturbed


def text_to_image(
    model: ZeroShot,
    pixels: Tensor,
    labels: Tensor,
    eps: float,
    *,
    norm: Norm = "Linf",
    steps: int = 40,
    batch_size: int = BATCH,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """Turn each image away from its own caption: images `[n, 3, height, width]` within eps.

    Args:
        model: whose `vectors` are the captions.
        pixels: float32, in [0, 1].
        labels: the caption of each image, `[n]`.

    Raises:
        UserError: something is not float32.
    """
    require_float32(model, pixels)
    found = []
    total = -(-len(pixels) // batch_size)
    with undisturbed(model, seed):
        for number, rows in enumerate(torch.arange(len(pixels)).split(batch_size)):
            captions = model.vectors[labels[rows]]

            def away(images: Tensor, captions: Tensor = captions) -> Tensor:
                return -(model.embed(images) * captions).sum(1)

            ascent = pgd(away, pixels[rows], eps, norm=norm, steps=steps, seed=seed)
            found.append(ascent.images)
            if progress is not None:
                progress((number + 1) / total)
    return torch.cat(found)


def found_by_caption(model: ZeroShot, clean: Tensor, attacked: Tensor, labels: Tensor) -> Tensor:
    """Whether each caption still finds its attacked image first, among the clean others: `[n]`
    bool.

    Args:
        clean: images `[n, 3, height, width]`.
        attacked: the same images, attacked.
        labels: the caption of each image, `[n]`.
    """
    captions = model.vectors[labels]  # [n, dim]
    gallery = captions @ batched(model.embed, clean).T  # [n, n]
    own = (captions * batched(model.embed, attacked)).sum(1)
    others = gallery.fill_diagonal_(-torch.inf)
    return own > others.amax(1)
