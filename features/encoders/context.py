"""How much of a text an encoder sees: tokenizers cut what is longer than their context."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

WORD = re.compile(r"\S+")
LONG_WORD = 24
"""Characters from which a "word" is taken for a script that writes no spaces."""
TAIL = 3
"""Places at the end of a row where a tokenizer puts its special tokens."""
LONGEST_TOKEN = 64
"""Characters of a text that one token stands for at most."""
FILLER = -1
MORE = "a"
"""A word that is put beside others to see where their tokens end."""


class Context:
    """The context of a tokenizer: a text fits into it where a longer context gives the same tokens.

    Args:
        tokenizer: of an open_clip model, a `TwoModels` or a transformers processor: texts,
            context_length -> `[n, length]`. One that takes no context_length is taken to cut
            nothing. Its `padding_side`, "right" where it has none, says where it fills up.
    """

    def __init__(self, tokenizer: Callable[..., Tensor]) -> None:
        self.tokenizer = tokenizer
        self.fills_left = getattr(tokenizer, "padding_side", "right") == "left"
        self.length = getattr(tokenizer, "context_length", None) or len(self._row("a"))
        try:
            self.empty: Tensor | None = self._row("", self.length)  # [length]
        except TypeError:
            self.empty = None

    def within_reach(self, text: str) -> str:
        """A text without what no context could reach: tokenizers take minutes for a word of 100,000
        letters, as a file written out in a caption's place is."""
        return text if self.empty is None else text[: LONGEST_TOKEN * self.length]

    def as_seen(self, texts: Sequence[str], tokens: Tensor) -> tuple[list[str], int]:
        """The texts as far as the encoder sees them, and how many of them are cut.

        A text that is too long is cut after the last word that fits whole.

        Args:
            texts: n of them.
            tokens: what the tokenizer makes of them, `[n, length]`.
        """
        seen, cut = list(texts), 0
        if self.empty is None or tokens.shape[1] < self.length:
            return seen, cut
        full = (self._filler_last(tokens)[:, -TAIL:] != self.empty[-TAIL:]).any(dim=1)  # [n]
        for row in full.nonzero().flatten().tolist():
            if not self.holds(texts[row]):
                seen[row] = self._beginning(texts[row])
                cut += 1
        return seen, cut

    def holds(self, text: str) -> bool:
        """Whether a text fits whole."""
        wider = self.length + 2 * len(text.encode()) + 2 * TAIL
        row, nothing = self._row(text, wider), self._row("", wider)  # [wider]
        places = (row != nothing).nonzero()
        used = int(places.max()) + 1 if len(places) else 0
        if used > self.length:
            return False
        return torch.equal(self._row(text, self.length)[:used], row[:used])

    def token_spans(
        self, text: str, words: Sequence[tuple[int, int]], length: int
    ) -> list[tuple[int, int]]:
        """Of each word of a text the place of its first token in the row that the tokenizer makes
        of it, and the place after its last; equal ones for a word without tokens of its own.

        The tokens up to a word's end are those in which rows of the text up to there agree, whether
        or not another word follows. Where rows are filled up on the left, the text from a word on
        is looked at instead.

        Args:
            text: as far as the encoder sees it.
            words: of each the first character and the one after its last, in order.
            length: of the row.
        """
        if self.fills_left:
            parts = ["", *(text[start:] for start, _ in reversed(words))]
            longer = [f"{MORE} {part}" for part in parts]
        else:
            parts = ["", *(text[:end] for _, end in words)]
            longer = [f"{part} {MORE}" for part in parts]
        options: dict[str, Any] = {}
        if self.empty is not None:  # so that another word has its place
            options["context_length"] = self.length + 2 * TAIL
        rows = self._filler_last(torch.as_tensor(self.tokenizer(parts + longer, **options)))
        own, others = rows.split(len(parts))
        agree = (own == others).long().cumprod(1).sum(1)  # [words + 1]
        bounds = agree.cummax(0).values.clamp(max=length).tolist()
        if self.fills_left:
            bounds = [length - bound for bound in reversed(bounds)]
        return list(pairwise(bounds))

    def _beginning(self, text: str) -> str:
        """The longest beginning of a text that fits, in whole words where spaces part them."""
        ends = [word.end() for word in WORD.finditer(text)]
        fitting = bisect_left(ends, True, key=lambda end: not self.holds(text[:end]))
        end = ends[fitting - 1] if fitting else 0
        if fitting < len(ends) and ends[fitting] - end > LONG_WORD:
            places = range(end + 1, ends[fitting])
            end += bisect_left(places, True, key=lambda place: not self.holds(text[:place]))
        return text[:end].rstrip()

    def _filler_last(self, tokens: Tensor) -> Tensor:
        """Tokens `[..., length]` with what fills them up at the end, in whatever order the rest."""
        return tokens.flip(-1) if self.fills_left else tokens

    def _row(self, text: str, length: int | None = None) -> Tensor:
        """A text's tokens `[length]`, filled up at the end where the tokenizer doesn't."""
        options: dict[str, Any] = {} if length is None else {"context_length": length}
        row = self._filler_last(torch.as_tensor(self.tokenizer([text], **options)[0]))
        return row if length is None else F.pad(row, (0, length - len(row)), value=FILLER)
