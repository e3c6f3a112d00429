"""Names of classes and templates of prompts from files, as they are published for ImageNet.

Text files hold one a line, JSON files a list; names may also be a JSON object from what the pairs
say to the name: `{"n01440764": "tench"}`, or by number, `{"0": ["n01440764", "tench"]}`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from features.errors import UserError
from features.pairs.text import read_text

Names = Sequence[str] | Mapping[str, str]


def read_templates(path: str | Path) -> list[str]:
    """Templates of prompts, each with `{}` for the name of a class.

    Raises:
        UserError: the file cannot be read, or holds anything else.
    """
    found = _read(Path(path))
    if not isinstance(found, list):
        raise UserError(f"{path}: give a list of templates, such as a photo of a {{}}")
    require_templates(found, f"{path}: ")
    return found


def require_templates(templates: Sequence[str], where: str = "") -> None:
    """Raise UserError for a template without a place for the name."""
    for template in templates:
        if "{}" not in template:
            raise UserError(
                f"{where}template {template!r}: has no {{}} where the class's name goes"
            )


def read_class_names(path: str | Path) -> Names:
    """Names of classes, in their order, or by what pairs say.

    Raises:
        UserError: the file cannot be read, or holds anything else.
    """
    found = _read(Path(path))
    if isinstance(found, dict):
        return _by_value(found, path)
    words = [line.split(maxsplit=1) for line in found]
    if all(len(own) == 2 and _is_synset(own[0]) for own in words):
        return {synset: name.split(",")[0] for synset, name in words}
    return found


def class_places(names: Names, values: Collection[str], pairs: str) -> dict[str, int]:
    """The place among the names of each value that pairs have as their label.

    A list of names holds the values themselves, or goes by their numbers where all values are
    numbers from 0, or else by their order, which then must be as many. Classes of one name are one
    class: no text tells them apart.

    Raises:
        UserError: they don't fit.
    """
    if isinstance(names, Mapping):
        missing = sorted(set(values) - names.keys())
        if missing:
            raise UserError(
                f"class names: none for {', '.join(missing[:5])} of {pairs}; add them to the file"
            )
        places = {name: place for place, name in enumerate(dict.fromkeys(names.values()))}
        return {value: places[names[value]] for value in values}
    distinct = listed(names)
    if set(values) <= set(names):
        return {value: distinct.index(value) for value in values}
    numbers = all(value.isdecimal() for value in values)
    if numbers and max(map(int, values)) < len(names):
        return {value: distinct.index(names[int(value)]) for value in values}
    if len(values) != len(names):
        raise UserError(
            f"class names: {len(names)}, but {pairs} has {len(values)} classes "
            f"({', '.join(sorted(values)[:3])} ...); give one for each in their order, or a JSON "
            "object from each to its name"
        )
    ordered = sorted(values, key=int) if numbers else sorted(values)
    return {value: distinct.index(names[place]) for place, value in enumerate(ordered)}


def listed(names: Names) -> tuple[str, ...]:
    """The names, in the order of `class_places`."""
    return tuple(dict.fromkeys(names.values() if isinstance(names, Mapping) else names))


def _by_value(found: dict[str, Any], path: str | Path) -> dict[str, str]:
    names = {}
    for value, name in found.items():
        if isinstance(name, list) and len(name) == 2 and all(isinstance(x, str) for x in name):
            synset, word = name
            names[value] = names[synset] = word.replace("_", " ")
        elif isinstance(name, str) and name.strip():
            names[value] = name.strip()
        else:
            raise UserError(f"{path}: {value!r} has no name; give text")
    return names


def _is_synset(word: str) -> bool:
    """Whether a word is WordNet's number of a noun, such as n01440764."""
    return len(word) == 9 and word[0] == "n" and word[1:].isdecimal()


def _read(path: Path) -> list[str] | dict[str, Any]:
    """What a file lists; never nothing."""
    text = read_text(path)
    found: Any = [line.strip() for line in text.splitlines() if line.strip()]
    if path.suffix.lower() == ".json":
        try:
            found = json.loads(text)
        except ValueError as error:
            raise UserError(f"{path}: is no JSON ({error})") from None
    if isinstance(found, list) and not all(isinstance(x, str) and x.strip() for x in found):
        raise UserError(f"{path}: give a list of texts, none of them empty")
    if not isinstance(found, list | dict) or not found:
        raise UserError(f"{path}: holds no list; give one text a line, or a JSON list")
    return found
