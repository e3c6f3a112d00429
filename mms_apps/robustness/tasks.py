"""What is attacked: images with labels, and the classes' texts."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from features.embedded.build_pairs import SKIN_TONES
from features.embedded.evaluate import GENDERS, class_vectors, gender_prompts, skin_tone_prompts
from features.encoders.encoder import Encoder
from features.errors import UserError
from features.pairs.base import Described, PairSource, Skipped
from features.pairs.drawn import reservoir
from features.pairs.open import open_pairs
from mms_apps.robustness.class_names import Names, class_places, listed, require_templates
from mms_apps.robustness.models import ZeroShot, pixels_of

RETRIEVAL = "retrieval"
"""The task in which an image's captions are its class."""
NUMBER = re.compile(r"[-+]?\d*\.?\d+(e[-+]?\d+)?", re.IGNORECASE)
SPARE = 1
"""Pairs drawn to spare, for each that is asked for."""
TEMPLATES = ("a picture of {}", "an image of {}", "this shows {}")


@dataclass(frozen=True)
class Task:
    """Images, their labels, and the prompts of the classes."""

    label: str
    """The attribute that gives the labels, or retrieval."""
    pairs: str
    pixels: Tensor
    """float32 `[n, 3, height, width]` in [0, 1]"""
    labels: Tensor
    """`[n]` int64"""
    classes: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...]
    """Of each class; its vector is the mean over them. In retrieval a class is all captions of an
    image, of which the nearest counts."""
    ids: tuple[str, ...]
    captions: tuple[str, ...]
    """The first of each image."""
    attributes: tuple[Mapping[str, str], ...]
    """Of each image."""

    def __post_init__(self) -> None:
        """Raise UserError where there is not one of everything for each image, or class."""
        if isinstance(self.pixels, Tensor):
            object.__setattr__(self, "pixels", self.pixels.detach())
        for name in ("pixels", "ids", "captions", "attributes"):
            if len(getattr(self, name)) != len(self.labels):
                raise UserError(
                    f"task {self.label}: {len(getattr(self, name))} {name} for {len(self.labels)} "
                    "labels; give one for each image"
                )
        if len(self.prompts) != len(self.classes):
            raise UserError(
                f"task {self.label}: {len(self.prompts)} prompts for {len(self.classes)} classes; "
                "give each class its own"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def chance(self) -> float:
        """Accuracy of a guess."""
        return 1 / len(self.classes)

    def classifier(self, encoder: Encoder, before: nn.Module | None = None) -> ZeroShot:
        """The zero-shot classifier of these classes, or the retrieval of their captions.

        Args:
            before: pixels -> pixels, such as `ResizedTo` for an encoder of another image size.
        """
        if self.label != RETRIEVAL:
            return ZeroShot(encoder, class_vectors(encoder, self.prompts), before=before)
        texts = self.texts
        row = {text: number for number, text in enumerate(texts)}
        most = max(map(len, self.prompts))
        texts_of = [
            [row[text] for text in (*own, *own[:1] * (most - len(own)))] for own in self.prompts
        ]
        vectors = encoder.encode_texts(list(texts))
        return ZeroShot(encoder, vectors, before=before, texts_of=torch.tensor(texts_of))

    @property
    def texts(self) -> tuple[str, ...]:
        """All prompts, each once."""
        return tuple(dict.fromkeys(text for own in self.prompts for text in own))

    def fingerprint(self) -> str:
        """sha256 over pixels, labels and prompts."""
        digest = hashlib.sha256(self.pixels.cpu().numpy().tobytes())
        digest.update(self.labels.cpu().numpy().tobytes())
        digest.update(repr((self.label, self.classes, self.prompts)).encode())
        return digest.hexdigest()

    def first(self, count: int) -> Task:
        """The same task on its first images."""
        return Task(
            self.label,
            self.pairs,
            self.pixels[:count],
            self.labels[:count],
            self.classes,
            self.prompts,
            self.ids[:count],
            self.captions[:count],
            self.attributes[:count],
        )


def load_task(
    pairs: str | Path,
    encoder: Encoder,
    *,
    label: str = "gender",
    classes: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    class_names: Names | None = None,
    count: int = 300,
    seed: int = 0,
) -> Task:
    """A task on pairs drawn at random over the whole source, whose values are the classes.

    The embedded world's `gender` (man, woman) and `skin_tone` have prompts of their own, the ones
    of `features.embedded.evaluate`, unless templates are given.

    Args:
        pairs: as `open_pairs` takes them.
        encoder: for whose image size the pixels are.
        label: an attribute of the pairs, or retrieval.
        classes: values of the attribute to tell apart; None for all that occur.
        templates: of the prompts, each with `{}` for the class's name.
        class_names: what to call the classes, where the pairs say it otherwise, by numbers say
            (`class_names.class_places`); names that none of the images has are classes too.
        count: images at most.
        seed: of the draw.

    Raises:
        UserError: the attribute or a class does not occur, there are fewer than two classes, a
            template lacks `{}`, the class names don't fit, or no pair could be read.
    """
    if count < 1:
        raise UserError(f"count {count}: must be at least 1")
    require_templates(templates or ())
    if class_names is not None and classes:
        raise UserError("class names name all classes of an attribute: leave --classes out")
    if class_names is not None and label == RETRIEVAL:
        raise UserError("in retrieval the captions are the classes: leave the class names out")
    asked, pairs = classes, str(pairs)
    source = open_pairs(pairs, captions_needed=label == RETRIEVAL)
    embedded = pairs.partition(":")[0] == "embedded"
    if embedded and classes is None and class_names is None:
        classes = {"gender": GENDERS, "skin_tone": SKIN_TONES}.get(label)
    draw = _drawn(source, label, classes, count, seed)
    found, images = _read(source, draw.pairs, encoder, count, label)
    if not found:
        raise UserError(_nothing(pairs, label, classes, draw.attributes))
    unknown = [name for name in asked or () if label != RETRIEVAL and name not in draw.values]
    if unknown:
        raise UserError(
            f"--classes {', '.join(unknown)}: no pair of {pairs} has this as its {label}; leave it "
            "out, or write it as the pairs do"
        )
    if label != RETRIEVAL and not asked and class_names is None and _measured(draw.values):
        raise UserError(
            f"--label {label}: {len(draw.values)} different numbers in {pairs}, most of them once; "
            "name the values to tell apart with --classes, or put ranges in their place"
        )
    if label == RETRIEVAL:
        own = [tuple(sorted(set(pair.captions))) for pair in found]
        prompts = tuple(dict.fromkeys(own))
        names = tuple(texts[0] for texts in prompts)
        labels = [prompts.index(texts) for texts in own]
    elif class_names is not None:
        places = class_places(class_names, set(draw.values), pairs)
        names = listed(class_names)
        prompts = _prompts(names, templates or TEMPLATES)
        labels = [places[str(pair.attributes[label])] for pair in found]
    else:
        names, prompts = _classes(label, classes, set(draw.values), templates, embedded)
        labels = [names.index(str(pair.attributes[label])) for pair in found]
    if len(names) < 2:
        raise UserError(
            f"--label {label}: only one class, {names[0]!r}, in {pairs}; name another attribute, "
            "or more classes"
        )
    return Task(
        label=label,
        pairs=pairs,
        pixels=images,
        labels=torch.tensor(labels, device=images.device),
        classes=names,
        prompts=prompts,
        ids=tuple(pair.id for pair in found),
        captions=tuple(pair.captions[0] if pair.captions else "" for pair in found),
        attributes=tuple({k: v for k, v in pair.attributes.items() if v} for pair in found),
    )


@dataclass(frozen=True)
class _Draw:
    """Labelled pairs drawn over the whole of a source.

    pairs: in random order, more than are asked for, since some images may be unreadable.
    values: of the label, that occur anywhere, and how often.
    attributes: that occur anywhere.
    """

    pairs: list[Described]
    values: Counter[str]
    attributes: set[str]


def _drawn(
    source: PairSource, label: str, classes: Sequence[str] | None, count: int, seed: int
) -> _Draw:
    """Draw `count` pairs and SPARE times as many to spare."""
    values: Counter[str] = Counter()
    attributes: set[str] = set()

    def fitting() -> Iterator[Described]:
        for part in source.parts():
            for pair in source.describe(part):
                if isinstance(pair, Skipped):
                    continue
                attributes.update(pair.attributes)
                value = pair.captions[0] if label == RETRIEVAL else pair.attributes.get(label)
                if not value or (label != RETRIEVAL and classes and value not in classes):
                    continue
                values[value] += 1
                yield pair

    return _Draw(reservoir(fitting(), count * (1 + SPARE), seed), values, attributes)


def _read(
    source: PairSource, drawn: Sequence[Described], encoder: Encoder, count: int, label: str
) -> tuple[list[Described], Tensor]:
    """The first `count` pairs whose images can be read, and these as the encoder sees them; for
    retrieval those of the same picture as one.

    Crops are kept, since whole photographs would fill the memory.
    """
    pixels: dict[str, Tensor] = {}
    found: list[Described] = []
    for some in (drawn[:count], drawn[count:]):
        for location, image in source.images({pair.location for pair in some}):
            pixels[location] = pixels_of(encoder, [image])
        found = [pair for pair in drawn if pair.location in pixels]
        found = (_of_pictures(found, pixels) if label == RETRIEVAL else found)[:count]
        if len(found) == count:
            break
    return found, torch.cat([pixels[pair.location] for pair in found] or [torch.empty(0)])


def _of_pictures(pairs: Sequence[Described], pixels: Mapping[str, Tensor]) -> list[Described]:
    """Pairs of the same picture as one, the first, with the captions of all.

    Args:
        pixels: of each location.
    """
    found: dict[bytes, Described] = {}
    for pair in pairs:
        picture = hashlib.sha256(pixels[pair.location].cpu().numpy().tobytes()).digest()
        first = found.get(picture)
        captions = pair.captions if first is None else (*first.captions, *pair.captions)
        found[picture] = replace(first or pair, captions=captions)
    return list(found.values())


def _measured(values: Counter[str]) -> bool:
    """Whether the values are numbers of which hardly any occurs twice, such as prices, and not
    numbers of classes."""
    seldom = sum(1 for count in values.values() if count == 1)
    return 2 * seldom > values.total() and all(map(NUMBER.fullmatch, values))


def _nothing(pairs: str, label: str, classes: Sequence[str] | None, seen: set[str]) -> str:
    if label not in seen and seen and label != RETRIEVAL:
        return f"--label {label}: no such attribute in {pairs}; it has {', '.join(sorted(seen))}"
    if classes:
        return f"--classes {', '.join(classes)}: no pair of {pairs} has one of these as its {label}"
    return f"{pairs}: no pair with {label} could be read; name other pairs or another --label"


def _classes(
    label: str,
    classes: Sequence[str] | None,
    values: set[str],
    templates: Sequence[str] | None,
    embedded: bool,
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """The classes' names and prompts."""
    names = tuple(dict.fromkeys(classes)) if classes else tuple(sorted(values))
    if embedded and not templates and label == "gender" and names == GENDERS:
        return names, _as_tuples(gender_prompts())
    if embedded and not templates and label == "skin_tone" and names == SKIN_TONES:
        return names, _as_tuples(skin_tone_prompts())
    return names, _prompts(names, templates or TEMPLATES)


def _prompts(names: Sequence[str], templates: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(t.replace("{}", name) for t in templates) for name in names)


def _as_tuples(prompts: list[list[str]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(texts) for texts in prompts)
