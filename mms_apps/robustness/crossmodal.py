"""Cross-modal adversarial images: an image whose features of a class are pushed to a text's.

After the case study of Yan et al. 2025 (arXiv 2502.14888). The text's activations of the class,
decoded, give a direction in the space of embeddings; the attack turns the image's embedding, less
the images' mean, towards it within eps. Through the direction rather than the activations, since
an inactive feature of a sparse code passes no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from features.encoders.encoder import Encoder
from features.space.space import FeatureSpace
from mms_apps.robustness.distances import Norm
from mms_apps.robustness.groups import GROUPS, Control, controls
from mms_apps.robustness.models import BATCH, ResizedTo, ZeroShot, batched, image_size
from mms_apps.robustness.projected_gradient import climb

ALL = "all"
"""Every feature of the target text."""


@dataclass(frozen=True)
class CrossModal:
    """How one group's attack went, one value an image."""

    images: Tensor
    """`[n, 3, height, width]`"""
    matched: Tensor
    """Cosine of the image's activations of the group and the target text's, over the group's
    features: `[n]`; without meaning for a control that is no group of features (NaN)."""
    first: Tensor
    """Whether the target text is the nearest of all candidates: `[n]` bool."""
    nearer: Tensor
    """Whether the target text is nearer than the image's own: `[n]` bool."""
    transferred_first: Tensor
    """`first` in the other encoder."""
    transferred_nearer: Tensor
    """`nearer` in the other encoder."""


def targets_for(texts: int, seed: int) -> Tensor:
    """For every text another one, as a random cyclic order gives it: `[texts]` int64."""
    order = torch.randperm(texts, generator=torch.Generator().manual_seed(seed))
    targets = torch.empty_like(order)
    targets[order] = order.roll(1)
    return targets


def direction(space: FeatureSpace, text: Tensor, features: Tensor | None) -> Tensor:
    """What a group's features of texts add to their embeddings: unit rows `[n, dim]`, zero where
    none of them is active.

    Args:
        text: unit text embeddings, `[n, dim]`.
        features: `[selected]` int64; None for all.
    """
    activations = space.encode_texts(text)  # [n, features]
    if features is not None:
        kept = torch.zeros_like(activations)
        kept[:, features] = activations[:, features]
        activations = kept
    return F.normalize(activations @ space.dictionary.directions, dim=1, eps=1e-9)


def push(
    model: ZeroShot,
    pixels: Tensor,
    towards: Tensor,
    mean: Tensor,
    eps: float | str,
    *,
    norm: Norm = "Linf",
    steps: int = 60,
    batch_size: int = BATCH,
    seed: int = 0,
) -> Tensor:
    """Images whose embeddings, less a mean, are turned towards directions within eps.

    Args:
        pixels: `[n, 3, height, width]`.
        towards: unit rows `[n, dim]`.
        mean: of image embeddings, `[dim]`.

    Raises:
        UserError: something is not float32.
    """

    def alike(images: Tensor, goals: Tensor) -> Tensor:
        return F.cosine_similarity(model.embed(images) - mean, goals, dim=1)

    return climb(
        model,
        alike,
        pixels,
        towards,
        eps,
        norm=norm,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
    )


class CrossModalStudy:
    """Cross-modal attacks on the images of a retrieval gallery, measured in two encoders.

    Args:
        space: whose groups push.
        texts: the gallery's captions; image i belongs to text i.
        pixels: `[n, 3, height, width]`.
        other: another encoder, for transfer.
    """

    def __init__(
        self,
        space: FeatureSpace,
        pixels: Tensor,
        texts: list[str],
        other: Encoder,
        *,
        eps: float | str,
        norm: Norm = "Linf",
        steps: int = 60,
        seed: int = 0,
    ) -> None:
        self.space, self.pixels, self.other = space, pixels, other
        self.eps, self.norm, self.steps, self.seed = eps, norm, steps, seed
        self.text = space.encoder.encode_texts(texts).clone()  # [n, dim]
        self.targets = targets_for(len(texts), seed)
        self.model = ZeroShot(space.encoder, self.text)
        self.mean = space.dictionary.mean("image").detach()
        self.clean = batched(self.model.embed, pixels)  # [n, dim]
        height, width = image_size(other)
        self.transfer = ZeroShot(
            other, other.encode_texts(texts).clone(), before=ResizedTo(height, width)
        )

    def without_attack(self) -> CrossModal:
        """The clean images, scored like attacked ones."""
        return self._scored(self.pixels, self.space.select(GROUPS[2]))

    def run(self, group: str) -> CrossModal:
        """Push the features of a class, or of ALL."""
        features = None if group == ALL else self.space.select(group)
        wanted = direction(self.space, self.text[self.targets], features)
        return self._scored(self._pushed(wanted), features)

    def run_control(self, control: Control) -> CrossModal:
        """Push a control's features, or the text's part along its principal components."""
        target = self.text[self.targets]
        if control.features is not None:
            wanted = direction(self.space, target, control.features)
        else:
            assert control.pca is not None
            centred = target - self.space.dictionary.mean("text")
            along = centred @ control.pca.components.T @ control.pca.components
            wanted = F.normalize(along, dim=1)
        return self._scored(self._pushed(wanted), control.features)

    def controls(self, group: str, seeds: int) -> list[Control]:
        """The controls beside a class."""
        return list(controls(self.space, group, self.clean, seeds=seeds))

    def _pushed(self, towards: Tensor) -> Tensor:
        return push(
            self.model,
            self.pixels,
            towards,
            self.mean,
            self.eps,
            norm=self.norm,
            steps=self.steps,
            seed=self.seed,
        )

    def _scored(self, images: Tensor, features: Tensor | None) -> CrossModal:
        embeddings = batched(self.model.embed, images)
        first, nearer = self._hits(embeddings @ self.text.T)
        elsewhere = batched(self.transfer, images)
        other_first, other_nearer = self._hits(elsewhere)
        chosen = slice(None) if features is None else features
        matched = F.cosine_similarity(
            self.space.encode_images(embeddings)[:, chosen],
            self.space.encode_texts(self.text[self.targets])[:, chosen],
            dim=1,
        )
        return CrossModal(images, matched, first, nearer, other_first, other_nearer)

    def _hits(self, similarity: Tensor) -> tuple[Tensor, Tensor]:
        similarity = similarity.cpu()
        rows = torch.arange(len(similarity))
        target = similarity[rows, self.targets]
        return similarity.argmax(1) == self.targets, target > similarity[rows, rows]
