"""Image-text retrieval under attack, in both directions.

Image to text is `models.ZeroShot` over the gallery's captions, which torchattacks can take. Text to
image has another loss: the attacked image must not be found by its own caption any more, while the
rest of the gallery stays clean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mms_apps.robustness.distances import Norm
from mms_apps.robustness.models import BATCH, ZeroShot, batched
from mms_apps.robustness.projected_gradient import climb


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
) -> Tensor:
    """Turn each image away from its own caption: images `[n, 3, height, width]` within eps.

    Args:
        model: whose `vectors` are the captions.
        pixels: float32, in [0, 1].
        labels: the caption of each image, `[n]`.

    Raises:
        UserError: something is not float32.
    """

    def away(images: Tensor, captions: Tensor) -> Tensor:
        return -(model.embed(images) * captions).sum(1)

    return climb(
        model,
        away,
        pixels,
        model.vectors[labels],
        eps,
        norm=norm,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
    )


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
