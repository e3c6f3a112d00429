"""Image-text retrieval under attack, in both directions.

Image to text is `models.ZeroShot` over the gallery's captions, which torchattacks can take: any of
an image's captions counts. Text to image has another loss: the attacked image must not be found by
its own captions any more, while the images of other captions stay clean.
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
    eps: float | str,
    *,
    norm: Norm = "Linf",
    steps: int = 40,
    batch_size: int = BATCH,
    seed: int = 0,
) -> Tensor:
    """Turn each image away from the nearest of its own captions: images `[n, 3, height, width]`
    within eps.

    Args:
        model: whose classes are the images' captions (`Task.classifier`).
        pixels: float32, in [0, 1].
        labels: the class of each image, `[n]`.

    Raises:
        UserError: something is not float32, or eps is none.
    """
    own = model.vectors[model.texts_of[labels]]  # [n, captions, dim]

    def away(images: Tensor, captions: Tensor) -> Tensor:
        return -(captions @ model.embed(images)[:, :, None]).squeeze(2).amax(1)

    return climb(
        model,
        away,
        pixels,
        own,
        eps,
        norm=norm,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
    )


def found_by_caption(model: ZeroShot, clean: Tensor, attacked: Tensor, labels: Tensor) -> Tensor:
    """Whether each caption still finds one of its attacked images first, among the clean images of
    other captions: `[captions]` bool, in the order of `model.vectors`, without captions of none of
    the images.

    Args:
        clean: images `[n, 3, height, width]`.
        attacked: the same images, attacked.
        labels: the class of each image, `[n]`.
    """
    own = torch.zeros(len(model.vectors), len(labels), dtype=torch.bool, device=labels.device)
    images = torch.arange(len(labels), device=labels.device)[:, None]
    own[model.texts_of[labels], images] = True  # [captions, n]
    asked = own.any(1)
    captions, own = model.vectors[asked], own[asked]
    found = captions @ batched(model.embed, attacked).T  # [captions, n]
    others = captions @ batched(model.embed, clean).T
    best_own = found.masked_fill(~own, -torch.inf).amax(1)
    return best_own > others.masked_fill(own, -torch.inf).amax(1)
