"""From a prompt's embedding to image embeddings that fit it.

The mean is linear in the text's embedding. What a prompt leaves open, the background for example,
is drawn from how images of one drawing differ among themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from features.embedded.world import EmbeddedPairs
from features.encoders.encoder import Encoder
from mms_apps.steering.generator_training.conditions import raw_embeddings
from mms_apps.steering.generator_training.drawings import draw_images
from mms_apps.steering.generator_training.settings import GeneratorTraining
from mms_apps.steering.prior import Prior

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Of the ridge, among which leave-one-out errors choose."""
KEPT_DEVIATIONS = 1024


def fit_prior(texts: Tensor, images: Tensor, generator: torch.Generator) -> Prior:
    """Ridge regression from texts to the mean image of their drawing.

    Args:
        texts: unit embeddings of the captions, `[drawings, draws, text dim]`.
        images: raw embeddings of the same draws, `[drawings, draws, dim]`.
        generator: draws which deviations are kept.
    """
    from sklearn.linear_model import RidgeCV

    means = images.mean(1, keepdim=True)  # [drawings, 1, dim]
    ridge = RidgeCV(alphas=STRENGTHS).fit(
        texts.flatten(0, 1).double().numpy(),
        means.expand_as(images).flatten(0, 1).double().numpy(),
    )
    deviations = (images - means).flatten(0, 1)  # [drawings * draws, dim]
    kept = torch.randperm(len(deviations), generator=generator)[:KEPT_DEVIATIONS]
    return Prior(
        torch.from_numpy(ridge.coef_.T).float(),
        torch.from_numpy(ridge.intercept_).float(),
        deviations[kept].float(),
    )


def train_prior(source: EmbeddedPairs, encoder: Encoder, training: GeneratorTraining) -> Prior:
    """The prior of the drawings' captions and images, under draws of their own."""
    drawn = draw_images(source, training.prior_draws, training.seed + 1)
    texts = torch.cat(
        [
            encoder.encode_texts(drawn.captions[start : start + 256])
            for start in range(0, len(drawn.captions), 256)
        ]
    ).clone()
    shape = (len(source.rows), training.prior_draws, -1)
    generator = torch.Generator().manual_seed(training.seed)
    images = raw_embeddings(encoder, drawn.pixels)
    return fit_prior(texts.cpu().view(shape), images.view(shape), generator)
