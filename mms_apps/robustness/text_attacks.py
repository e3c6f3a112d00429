"""Attacks on texts: words replaced by others of a vocabulary.

Greedy, as in Jin et al. 2020 (arXiv 1907.11932): the replacement that hurts most is taken, then the
next. Bounds hold: how many words change, how far the text's embedding may turn, words that state
the label (`label_words`) neither go nor come, and a judge, an encoder other than the attacked one,
must still find the text's own image by it. Without a judge a success may be a text that says
something else.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from features.encoders.encoder import Encoder
from features.errors import UserError
from mms_apps.robustness.label_words import states


class Judge(NamedTuple):
    """An encoder independent of the attacked one, and the gallery's images as it sees them."""

    encoder: Encoder
    images: Tensor
    """Unit embeddings, `[n, dim]`."""

    def accepts(self, texts: list[str], own: int) -> Tensor:
        """Whether each text's nearest image is its own: `[texts]` bool."""
        return _gap(self.encoder.encode_texts(texts), self.images, own) < 0


@dataclass(frozen=True)
class TextAttackConfig:
    """The bounds, and how wide the search is."""

    max_words: int = 1
    """Words that may change."""
    min_cosine: float = 0.8
    """Of the new text's embedding with the old one's."""
    candidates: int = 40
    """Words of the vocabulary that are tried for each place, drawn at random."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_words < 1:
            raise UserError(f"max_words {self.max_words}: must be at least 1")
        if not -1 <= self.min_cosine < 1:
            raise UserError(f"min_cosine {self.min_cosine}: must be in -1 to 1")
        if self.candidates < 1:
            raise UserError(f"candidates {self.candidates}: must be at least 1")


@dataclass(frozen=True)
class TextAttacked:
    """One text, attacked."""

    text: str
    changed: tuple[tuple[str, str], ...]
    """Words and what replaced them."""
    cosine: float
    """With the text before."""
    found: bool
    """Whether the nearest image is not the text's own any more."""
    judged: bool
    """Whether a judge saw to it that the text still describes its image."""


def attack_text(
    encoder: Encoder,
    text: str,
    own: int,
    images: Tensor,
    words: Sequence[str],
    config: TextAttackConfig,
    *,
    labels: Collection[str] = (),
    judge: Judge | None = None,
    greedy: bool = True,
) -> TextAttacked:
    """Replace words until the text's own image is not the nearest any more.

    Args:
        own: row of `images` that belongs to the text.
        images: unit embeddings of the gallery, `[n, dim]`.
        words: the vocabulary.
        labels: words that state the label, which stay and are not put in.
        judge: who must still find the own image; None where there is no other encoder.
        greedy: take the worst replacement; if not, one at random within the bounds, which is the
            control.
    """
    rng = random.Random(f"{config.seed}/{text}")
    before = encoder.encode_texts([text])[0]
    current, changed, cosine = text.split(), [], 1.0
    places = {place for place, word in enumerate(current) if not states(word, labels)}
    words = [word for word in words if not states(word, labels)]
    for _ in range(min(config.max_words, len(current))):
        tries = [
            (place, word)
            for place in sorted(places)
            for word in rng.sample(words, min(config.candidates, len(words)))
            if word != current[place]
        ]
        if not tries:
            break
        texts = [" ".join([*current[:p], w, *current[p + 1 :]]) for p, w in tries]
        vectors = encoder.encode_texts(texts)  # [tries, dim]
        near = vectors @ before  # [tries]
        gap = _gap(vectors, images, own)
        within = near >= config.min_cosine
        if judge is not None:
            within &= judge.accepts(texts, own).to(within.device)
        allowed = within.nonzero().squeeze(1).tolist()
        if not allowed:
            break
        best = max(allowed, key=lambda row: float(gap[row])) if greedy else rng.choice(allowed)
        place, word = tries[best]
        changed.append((current[place], word))
        current[place], cosine = word, float(near[best])
        places.discard(place)
        if float(gap[best]) > 0:
            break
    plain = _gap(encoder.encode_texts([" ".join(current)]), images, own)
    fooled = float(plain[0]) > 0
    return TextAttacked(" ".join(current), tuple(changed), cosine, fooled, judge is not None)


def _gap(vectors: Tensor, images: Tensor, own: int) -> Tensor:
    """Similarity of the nearest other image less that of the own one: `[texts]`."""
    similarity = vectors @ images.T  # [texts, n]
    right = similarity[:, own].clone()
    others = similarity.clone()
    others[:, own] = -torch.inf
    return others.amax(1) - right


def vocabulary_of(captions: Sequence[str]) -> list[str]:
    """The captions' words, in alphabetical order."""
    return sorted({word for caption in captions for word in caption.split() if word.isalpha()})
