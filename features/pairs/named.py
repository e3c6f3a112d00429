"""The picture that a text stands for: by a path or a file URL, or written out in base64."""

from __future__ import annotations

import base64
import binascii
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname

from features.pairs.images import EXTENSIONS, file_content

FILE_URL = "file:"
REMOTE = ("http://", "https://", "s3://", "gs://", "ftp://")
DATA_URL = "data:"
LONGEST_PATH = 4096
BASE64 = re.compile(r"[A-Za-z0-9+/\s]{64,}={0,2}\s*")
OMITTED = (".jpg", ".jpeg", ".png")
"""Endings that names of pictures are written without."""
TRIED_NAMES = 20
"""Of the first ones, by which their folder is found."""
ABSOLUTE = re.compile(r"[/\\]|[A-Za-z]:[/\\]")
SHOWN = 80
"""Letters of a name that an error shows."""


@dataclass(frozen=True)
class Place:
    """Where a table's pictures lie.

    folder: that names are relative to.
    cut: how many parts absolute names lose in front, where the table was written elsewhere; 0 where
        they are right as they are.
    """

    folder: str
    cut: int = 0

    def name(self, written: str) -> str:
        """A name, relative to the folder where it is cut."""
        if not self.cut or not ABSOLUTE.match(written):
            return written
        return "/".join(_parts(written)[self.cut :])


def named_content(place: Place, name: str) -> bytes | None:
    """The content of the image file; None where there is none."""
    if name.startswith(DATA_URL):
        return _of_data_url(name)
    for path in possible_paths(place, name) if len(name) <= LONGEST_PATH else ():
        content = file_content(path)
        if content is not None:
            return content
    return _of_base64(name) if is_picture(name) else None


def is_picture(name: str) -> bool:
    """Whether a text is no name but the picture itself, as data URL or base64."""
    return name.startswith(DATA_URL) or BASE64.fullmatch(name) is not None


def path_named(name: str) -> str:
    """The path that a file URL stands for; other names as they are."""
    try:
        return url2pathname(urlsplit(name).path) if name.startswith(FILE_URL) else name
    except ValueError:  # no URL
        return name


def possible_paths(place: Place, name: str) -> Iterator[str]:
    """Where the file of a name may lie, however it was written: with a Windows path's backslashes,
    in another Unicode form (macOS has one of its own), between blanks, from the home folder (~), or
    without the picture's ending."""
    name = place.name(path_named(name))
    forms = [
        name,
        name.replace("\\", "/"),
        unicodedata.normalize("NFC", name),
        unicodedata.normalize("NFD", name),
        name.strip(),
        os.path.expanduser(name),
    ]
    if not name.lower().endswith(EXTENSIONS):
        forms += [name + ending for ending in OMITTED]
    return (os.path.join(place.folder, form) for form in dict.fromkeys(forms))


def place_of_names(table: Path, names: Iterable[str]) -> Place:
    """Where a table's pictures lie: in the table's own folder. Where none of the first names lies
    there, it is the nearest in which any does: where a linked table really lies, a folder within,
    the folder above, a folder within that; unless several are equally near. Absolute names of which
    there is none, as of another computer, are looked for by their last parts, but not within the
    folder above.

    Args:
        names: of the table's pictures; the first ones are looked at.
    """
    own = Place(str(table.parent))
    tried = [name for name in islice(names, TRIED_NAMES) if not is_picture(name)]

    def holds_any(place: Place) -> bool:
        names = {name: place.name(path_named(name)) for name in tried}
        told_apart = len(set(names.values())) == len(names)
        return told_apart and any(
            map(os.path.isfile, (p for name in tried for p in possible_paths(place, name)))
        )

    if not tried or holds_any(own):
        return own
    real = os.path.dirname(os.path.realpath(table))
    above = os.path.dirname(real)
    near = [[real], _folders_in(real), [above], _folders_in(above)]
    cuts = [0]
    if all(ABSOLUTE.match(path_named(name)) for name in tried):
        near = near[:3]
        cuts = list(range(1, min(len(_parts(path_named(name))) for name in tried)))
    for cut, folders in product(cuts, near):
        fitting = [place for place in (Place(f, cut) for f in folders) if holds_any(place)]
        if fitting:
            return fitting[0] if len(fitting) == 1 else own
    return own


def _parts(name: str) -> list[str]:
    """The parts of a path, be it Windows' or not."""
    return [part for part in name.replace("\\", "/").split("/") if part]


def _folders_in(folder: str) -> list[str]:
    """The folders within one, sorted."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.path for entry in entries if entry.is_dir())
    except OSError:
        return []


def why_missing(name: str) -> str:
    """The reason why a name gave no picture."""
    shown = name if len(name) <= SHOWN else name[:SHOWN] + " ..."
    if name.lower().startswith(REMOTE):
        return f"missing image file: {shown} is a URL; download the pictures (img2dataset does)"
    return f"missing image file: {shown}"


def _of_data_url(name: str) -> bytes | None:
    head, comma, data = name.partition(",")
    if not comma:
        return None
    return _of_base64(data) if head.endswith(";base64") else unquote_to_bytes(data)


def _of_base64(text: str) -> bytes | None:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return None
