"""Choosing features: from words, "more woman, less moustache", or from examples."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from features.dictionary import Modality
from features.errors import UserError
from features.modality import CROSS_MODAL
from features.space.space import FeatureSpace
from mms_apps.steering.edits import Edit
from mms_apps.steering.values import number, several, whole

TEMPLATES = ("{}", "a picture of {}", "an image of {}")
TAKEN = 3
"""Features a word, at most."""
SHARE = 0.3
"""A further feature is taken where it answers to the word at least so much as the first."""
DASHES = "-\N{MINUS SIGN}\N{EN DASH}\N{EM DASH}\N{FULLWIDTH HYPHEN-MINUS}"
LESS = ("less", "fewer", "no", "not", "without", *DASHES)
WHICH = rf"(?:(?:more|less|fewer|no|not|without)(?=[\s:]|$)|[{DASHES}+\N{{FULLWIDTH PLUS SIGN}}])"
WISH = re.compile(rf"(?P<which>{WHICH})?[\s:]*(?P<word>.*)", re.IGNORECASE)
BETWEEN = re.compile(
    r"[,;\n\r\N{FULLWIDTH COMMA}\N{FULLWIDTH SEMICOLON}\N{IDEOGRAPHIC COMMA}]"
    rf"|(?:\b(?:and|but)|&)\s+(?={WHICH})",
    re.IGNORECASE,
)
"""What stands between wishes."""
AROUND = " \t.!?\"'\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb\N{IDEOGRAPHIC FULL STOP}"
"""Signs around wishes and words that say nothing: quotation marks and the ends of sentences."""
SECOND = re.compile(rf"\b(?:more|less|fewer)\s|\s[{DASHES}+]", re.IGNORECASE)
"""What begins a wish and has none before it."""


@dataclass(frozen=True)
class Choice:
    """A feature that was taken for a word.

    how: "name" where the word stands in the feature's name, else "text", where the word's text
        activates it more than other texts do.
    """

    word: str
    feature: int
    name: str
    how: str
    strength: float

    @property
    def found(self) -> str:
        """How the feature was found, to be read after it."""
        if self.how == "name":
            return "found by its name"
        return "the nearest by its text, as no feature's name has the word"


def choose(space: FeatureSpace, wishes: str | Sequence[str], strength: float = 1.0) -> list[Choice]:
    """The features that wishes mean.

    Args:
        wishes: "more WORD" (or +) and "less WORD" (or fewer, no, without, -), in a list or with
            commas, semicolons, line breaks or "and" between; without either, "more".
        strength: of each edit, for "less" with a minus.

    Raises:
        UserError: no wish, one that is no text or lacks its word, or a word that no feature answers
            to.
    """
    strength = number("strength", strength)
    choices: list[Choice] = []
    for less, word in _wishes(wishes):
        found = features_of(space, word)
        if not found:
            raise UserError(f"{word}: no feature answers to it; try another word")
        sign = -strength if less else strength
        choices += [
            Choice(word, feature, space.features["name"][feature].as_py(), how, sign)
            for feature, how in found
        ]
    if not choices:
        raise UserError("no words; write for example: more woman, less moustache")
    return choices


def _wishes(wishes: str | Sequence[str]) -> Iterator[tuple[bool, str]]:
    """Whether each wish is for less, and its word."""
    given = [wishes] if isinstance(wishes, str) else wishes
    if not isinstance(given, list | tuple) or not all(isinstance(one, str) for one in given):
        raise UserError(f"wishes {wishes!r}: give texts, for example: more woman, less moustache")
    for part in (part for one in given for part in BETWEEN.split(one)):
        wish = " ".join(part.split()).strip(AROUND)
        if not wish:
            continue
        match = WISH.fullmatch(wish)
        assert match is not None  # its word may be anything
        word = match["word"].strip(AROUND)
        if not word:
            raise UserError(
                f"{wish}: lacks its word; write for example: more woman, less moustache"
            )
        if SECOND.search(word):
            raise UserError(
                f"{wish}: more, less, + and - stand at the beginning of a wish; write commas "
                "between wishes, for example: more woman, less moustache"
            )
        yield (match["which"] or "").lower() in LESS, word


def features_of(space: FeatureSpace, word: str) -> list[tuple[int, str]]:
    """The features that answer to a word, the best first, and how each was found.

    Those named by the word come first, then those with the word within their name; both in the
    order of how well the name fits, but cross-modal ones that are not shared last: images and texts
    drive them in other pairs. Where no name has it, the features that the word's text
    activates more than texts usually do.
    """
    fit = space.features["name_score"].to_pylist()
    terms = [_terms(name) for name in space.features["name"].to_pylist()]
    exact = {feature for feature, found in enumerate(terms) if word.lower() in found}
    named = exact | set(space.select(name=word).tolist())
    if named:
        apart = set(space.select(CROSS_MODAL, shared=False).tolist())
        order = sorted(named, key=lambda f: (f not in exact, f in apart, -fit[f]))
        return [(feature, "name") for feature in order[:TAKEN]]
    density, mean = (
        torch.from_numpy(np.nan_to_num(space.features[f"text_{column}"].to_numpy())).float()
        for column in ("density", "mean_active")
    )
    with torch.no_grad():
        activations = space.encode_texts([t.format(word) for t in TEMPLATES]).mean(0).cpu()
    gain = activations - density * mean  # [features]
    order = gain.argsort(descending=True)[:TAKEN].tolist()
    least = SHARE * float(gain.max())
    return [(feature, "text") for feature in order if gain[feature] >= max(least, 1e-6)]


def _terms(name: str) -> set[str]:
    """The terms of a feature's name; those that are attributes by their values too, alone and with
    the attribute: "skin_tone: dark" is "dark" and "dark skin tone"."""
    terms = {term.strip().lower() for term in name.split(", ")}
    for term in list(terms):
        attribute, colon, value = term.partition(": ")
        if colon:
            terms |= {value, f"{value} {attribute.replace('_', ' ')}"}
    return terms


def between(
    space: FeatureSpace,
    source: Tensor,
    target: Tensor,
    modality: Modality = "image",
    taken: int = 8,
) -> tuple[Edit, ...]:
    """Edits that turn samples like `source` into samples like `target`: the features whose mean
    activation differs most, relative to how much it varies, each by that difference.

    Args:
        source: embeddings `[n, dim]`.
        target: embeddings `[m, dim]`.
        modality: of the embeddings.
        taken: features, at most.

    Raises:
        UserError: either has no samples or is no embeddings, or nothing is to be taken.
    """
    taken = whole("taken", taken, 1)
    if not len(source) or not len(target):
        raise UserError("no samples to go from or to; give at least one of each")
    with torch.no_grad():
        before, after = (space.encode(space.embeddings_of(x), modality) for x in (source, target))
    difference = (after.mean(0) - before.mean(0)).cpu()  # [features]
    spread = (
        torch.cat([before - before.mean(0), after - after.mean(0)]).square().mean(0).sqrt().cpu()
    )
    usual = space.mean_active(modality)
    clarity = torch.where(usual > 0, difference.abs() / (spread + 1e-3), 0.0)
    return tuple(
        Edit(feature, float(difference[feature] / usual[feature]))
        for feature in clarity.argsort(descending=True)[:taken].tolist()
        if clarity[feature] > 0
    )


def as_edits(choices: Iterable[Choice]) -> tuple[Edit, ...]:
    """One edit a choice.

    Raises:
        UserError: they are no choices.
    """
    found = several("choices", choices, Choice, "what choose(space, words) gives")
    return tuple(Edit(choice.feature, choice.strength) for choice in found)
