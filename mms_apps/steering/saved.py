"""Steerings on disk: JSON that says what was edited, in which FeatureSpace, and drawn from what."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from PIL import Image

from features.errors import UserError
from features.space.space import FeatureSpace
from mms_apps.steering.values import seed_of

if TYPE_CHECKING:
    from mms_apps.steering.edits import Steering

Kind = TypeVar("Kind")
SCHEMA = 2
READ = (1, 2)


@dataclass(frozen=True)
class Source:
    """What a steered picture was drawn from.

    Args:
        prompt: of the picture.
        image: file name of the reference, None without one.
        image_sha256: of the reference's pixels.
        generator: as `SteeredGenerator.load` takes it.
        seed: of the noise and of the prior.
        steps: of denoising.
        guidance: scale of the classifier-free guidance.

    Raises:
        UserError: the seed is none.
    """

    prompt: str = ""
    image: str | None = None
    image_sha256: str | None = None
    generator: str = "embedded"
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", seed_of(self.seed))

    @classmethod
    def read(cls, path: Path) -> Source | None:
        """The source in a file of saved edits, None where it holds none.

        Raises:
            UserError: the file cannot be read as saved edits.
        """
        return cls.of(read_record(path), str(path))

    @classmethod
    def of(cls, record: Any, where: str) -> Source | None:
        """The source in saved edits, None where they hold none.

        Raises:
            UserError: it is damaged.
        """
        found = record.get("source") if isinstance(record, dict) else None
        try:
            return filled(cls, found) if found else None
        except TypeError as error:
            raise UserError(f"{where}: not saved edits ({error}); save them again") from None
        except UserError as error:
            raise UserError(f"{where}: {error}") from None


def pixels_sha256(image: Image.Image) -> str:
    """What a reference is known by: its size and pixels, whatever its file."""
    rgb = image.convert("RGB")
    return hashlib.sha256(f"{rgb.size}".encode() + rgb.tobytes()).hexdigest()


def steering_record(
    steering: Steering, space: FeatureSpace, source: Source | None = None
) -> dict[str, Any]:
    """A steering as JSON holds it, with the fingerprint of the space's dictionary."""
    return {
        "schema": SCHEMA,
        "space": space.config.dictionary_fingerprint,
        "encoder": space.config.encoder,
        **dataclasses.asdict(steering),
        "source": source and dataclasses.asdict(source),
    }


def read_record(path: Path) -> Any:
    """The JSON of saved edits.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as saved edits ({error})") from None


def check_record(record: Any, space: FeatureSpace, where: str) -> None:
    """Raise a UserError where a record is no steering, or one of another space."""
    if not isinstance(record, dict) or record.get("schema") not in READ:
        raise UserError(f"{where}: no saved edits of schema {READ[-1]}; save them again")
    if record.get("space") != space.config.dictionary_fingerprint:
        raise UserError(
            f"{where}: made for another FeatureSpace (of {record.get('encoder')}); its feature "
            "numbers mean something else here"
        )


def filled(kind: type[Kind], record: Any) -> Kind:
    """A dataclass from the JSON of its fields, each of its type.

    Raises:
        TypeError: a field is missing, unknown, or of another type.
    """
    if not isinstance(record, dict):
        raise TypeError(f"{record!r} is no JSON object")
    hints = get_type_hints(kind)
    for name, value in record.items():
        if name in hints and not _fits(value, hints[name]):
            raise TypeError(f"{name} {value!r} is of another type")
    return kind(**{n: tuple(v) if isinstance(v, list) else v for n, v in record.items()})


def _fits(value: Any, hint: Any) -> bool:
    """Whether JSON's value is one of a type: of those that the dataclasses here have."""
    inner = get_args(hint)
    if get_origin(hint) is UnionType:
        return any(_fits(value, one) for one in inner)
    if get_origin(hint) is Literal:
        return value in inner
    if get_origin(hint) is tuple:
        return isinstance(value, list | tuple) and all(_fits(one, inner[0]) for one in value)
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(
            value, bool
        )
    return isinstance(value, hint)
