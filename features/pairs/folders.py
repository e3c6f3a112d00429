"""Folders of images without a table: classes in folders of their own, texts beside the images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from functools import cached_property, partial
from pathlib import Path

from PIL import Image

from features.errors import UserError
from features.pairs.base import Found, PairSource, Part, Record, Skipped, spans
from features.pairs.images import EXTENSIONS, decoded, file_content
from features.pairs.records import Wanted, make_pair, skipped
from features.pairs.several import SPLIT
from features.pairs.tables import sampled_file
from features.pairs.text import UnknownEncoding, decode_text, printable

SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")
LABEL, CAPTION = "label", "caption"


class FolderPairs(PairSource):
    """The images below a folder: `label/a.png` or `split/label/a.png`, and with `a.txt` beside
    `a.png` its caption.

    Raises:
        UserError: there are no images, or no captions where they are needed.
    """

    def __init__(self, folder: Path, wanted: Wanted | None = None) -> None:
        self.folder = folder
        self.name = folder.resolve().name
        self.files = [name for name in _walk(folder) if name.lower().endswith(EXTENSIONS)]
        self.splits = _are_splits(self.files)
        described = any(Path(folder, name).with_suffix(".txt").is_file() for name in self.files)
        names = [CAPTION] * described + [LABEL] * any("/" in name for name in self.files)
        names += [SPLIT] * self.splits
        wanted = wanted or Wanted()
        if wanted.captions_needed and wanted.caption is None and not described:
            raise UserError(
                f"{folder}: {len(self.files)} images, and no captions; list them in "
                "metadata.jsonl or metadata.csv, put a .txt beside each image"
                + (", or take the folders' names with --caption-column label" * (LABEL in names))
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
            digest.update(file_content(Path(path).with_suffix(".txt")) or b"")
        return digest.hexdigest()

    def _record(self, location: str) -> Record:
        folders = location.split("/")[:-1]
        record: Record = {}
        if self.splits:
            record[SPLIT] = folders.pop(0)
        if folders:
            record[LABEL] = folders[0]
        text = file_content((self.folder / location).with_suffix(".txt"))
        if text is not None:
            record[CAPTION] = decode_text(text)
        return record

    def _content(self, location: str) -> bytes | None:
        return file_content(self.folder / location)


def _walk(folder: Path) -> list[str]:
    """Paths of all files below a folder, relative to it, sorted; without hidden ones."""
    found = []
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        inside = Path(where).relative_to(folder)
        found += [(inside / name).as_posix() for name in files if not name.startswith(".")]
    return sorted(found)


def _are_splits(files: Iterable[str]) -> bool:
    """Whether the first folders of all paths are the names of splits."""
    return all(name.split("/")[0].lower() in SPLITS and "/" in name for name in files)
