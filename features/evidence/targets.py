"""What evidence is asked for: features of a FeatureSpace, or any function of the embedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from features.encoders.encoder import Encoder
from features.errors import UserError
from features.modality import Modality
from features.space.space import FeatureSpace

Source = FeatureSpace | Encoder
Scores = Callable[[Tensor], Tensor]
"""Unit embeddings `[n, dim]` -> `[n, targets]`, or `[n]` for one target; gradients flow through."""
Target = Sequence[int] | Scores
"""Numbers of features, which stand for their pre-activations: a feature that leaves the k largest
when a part is covered still falls by as much as it falls, and one that never was among them still
has evidence. For activations, give the function that computes them."""


def encoder_of(source: Source) -> Encoder:
    """The encoder whose pictures and texts are looked at.

    Raises:
        UserError: a FeatureSpace's encoder cannot be loaded, or is not the one that its features
            belong to.
    """
    return source if isinstance(source, Encoder) else source.encoder


def scores_of(source: Source, target: Target, modality: Modality) -> Scores:
    """The function of the embedding that a target stands for, always `[n, targets]`.

    Raises:
        UserError: numbers of features without a FeatureSpace, none, or one that it doesn't have.
        ValueError: when called, if a given function does not give one row an embedding.
    """
    if callable(target):
        return _checked(target)
    if isinstance(source, Encoder):
        raise UserError("numbers of features need a FeatureSpace; give one instead of its encoder")
    numbers = [int(number) for number in target]
    if not numbers:
        raise UserError("no feature to find evidence for; give at least one number")
    for number in numbers:
        if not 0 <= number < len(source):
            raise UserError(f"feature {number}: there is none; the last one is {len(source) - 1}")
    dictionary, device = source.dictionary, source.device

    def pre_activations(embedding: Tensor) -> Tensor:
        return dictionary.pre_activations(embedding.to(device), modality)[:, numbers]

    return pre_activations


def _checked(function: Scores) -> Scores:
    def scores(embedding: Tensor) -> Tensor:
        found = function(embedding)
        if found.ndim == 1:
            found = found[:, None]
        if found.ndim != 2 or len(found) != len(embedding):
            raise ValueError(
                f"a target gave {list(found.shape)} for {len(embedding)} embeddings; it must give "
                "[n, targets] or [n]"
            )
        return found

    return scores
