"""The picture that a text stands for: by a path or a file URL, or written out in base64."""

from __future__ import annotations

import base64
import binascii
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import islice
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
SHOWN = 80
"""Letters of a name that an error shows."""


def named_content(folder: str, name: str) -> bytes | None:
    """The content of the image file; None where there is none."""
    if name.startswith(DATA_URL):
        return _of_data_url(name)
    for path in possible_paths(folder, name) if len(name) <= LONGEST_PATH else ():
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


def possible_paths(folder: str, name: str) -> Iterator[str]:
    """Where the file of a name may lie, however it was written: with a Windows path's backslashes,
    in another Unicode form (macOS has one of its own), between blanks, from the home folder (~), or
    without the picture's ending."""
    name = path_named(name)
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
    return (os.path.join(folder, form) for form in dict.fromkeys(forms))


def folder_of_names(table: Path, names: Iterable[str]) -> str:
    """The folder that a table's names of pictures are relative to: the table's own. Where none of
    the first names lies there, it is the nearest in which any does: where a linked table really
    lies, a folder within, the folder above, a folder within that; unless several are equally near.

    Args:
        names: of the table's pictures; the first ones are looked at.
    """
    own = str(table.parent)
    tried = [name for name in islice(names, TRIED_NAMES) if not is_picture(name)]

    def holds_any(folder: str) -> bool:
        return any(map(os.path.isfile, (p for name in tried for p in possible_paths(folder, name))))

    if not tried or holds_any(own):
        return own
    real = os.path.dirname(os.path.realpath(table))
    above = os.path.dirname(real)
    for near in ([real], _folders_in(real), [above], _folders_in(above)):
        fitting = [folder for folder in near if holds_any(folder)]
        if fitting:
            return fitting[0] if len(fitting) == 1 else own
    return own


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
