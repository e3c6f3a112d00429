"""Evidence in captions: by leaving each word out and keeping it alone, or by one gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import regex
import torch
from torch import Tensor, nn

from features.encoders.context import Context
from features.encoders.encoder import Encoder
from features.errors import UserError
from features.evidence.pictures import Method
from features.evidence.targets import Scores, Source, Target, encoder_of, scores_of
from features.scores.words import SPACELESS

BATCH = 64
"""Texts that go through the encoder at once."""
WORD = regex.compile(rf"(?V1)[{SPACELESS}]\p{{M}}*|[^\s{SPACELESS}]+")
"""What spaces part; of scripts that put none between words, each character."""


@dataclass(frozen=True)
class WordEvidence:
    """What the words of one caption add to some targets.

    caption: as it was given.
    spans: of each word its first character and the one after its last.
    words: `[targets, words]` float32; positive where the word raises the target, in the target's
        own unit; 0 for words that the encoder's context cuts off.
    values: the targets of the whole caption, `[targets]` float32.
    """

    caption: str
    spans: tuple[tuple[int, int], ...]
    words: Tensor
    values: Tensor

    def word(self, place: int) -> str:
        """One of the words."""
        start, end = self.spans[place]
        return self.caption[start:end]


@torch.inference_mode(mode=False)
def word_evidence(
    source: Source,
    captions: Sequence[str],
    target: Target,
    method: Method = "exact",
    *,
    batch_size: int = BATCH,
) -> list[WordEvidence]:
    """Which words of captions a feature, or any function of their embedding, rests on.

    - `exact` takes the mean of two differences: of the caption from what is left without the word
      (Li et al. 2016, arXiv 1612.08220, section 3), and of the word alone from an empty text. Where
      several words say one thing, each can be left out for the others; alone, each says it. The two
      are the first and the last term of the word's Shapley value.
    - `fast` takes, at the token embeddings, the gradient times what they have beyond those of a
      text without words, summed over a word's tokens. One pass forwards and one backwards for each
      target. It is a poor guess at what `exact` finds, which costs little as texts are short: use
      it where there are many long captions.

    A word is what spaces part, with its punctuation; of scripts without spaces, one character.

    Args:
        source: a FeatureSpace, or the encoder alone where `target` is a function.
        captions: each with a word at least.
        target: numbers of features of the FeatureSpace, whose evidence is that of their
            pre-activations, or a function of unit embeddings `[n, dim]` that gives `[n, targets]`.
            Several targets cost `exact` nothing more.
        batch_size: texts that go through the encoder at once.

    Returns:
        One WordEvidence a caption, on the CPU.

    Raises:
        UserError: there is no such feature, a caption holds no word, the FeatureSpace's encoder is
            not the one its features belong to, or `fast` finds no token embeddings in its model.
        ValueError: an unknown method, or a target that does not give one row an embedding.
    """
    if method not in ("exact", "fast"):
        raise ValueError(f"{method}: unknown method; use exact or fast")
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size}: at least 1")
    encoder, scores = encoder_of(source), scores_of(source, target, "text")
    spans = [tuple(match.span() for match in WORD.finditer(caption)) for caption in captions]
    for number, (caption, own) in enumerate(zip(captions, spans, strict=True)):
        if not own:
            raise UserError(f"caption {number + 1} ({caption!r}): holds no word; leave it out")
    if not captions:
        return []
    seen, _ = Context(encoder.tokenizer).as_seen(captions, encoder.tokenize(captions))
    find = _out_and_alone if method == "exact" else _by_gradient
    words, values = find(encoder, seen, spans, scores, batch_size)
    return [
        WordEvidence(caption, own, one, value)
        for caption, own, one, value in zip(captions, spans, words, values, strict=True)
    ]


Spans = Sequence[tuple[tuple[int, int], ...]]


@torch.inference_mode()
def _out_and_alone(
    encoder: Encoder, seen: Sequence[str], spans: Spans, scores: Scores, batch_size: int
) -> tuple[list[Tensor], Tensor]:
    """Of each caption `[targets, words]`, and the values `[n, targets]`.

    Args:
        seen: the captions as far as the encoder sees them.
        spans: of the whole captions' words.
    """
    texts = ["", *seen]
    for text, own in zip(seen, spans, strict=True):
        texts += [" ".join((text[:start] + text[end:]).split()) for start, end in own]
        texts += [text[start:end] for start, end in own]
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))  # little to fill up
    encoded = []
    for start in range(0, len(texts), batch_size):
        tokens = encoder.tokenize([texts[place] for place in order[start : start + batch_size]])
        encoded.append(scores(encoder.embed_token_tensors(_trimmed(encoder, tokens))))
    found = torch.cat(encoded).float().cpu()[torch.tensor(order).argsort()]
    nothing, values, parts = found.split([1, len(seen), len(texts) - len(seen) - 1])
    words = []
    for value, part in zip(values, parts.split([2 * len(own) for own in spans]), strict=True):
        without, alone = part.chunk(2)  # [words, targets]
        words.append((((value - without) + (alone - nothing)) / 2).T)
    return words, values


def _by_gradient(
    encoder: Encoder, seen: Sequence[str], spans: Spans, scores: Scores, batch_size: int
) -> tuple[list[Tensor], Tensor]:
    """The same shapes, to the first order."""
    words, values = [], []
    context = Context(encoder.tokenizer)
    for start in range(0, len(seen), batch_size):
        texts, own_spans = seen[start : start + batch_size], spans[start : start + batch_size]
        tokens = encoder.tokenize([*texts, ""])  # the last one has no words
        with torch.enable_grad(), _watched_tokens(encoder) as watched:
            found = scores(encoder.embed_token_tensors(_trimmed(encoder, tokens)))[:-1]
            if not watched or not found.requires_grad:
                raise UserError(
                    f"{encoder.id}: no token embeddings are found in its text tower, on which the "
                    'fast method looks; use method "exact"'
                )
            gradients = [
                torch.autograd.grad(one.sum(), watched[0], retain_graph=True)[0]
                for one in found.unbind(1)
            ]
        embedded = watched[0].detach().float()  # [n + 1, length, width]
        beyond = embedded - embedded[-1:]
        by_token = torch.stack([(g.float() * beyond).sum(-1)[:-1] for g in gradients], 1).cpu()
        values.append(found.detach().float().cpu())
        for text, own, row in zip(texts, own_spans, by_token, strict=True):
            bounds = context.token_spans(text, own, tokens.shape[1])
            sums = [row[:, low:high].sum(1) for low, high in bounds]
            words.append(torch.stack(sums, 1))  # [targets, words]
    return words, torch.cat(values)


def _trimmed(encoder: Encoder, tokens: Tensor) -> Tensor:
    """Token ids `[n, length]` without columns that only fill up, where the text tower masks them:
    open_clip's towers of transformers' models do, and their tokenizers fill up every text."""
    text = getattr(encoder.model, "text", None)
    padding = getattr(getattr(text, "config", None), "pad_token_id", None)
    if padding is None:
        return tokens
    used = (tokens != padding).any(0)  # [length]
    return tokens[:, : int(used.nonzero().max()) + 1] if used.any() else tokens


@contextmanager
def _watched_tokens(encoder: Encoder) -> Iterator[list[Tensor]]:
    """The embeddings of the tokens `[n, length, width]` of the first text that is encoded while the
    context lasts; gradients begin there."""
    watched: list[Tensor] = []
    thread = get_ident()

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        if get_ident() != thread or watched or output.ndim != 3:
            return None
        watched.append(output.detach().requires_grad_())
        return watched[0].clone()

    handles = [
        module.register_forward_hook(hook)
        for module in encoder.model.modules()
        if isinstance(module, nn.Embedding)
    ]
    try:
        yield watched
    finally:
        for handle in handles:
            handle.remove()
