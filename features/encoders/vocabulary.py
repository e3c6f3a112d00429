"""Whether a tokenizer has words: libraries make up an empty one where its files are missing."""

from __future__ import annotations

import string
from collections.abc import Callable

from torch import Tensor

from features.errors import UserError

WORDS = (
    "of to is the and one red dog cat man blue line circle square и в на не 的 人 の は في من का और"
)
PLAIN_TEXTS = [*string.ascii_letters, *string.digits, *WORDS.split()]
"""Of which every tokenizer is taken to know some, be its tokens bytes, letters or whole words."""


def require_words(tokenize: Callable[[list[str]], Tensor], where: str) -> None:
    """Raise a UserError where a tokenizer tells no texts apart.

    An empty one gives as many unknown tokens as a text has words, letters or bytes, so only texts
    of as many are compared.

    Args:
        tokenize: texts -> ids `[n, length]`.
        where: the model, for the message.
    """
    seen: dict[tuple[int, int], list[int]] = {}
    for text, tokens in zip(PLAIN_TEXTS, tokenize(PLAIN_TEXTS).tolist(), strict=True):
        if seen.setdefault((len(text), len(text.encode())), tokens) != tokens:
            return
    raise UserError(
        f"{where}: its tokenizer gives all texts the same tokens; put the tokenizer's own files, "
        "such as tokenizer.json, beside the model"
    )
