"""Words that state what an image is labelled as, and their inflections.

An attack on a text that replaces such a word changes what the text says, not what the model makes
of it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cache

from features.scores.words import words
from mms_apps.robustness.tasks import RETRIEVAL, Task

IRREGULAR = {
    "people": "person",
    "children": "child",
    "mice": "mouse",
    "geese": "goose",
    "feet": "foot",
    "teeth": "tooth",
    "wives": "wife",
}
PLURALS = (("men", "man"), ("ies", "y"), ("ves", "f"), ("es", ""), ("s", ""))
VERBS = (("ied", "y"), ("ing", ""), ("ed", ""))
SHORTEST = 3
"""Letters that an inflection leaves, and of a word that counts as a part of a longer one."""


def label_words(task: Task, row: int) -> set[str]:
    """Words that state an image's label: of its attributes' values, and, but in retrieval, of the
    names of the classes and of those prompts' words that not all classes share."""
    stated: list[set[str]] = [words(value) for value in task.attributes[row].values()]
    if task.label != RETRIEVAL:
        of_class: list[set[str]] = [words(" ".join(prompts)) for prompts in task.prompts]
        stated += [words(name) for name in task.classes]
        shared = of_class[0].intersection(*of_class)
        stated += [own - shared for own in of_class]
    return {word for some in stated for word in some}


def states(word: str, labels: Collection[str]) -> bool:
    """Whether a word is one of the labels' words, inflected or within a compound.

    Args:
        labels: as `label_words` gives them.
    """
    parts = [part for whole in words(word) for part in (whole, *whole.split("-"))]
    found = {stem(part) for part in parts}
    for label in labels:
        wanted = stem(label)
        if wanted in found or (not label.isascii() and label in word.lower()):
            return True
        if len(wanted) >= SHORTEST and any(
            part.startswith(wanted) or part.endswith(wanted) for part in found
        ):
            return True
    return False


@cache
def stem(word: str) -> str:
    """A word without its English inflection; the same for all inflections of a word."""
    word = re.sub(r"['\u2019]s?$", "", word)
    word = IRREGULAR.get(word, word)
    for endings in (PLURALS, VERBS):
        for ending, instead in endings:
            if word.endswith(ending) and not word.endswith("ss"):
                if ending == "men" or len(word) - len(ending) >= SHORTEST:
                    word = word.removesuffix(ending) + instead
                break
    word = word.rstrip("e")
    return re.sub(r"(.)\1$", r"\1", word)
