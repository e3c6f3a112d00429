"""What one page can show of FeatureSpaces of one's own, with pairs and a generator or without."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from features.encoders.fingerprint import same_encoder
from features.errors import UserError
from features.pairs.drawn import DrawnPairs, draw_pairs, halves
from features.pairs.open import open_pairs
from features.pairs.records import SEPARATOR
from features.space.space import FeatureSpace

if TYPE_CHECKING:
    from features.pairs.base import Described
    from mms_apps.attributes.workbench import Workbench
    from mms_apps.robustness.session import Session
    from mms_apps.steering.generator import SteeredGenerator

PAIRS = 1000
"""Pairs that are drawn at random where there are more: a page is to answer soon."""
LEAST = 10
"""Pairs that each of two values of an attribute needs for a model to be fitted and tried."""
MOST_VALUES = 20
"""An attribute of more values is an id or a text rather than a label."""
ATTRIBUTES = 6
"""Attributes that are offered, the first in the order of the pairs' columns."""
NO_LABELS = ("split", "credit", "licence", "license")
"""Attributes that say nothing about what an image shows."""
NEEDS_PAIRS = (
    "{} needs pairs. Start again with `--pairs`: a folder of images with metadata, a folder of "
    "classes, a table, or .tar files."
)
NEEDS_GENERATOR = (
    "Steering draws pictures, for which it needs a generator. Start again with `--generator`: the "
    "folder or the hub id of a Stable unCLIP pipeline whose image encoder is the space's, or "
    "`embedded` for spaces of the encoder `embedded-ssl`."
)


@dataclass(frozen=True)
class FrontDoor:
    """What the page shows.

    spaces: by what each is called, all of one encoder; the apps take the first.
    workbench, drawer, session: the attributes, steering and robustness apps, or what each needs, in
        words (Markdown).
    labels: to tell apart in an attack, by commas; "" where no attribute names any.
    """

    spaces: dict[str, FeatureSpace]
    workbench: Workbench | str
    drawer: SteeredGenerator | str
    session: Session | str
    labels: str = ""


def open_front_door(
    names: Sequence[str],
    work: Path,
    *,
    pairs: str | None = None,
    generator: str | None = None,
    encoder: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    device: str = "auto",
) -> FrontDoor:
    """Open spaces with what there is beside them.

    Args:
        names: of FeatureSpaces, as `FeatureSpace.load` takes them.
        work: folder for embeddings.
        pairs: as `open_pairs` takes them; with labels as attributes for the attributes app.
        generator: as `SteeredGenerator.load` takes it.
        encoder: of the spaces, where it has moved.

    Raises:
        UserError: a space cannot be loaded, they are of different encoders, no pair or encoder
            can be read, or the generator belongs to another encoder.
    """
    spaces = load_of_one_encoder(names, encoder, device)
    first = spaces[names[0]]
    workbench: Workbench | str = NEEDS_PAIRS.format("The attributes app")
    session: Session | str = NEEDS_PAIRS.format("The robustness app")
    labels = ""
    if pairs is not None:
        from mms_apps.robustness.session import Session

        drawn = draw_pairs(
            open_pairs(
                pairs,
                image_column=image_column,
                caption_column=caption_column,
                captions_needed=False,
            ),
            PAIRS,
        )
        session = Session.of_pairs(first, drawn)
        try:
            values = labelled_attributes(drawn.described, pairs)
        except UserError as error:
            workbench = f"The attributes app needs labels. {error}."
        else:
            workbench = _workbench(first, drawn, tuple(values), work)
            labels = ", ".join(v for v in next(iter(values.values())) if "," not in v)
    if encoder is not None or pairs is not None:
        first.encoder  # noqa: B018  (else the page would say only later that it is none of theirs)
    drawer: SteeredGenerator | str = NEEDS_GENERATOR
    if generator is not None:
        from mms_apps.steering.generator import SteeredGenerator

        drawer = SteeredGenerator.load(generator, first, device)
    return FrontDoor(spaces, workbench, drawer, session, labels)


def load_of_one_encoder(
    names: Sequence[str], encoder: str | None, device: str
) -> dict[str, FeatureSpace]:
    """Spaces by their names.

    Raises:
        UserError: one cannot be loaded, or they are of different encoders.
    """
    spaces: dict[str, FeatureSpace] = {}
    for name in dict.fromkeys(names):
        space = FeatureSpace.load(name, device=device, encoder=encoder)
        for other, loaded in spaces.items():
            ours, theirs = loaded.config, space.config
            if not same_encoder(ours.encoder_fingerprint, theirs.encoder_fingerprint):
                raise UserError(
                    f"{other} and {name}: spaces of different encoders ({ours.encoder} and "
                    f"{theirs.encoder}); open each alone, or compare their features: mms compare"
                )
        spaces[name] = space
    return spaces


def labelled_attributes(described: Sequence[Described], pairs: str) -> dict[str, list[str]]:
    """The attributes by which a model can be fitted, with their values, the most frequent first.

    Raises:
        UserError: there is none.
    """
    names = list(dict.fromkeys(name for one in described for name in one.attributes))
    found: dict[str, list[str]] = {}
    for name in names:
        counts = Counter(value for one in described if (value := one.attributes.get(name)))
        common = [value for value, count in counts.most_common() if count >= LEAST]
        lists = any(SEPARATOR in value for value in counts)
        if name.lower() in NO_LABELS or lists or len(common) < 2 or len(counts) > MOST_VALUES:
            continue
        found[name] = common
    if not found:
        have = f"has {', '.join(names)}" if names else "has no attribute at all"
        raise UserError(
            f"{pairs} {have}; give pairs with an attribute of 2 to {MOST_VALUES} values, at least "
            f"two of which {LEAST} pairs have"
        )
    return dict(list(found.items())[:ATTRIBUTES])


def _workbench(
    space: FeatureSpace, drawn: DrawnPairs, attributes: tuple[str, ...], work: Path
) -> Workbench:
    """A workbench that fits on one half of the pairs and tries on the other."""
    from mms_apps.attributes.workbench import Workbench

    train, test = halves(drawn)
    return Workbench(space, train, test, attributes, attributes, work / "attributes")
