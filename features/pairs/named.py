"""The picture that a text stands for: by a path or a file URL, or written out in base64."""

from __future__ import annotations

import base64
import binascii
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice, product
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname

from features.pairs.images import EXTENSIONS, file_content
from features.pairs.several import is_split

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
BESIDE = 3
"""Levels of `_levels` at which absolute names of another computer are looked for."""
OF_PICTURES = re.compile("image|img|photo|picture|jpe?g", re.IGNORECASE)
"""In the names of folders beside a table's in which pictures' folders are looked for."""
MOST_FOLDERS = 100
"""In which each picture is looked for."""
LISTED_FOLDERS = 256
"""Whose names are kept in memory."""
LOOKED = "beside the table, in the folders around it and in the working directory"
SHOWN = 80
"""Letters of a name that an error shows."""


@dataclass(frozen=True)
class Place:
    """Where a table's pictures lie.

    folders: that names are relative to, in groups: a name is looked for in the first group, then in
        the next.
    cut: how many parts absolute names lose in front, where the table was written elsewhere; 0 where
        they are right as they are.
    known: whether any of the names lies there.
    """

    table: Path
    folders: tuple[tuple[str, ...], ...]
    cut: int = 0
    known: bool = True

    def name(self, written: str) -> str:
        """A name, relative to the folder where it is cut."""
        if not self.cut or not ABSOLUTE.match(written):
            return written
        return "/".join(_parts(written)[self.cut :])

    def files(self, written: str) -> list[str]:
        """The files of a name: none where it is missing, several where it is ambiguous."""
        name = self.name(path_named(written))
        if len(name) > LONGEST_PATH:
            return []
        for group in self.folders:
            found = [file for folder in group if (file := _file(folder, name)) is not None]
            if found:
                return list({os.path.realpath(file): file for file in found}.values())
        return []


def named_content(place: Place, name: str) -> bytes | None:
    """The content of the image file; None where there is none."""
    if name.startswith(DATA_URL):
        return _of_data_url(name)
    files = place.files(name)
    if files:
        return file_content(files[0]) if len(files) == 1 else None
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


def _file(folder: str, name: str) -> str | None:
    """The file of a name in a folder, however it was written: with a Windows path's backslashes, in
    another Unicode form (macOS has one of its own), between blanks, from the home folder (~),
    without the picture's ending, or, where that tells one file, in other letters' case."""
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
    forms = list(dict.fromkeys(forms))
    paths = (os.path.join(folder, form) for form in forms)
    in_another_case = (path for form in forms if (path := _in_another_case(folder, form)))
    return next(filter(os.path.isfile, chain(paths, in_another_case)), None)


def _in_another_case(folder: str, name: str) -> str | None:
    """The path of a relative name whose parts are written in another case, where only one is."""
    if os.path.isabs(name):
        return None
    path = folder
    for part in name.split("/"):
        inner = os.path.join(path, part)
        if not os.path.lexists(inner):
            try:
                alike = _by_small_letters(path, os.stat(path).st_mtime_ns).get(part.lower(), ())
            except (OSError, ValueError):
                return None
            if len(alike) != 1:
                return None
            inner = os.path.join(path, alike[0])
        path = inner
    return path


@lru_cache(maxsize=LISTED_FOLDERS)
def _by_small_letters(folder: str, changed: int) -> dict[str, list[str]]:
    """What a folder holds, by its names in small letters.

    Args:
        changed: when it did, so that it is listed again.
    """
    found: dict[str, list[str]] = {}
    for name in os.listdir(folder):
        found.setdefault(name.lower(), []).append(name)
    return found


def place_of_names(table: Path, names: Iterable[str]) -> Place:
    """Where a table's pictures lie: in the table's own folder. Where none of the first names lies
    there, the nearest in which any does: where a linked table really lies, the folders within, the
    folder above, those within that; then two folders below the table's, or below one for pictures
    in the folder above; then the working directory, and for names with folders in front those
    further up. Of equally near ones each name is looked for in all, first in those that the table
    is called after (`train.csv`, `captions_val2017.json`). Absolute names of which there is none,
    as of another computer, are looked for by their last parts, but not beyond the folder above.

    Args:
        names: of the table's pictures; the first ones are looked at.
    """
    own = (str(table.parent),)
    tried = [name for name in islice(names, TRIED_NAMES) if not is_picture(name)]

    def holds_any(folder: str, cut: int = 0) -> bool:
        place = Place(table, ((folder,),), cut)
        told_apart = len({place.name(path_named(name)) for name in tried}) == len(set(tried))
        return told_apart and any(map(place.files, tried))

    if not tried or holds_any(*own):
        return Place(table, (own,))
    paths = [path_named(name) for name in tried]
    if all(map(ABSOLUTE.match, paths)):
        cuts = range(1, min(len(_parts(path)) for path in paths))
        levels = list(islice(_levels(table), BESIDE))
    else:
        cuts = range(1)
        levels = [*_levels(table), ([os.curdir], False)]
        if any(map(_has_folder, paths)):
            above = Path(os.path.realpath(table)).parent.parent
            levels += [([str(folder)], False) for folder in above.parents]
    for cut, (folders, within) in product(cuts, levels):
        fitting = [folder for folder in folders if holds_any(folder, cut)]
        if fitting:
            keeps_all = within and len(folders) <= MOST_FOLDERS
            kept = folders if keeps_all else _with_other_splits(fitting, folders)
            return Place(table, _in_order(table, kept), cut)
    return Place(table, (own,), known=False)


def _levels(table: Path) -> Iterator[tuple[list[str], bool]]:
    """Folders near a table, those that are equally near together, the nearest first; and whether
    they are the table's alone, so that whatever they hold belongs to it."""
    real = os.path.dirname(os.path.realpath(table))
    above = os.path.dirname(real)
    inner, beside = _folders_in(real), _folders_in(above)
    yield [real], True
    yield inner, True
    yield [above], False
    yield beside, False
    yield [folder for one in inner for folder in _folders_in(one)], True
    pictures = [folder for folder in beside if OF_PICTURES.search(os.path.basename(folder))]
    yield [folder for one in pictures for folder in _folders_in(one)], False


def _has_folder(name: str) -> bool:
    return len(_parts(name)) > 1


def _with_other_splits(fitting: list[str], folders: list[str]) -> list[str]:
    """Folders that hold a table's pictures, and the other splits beside where they are splits."""
    splits = [folder for folder in folders if is_split(os.path.basename(folder))]
    return [f for f in folders if f in fitting or (f in splits and set(fitting) & set(splits))]


def _in_order(table: Path, folders: list[str]) -> tuple[tuple[str, ...], ...]:
    """The folders that the table is called after, then the others."""
    words = re.split(r"[\W_]+", table.name.lower())
    named = [folder for folder in folders if os.path.basename(folder).lower() in words]
    groups = (tuple(named), tuple(folder for folder in folders if folder not in named))
    return tuple(filter(None, groups))


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


def why_missing(place: Place, name: str) -> str:
    """The reason why a name gave no picture."""
    shown = name if len(name) <= SHOWN else name[:SHOWN] + " ..."
    if name.lower().startswith(REMOTE):
        return f"missing image file: {shown} is a URL; download the pictures (img2dataset does)"
    if name.startswith(DATA_URL):
        return f"missing image file: {shown}"
    beside = str(place.table.parent)
    files = place.files(name)
    if len(files) > 1:
        where = " or ".join(os.path.relpath(file, beside) for file in files[:2])
        return f"ambiguous image file: {shown} may be {where}; put its folder before its name"
    if not place.known:
        return f"missing image file: {shown}; looked {LOOKED}"
    folders = [os.path.relpath(folder, beside) for group in place.folders for folder in group]
    if folders == ["."]:
        return f"missing image file: {shown}"
    more = f" and {len(folders) - 3} more" if len(folders) > 3 else ""
    return f"missing image file: {shown}; looked in {', '.join(folders[:3])}{more}"


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
