"""Folders of images without a table: classes in folders of their own, texts beside the images."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from PIL import Image

from features.errors import UserError
from features.pairs.base import Found, PairSource, Part, Record, Skipped, spans
from features.pairs.images import EXTENSIONS, decoded, file_content
from features.pairs.records import Wanted, make_pair, skipped
from features.pairs.several import SPLIT, SPLITS
from features.pairs.tables import DELIMITED, JSON_LINES, NAMED_ALONE, sampled_file
from features.pairs.text import UnknownEncoding, decode_text, printable

TEXTS = ("txt", "caption", "text")
"""Endings of the texts beside images, in small letters."""
LABEL, CAPTION = "label", "caption"
UNREAD = (".heic", ".heif", ".jxl")
"""Endings of photographs that cannot be decoded: each is listed as skipped."""
MOST_TABLES = 5
"""That a message names."""
LEFTOVERS = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume", "lost+found")
"""How folders begin in which systems keep what is theirs, such as small and deleted pictures."""


class FolderPairs(PairSource):
    """The images below a folder: `label/a.png` or `split/label/a.png`, in whatever folders that
    stand around them all, and with `a.txt` beside `a.png` its caption.

    Raises:
        UserError: there are no images, or no captions where they are needed.
    """

    def __init__(self, folder: Path, wanted: Wanted | None = None) -> None:
        self.folder = folder
        self.name = folder.resolve().name
        files = walk(folder)
        self.files = [name for name in files if name.lower().endswith((*EXTENSIONS, *UNREAD))]
        if not any(name.lower().endswith(EXTENSIONS) for name in self.files):
            raise UserError(f"{folder}: {_nothing_in(files)}")
        self._places = _Places.of(self.files)
        self._texts = _texts(files)
        described = any(_stem(name) in self._texts for name in self.files)
        labelled = any(LABEL in self._places.attributes(name) for name in self.files)
        names = [CAPTION] * described + [LABEL] * labelled
        names += [SPLIT] * bool(self._places.splits)
        wanted = wanted or Wanted()
        if wanted.captions_needed and wanted.caption is None and not described:
            raise UserError(
                f"{folder}: {len(self.files)} images, and no captions; list them in "
                "metadata.jsonl or metadata.csv, put a .txt beside each image"
                + (", or take the folders' names with --caption-column label" * (LABEL in names))
                + _tables_there(files)
            )
        self.columns = wanted.columns(names, str(folder), image_beside=True)

    def parts(self) -> list[Part]:
        return spans(self.name, len(self.files))

    def total(self) -> int:
        return len(self.files)

    def found(self, part: Part) -> Iterator[Found | Skipped]:
        for location in self.files[part.start : part.stop]:
            try:
                record = self._record(location)
            except UnknownEncoding as error:
                yield skipped(location, location, f"unreadable text: {error}")
                continue
            yield make_pair(record, self.columns, partial(self._content, location), location)

    def images(self, locations: Iterable[str]) -> Iterator[tuple[str, Image.Image]]:
        return decoded((location, self._content(location)) for location in locations)

    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.columns).encode())
        for name in self.files:
            path = os.path.join(self.folder, name)
            digest.update(printable(name).encode() + sampled_file(path))
            digest.update(self._text(name) or b"")
        return digest.hexdigest()

    def _record(self, location: str) -> Record:
        record = self._places.attributes(location)
        text = self._text(location)
        if text is not None:
            record[CAPTION] = decode_text(text)
        return record

    def _text(self, location: str) -> bytes | None:
        """What the text beside an image holds."""
        name = self._texts.get(_stem(location))
        return None if name is None else file_content(self.folder / name)

    def _content(self, location: str) -> bytes | None:
        return file_content(self.folder / location)


def walk(folder: Path, depth: int | None = None) -> list[str]:
    """Paths of all files below a folder, relative to it, sorted; without hidden ones, what systems
    leave, and those of models, stores and FeatureSpaces, which may lie among the data. Links to
    folders are followed, unless they lead back to where they are.

    Args:
        depth: folders that may lie between; None for any number.

    Raises:
        OSError: a folder cannot be listed.
    """
    found = []
    for where, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        inside = Path(where).relative_to(folder)
        if inside.parts and _is_an_artifact(files):
            folders.clear()
            continue
        if depth is not None and len(inside.parts) >= depth:
            folders.clear()
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith((".", *LEFTOVERS)) and not _leads_back(where, name)
        )
        found += [(inside / name).as_posix() for name in files if not name.startswith(".")]
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def _is_an_artifact(files: Iterable[str]) -> bool:
    """Whether a folder with these files is a model, a dictionary, a FeatureSpace, or a store, be it
    finished or not."""
    holds_weights = any(name.endswith(".safetensors") for name in files)
    return ("config.json" in files and holds_weights) or "extraction.json" in files


def _leads_back(where: str, name: str) -> bool:
    """Whether a folder is a link to one of those that it lies in."""
    path = os.path.join(where, name)
    if not os.path.islink(path):
        return False
    target = os.path.realpath(path)
    return os.path.commonpath([target, os.path.realpath(where)]) == target


def _nothing_in(files: Iterable[str]) -> str:
    """That a folder has no pairs, with what it has instead, and what to do."""
    endings = Counter(Path(name).suffix.lower() or "no ending" for name in files)
    there = ", ".join(f"{count} with {ending}" for ending, count in endings.most_common(5))
    advice = {
        ".arrow": "write data sets that save_to_disk saved by to_parquet",
        ".zip": "unpack the .zip",
        ".heic": "convert .heic pictures to .jpg",
    }
    return (
        "no metadata.jsonl, .csv or .parquet, no .tar file and no images in this folder "
        f"(files: {there or 'none'}); images end in {', '.join(EXTENSIONS)}"
        + "".join(f"; {words}" for ending, words in advice.items() if ending in endings)
    )


def _tables_there(files: Iterable[str]) -> str:
    """What to do where files, which are read where they are named alone, may list the images."""
    endings = (*JSON_LINES, *DELIMITED, *NAMED_ALONE)
    about = ("readme", "license", "licence")
    tables = [
        name
        for name in files
        if name.lower().endswith(endings) and not name.rpartition("/")[2].lower().startswith(about)
    ]
    if not 0 < len(tables) <= MOST_TABLES:
        return ""
    return f"; or name the table that lists them ({', '.join(tables)})"


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _texts(files: Iterable[str]) -> dict[str, str]:
    """The text files by the names of the images that they describe, without or with the images'
    own endings (`a.txt` or `a.png.txt`)."""
    texts = {}
    for name in files:
        stem, _, ending = name.rpartition(".")
        if ending.lower() in TEXTS:
            texts[_stem(stem) if stem.lower().endswith(EXTENSIONS) else stem] = name
    return texts


@dataclass(frozen=True)
class _Places:
    """What the folders that pictures lie in say of them.

    above: how many folders stand around all pictures (`data/cat/a.png`, `data/dog/b.png`).
    splits: the folders below these that are splits.
    within: how many stand around all pictures below the splits.
    """

    above: int
    splits: frozenset[str]
    within: int

    @classmethod
    def of(cls, files: Iterable[str]) -> _Places:
        placed = [name.split("/")[:-1] for name in files]
        above = _around_all(placed)
        below = [folders[above:] for folders in placed]
        splits = _splits(below)
        labels = [folders[folders[0] in splits :] for folders in below if folders]
        return cls(above, splits, _around_all(labels))

    def attributes(self, name: str) -> Record:
        """A picture's split and label, as far as it has them."""
        folders = name.split("/")[:-1][self.above :]
        found: Record = {}
        if folders and folders[0] in self.splits:
            found[SPLIT] = folders.pop(0)
        folders = folders[self.within :]
        return found | ({LABEL: folders[0]} if folders else {})


def _around_all(placed: list[list[str]]) -> int:
    """How many folders in front all pictures share, so that they are no labels; not splits, nor
    those in which half or more of their pictures lie themselves.

    Args:
        placed: the folders of each picture; those that lie in none don't count.
    """
    count = 0
    while inside := [folders for folders in placed if len(folders) > count]:
        shared = {folders[count] for folders in inside}
        deeper = sum(len(folders) > count + 1 for folders in inside)
        if len(shared) > 1 or shared.pop().lower() in SPLITS or 2 * deeper <= len(inside):
            break
        count += 1
    return count


def _splits(placed: Iterable[list[str]]) -> frozenset[str]:
    """The folders that are splits: all of the first ones where all are called so, else those called
    so that hold folders of images themselves."""
    placed = [folders for folders in placed if folders]
    named = {folders[0] for folders in placed if folders[0].lower() in SPLITS}
    if named == {folders[0] for folders in placed}:
        return frozenset(named)
    return frozenset(folders[0] for folders in placed if len(folders) > 1 and folders[0] in named)
