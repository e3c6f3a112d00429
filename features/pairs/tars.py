"""Webdataset tar files, read by Python's own tarfile: nothing in a name is ever run or fetched."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tarfile
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import IO

from PIL import Image

from features.errors import UserError, first_line
from features.pairs.base import Found, PairSource, Part, Record, Skipped, sampled
from features.pairs.folders import TEXTS
from features.pairs.images import EXTENSIONS, decoded
from features.pairs.packed import packing_of, unpack
from features.pairs.records import NO_CAPTION, Wanted, make_pair, record_captions, skipped
from features.pairs.remote import is_url, local_file, path_of, version
from features.pairs.stand_ins import BEGINNING, stand_in
from features.pairs.text import UnknownEncoding, decode_text, printable

ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
IMAGES = tuple(extension.removeprefix(".") for extension in EXTENSIONS)
LABEL = "cls"
"""Ending of files that hold the number of a picture's class, and the attribute that it becomes."""
NO_TEXTS = (
    f"no .{', .'.join(TEXTS)} or .json in the archive; unpack it where a table or folders' names "
    "hold the captions"
)
MAX_MEMBER = 1 << 30
"""Bytes of a file in an archive; a larger one is no picture."""
CONNECTIONS = 16
"""Files that are looked at together."""


@dataclass(frozen=True)
class Member:
    """One regular file in an archive: where its bytes are."""

    name: str
    start: int
    size: int

    @property
    def stem(self) -> str:
        return self.name.rsplit(".", 1)[0]

    @property
    def ending(self) -> str:
        return self.name.rsplit("/", 1)[-1].rpartition(".")[2].lower()


@dataclass
class Sample:
    """The files of an archive that belong together."""

    key: str
    images: list[Member] = field(default_factory=list)
    texts: list[Member] = field(default_factory=list)
    records: list[Member] = field(default_factory=list)
    labels: list[Member] = field(default_factory=list)

    def add(self, member: Member) -> None:
        kind = {**dict.fromkeys(IMAGES, self.images), **dict.fromkeys(TEXTS, self.texts)}
        kind[LABEL] = self.labels
        kind.get(member.ending, self.records).append(member)

    @property
    def members(self) -> list[Member]:
        return [*self.images, *self.texts, *self.records, *self.labels]


class TarPairs(PairSource):
    """Tar files with an image and its .txt (the caption), .json (captions, attributes) or .cls (its
    class), of one name, wherever in the archive they stand.

    A file behind a URL is downloaded when it is read, and removed afterwards.

    Args:
        files: paths or URLs, at least one.
    """

    def __init__(self, files: list[str], name: str, wanted: Wanted | None = None) -> None:
        self.name = name
        self.wanted = wanted or Wanted()
        paths = {file: path_of(file) for file in files}
        parent = os.path.commonpath([path.parent for path in paths.values()])
        self.files: dict[str, str] = {}
        alike: Counter[str] = Counter()
        for file, path in paths.items():
            name = path.relative_to(parent).as_posix()
            alike[name] += 1  # URLs that their queries or ports tell apart
            self.files[name if alike[name] == 1 else f"{name}.{alike[name]}"] = file

    def parts(self) -> list[Part]:
        return [Part(name, 0, -1) for name in self.files]

    def found(self, part: Part) -> Iterator[Found | Skipped]:
        """As in `PairSource`; an image can be decoded until the next record is asked for.

        Raises:
            UserError: a file or a URL cannot be read.
        """
        with self._opened(part.name) as file:
            samples, damage = _samples(file)
            described = any(sample.texts or sample.records for sample in samples)
            for sample in samples:
                found = self._pair(file, sample, f"{part.name}/{sample.key}")
                if not described and isinstance(found, Skipped) and found.reason == NO_CAPTION:
                    found = replace(found, reason=f"{NO_CAPTION}: {NO_TEXTS}")
                yield found
            for reason in damage:
                yield skipped(part.name, part.name, f"unreadable tar file: {reason}")

    def require_attributes(self, attributes: Sequence[str]) -> None:
        """As in `PairSource`; not of URLs, which would be downloaded once more for it."""
        if not any(map(is_url, self.files.values())):
            super().require_attributes(attributes)

    def images(self, locations: Iterable[str]) -> Iterator[tuple[str, Image.Image]]:
        keys_of: dict[str, set[str]] = defaultdict(set)
        for location in locations:
            for name in self.files:
                if location.startswith(name + "/"):
                    keys_of[name].add(location.removeprefix(name + "/"))
        for name, keys in keys_of.items():
            with self._opened(name) as file:
                yield from decoded(
                    (f"{name}/{sample.key}", _content(file, sample.images[0]))
                    for sample in _samples(file)[0]
                    if sample.key in keys and sample.images
                )

    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        """Of files: over all texts and samples of the images. Of URLs: over size, first bytes, and
        the version that the server names."""
        digest = hashlib.sha256(repr(self.wanted).encode())
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            prints = pool.map(self._print_of, self.files)
            for name, own in zip(self.files, prints, strict=True):
                digest.update(f"{printable(name)}/".encode() + own)
        return digest.hexdigest()

    def _print_of(self, name: str) -> bytes:
        where = self.files[name]
        if is_url(where):
            return version(where)
        digest = hashlib.sha256()
        with self._opened(name) as file:
            samples, damage = _samples(file)
            digest.update(repr(damage).encode())
            for sample in samples:
                for member in sample.members:
                    digest.update(printable(member.name).encode())
                    if member.ending in IMAGES:
                        digest.update(sampled(file, member.start, member.size))
                    else:
                        digest.update(_content(file, member))
        return digest.digest()

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[IO[bytes]]:
        """The archive's bytes, unpacked where it is compressed.

        Raises:
            UserError: the file or the URL cannot be read.
        """
        with local_file(self.files[name]) as path, contextlib.ExitStack() as stack:
            try:
                file: IO[bytes] = stack.enter_context(path.open("rb"))
                if (packing := packing_of(file)) is not None:
                    file = stack.enter_context(_unpacked(path, packing))
            except (OSError, EOFError) as error:
                raise UserError(
                    f"{name}: cannot be read ({first_line(error)}); check or remove it"
                ) from None
            yield file

    def _pair(self, file: IO[bytes], sample: Sample, location: str) -> Found | Skipped:
        for members in (sample.images, sample.records):
            names = [member.name for member in members]
            if len(set(names)) < len(names):
                reason = f"ambiguous sample: {len(names)} files named {names[0]}"
                return skipped(location, location, reason)
        if not sample.images:
            reason = f"missing image file: none of .{', .'.join(IMAGES)}"
            return skipped(location, location, reason)
        record: Record = {"id": sample.key}
        try:
            for label in sample.labels[:1]:
                record[LABEL] = decode_text(_content(file, label))
            if sample.records:
                parsed = json.loads(_content(file, sample.records[0]))
                record |= parsed if isinstance(parsed, dict) else {}
            texts = [decode_text(_content(file, member)) for member in sample.texts]
        except UnknownEncoding as error:
            return skipped(location, location, f"unreadable text: {error}")
        except (ValueError, RecursionError) as error:
            return skipped(location, location, f"unreadable metadata row: {first_line(error)}")
        columns = self.wanted.of_record(record, texts_beside=bool(texts))
        if texts and not record_captions(record, columns.captions):
            record[columns.captions[0]] = texts
        return make_pair(record, columns, partial(_content, file, sample.images[0]), location)


def _samples(file: IO[bytes]) -> tuple[list[Sample], list[str]]:
    """An archive's samples in the order of their first files, and what is damaged, in words."""
    members, damage = _members(file)
    groups: dict[str, list[Member]] = defaultdict(list)
    for member in members:
        folder, slash, name = member.name.rpartition("/")
        groups[folder + slash + name.split(".")[0]].append(member)
    samples: list[Sample] = []
    for key, group in groups.items():
        # Webdataset's key ends at the name's first dot; where that joins several images, the dots
        # belong to the names (photo.1.png, photo.2.png).
        several = sum(member.ending in IMAGES for member in group) > 1
        own: dict[str, Sample] = {}
        for member in group:
            name = member.stem if several else key
            own.setdefault(name, Sample(name)).add(member)
        samples += own.values()
    return samples, damage


def _members(file: IO[bytes]) -> tuple[list[Member], list[str]]:
    """The images, texts and records of an archive, and what is damaged, in words."""
    members: list[Member] = []
    damage: list[str] = []
    end = 0
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if (instead := stand_in(file.read(BEGINNING))) is not None:
        return [], [instead]
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:", ignore_zeros=True) as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else it keeps them all
                if info.offset > end and _any_byte(file, end, info.offset):
                    damage.append(f"bytes {end} to {info.offset} hold no files")
                end = info.offset_data + -(-info.size // 512) * 512
                name = info.name.removeprefix("./")
                base = name.rsplit("/", 1)[-1]
                member = Member(name, info.offset_data, info.size)
                plain = info.isreg() and not info.sparse
                hidden = base.startswith(".") or name.startswith("__MACOSX/")
                if not plain or hidden or member.ending not in (*IMAGES, *TEXTS, "json", LABEL):
                    continue
                if member.start + member.size > size or member.size > MAX_MEMBER:
                    damage.append(f"{printable(name)} is cut off or too large")
                else:
                    members.append(member)
        if end < size and _any_byte(file, end, size):
            damage.append(f"bytes {end} to {size} hold no files")
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        damage.append(f"from byte {end} on: {first_line(error)}")
    if not members and not damage:
        damage.append("there are no images and texts in it")
    return members, damage


def _any_byte(file: IO[bytes], start: int, stop: int) -> bool:
    """Whether anything but zeros stands there."""
    here = file.tell()
    file.seek(start)
    found = False
    while start < stop and not found:
        block = file.read(min(1 << 20, stop - start))
        if not block:
            break
        found = any(block)
        start += len(block)
    file.seek(here)
    return found


def _content(file: IO[bytes], member: Member) -> bytes:
    file.seek(member.start)
    return file.read(member.size)


@contextlib.contextmanager
def _unpacked(path: Path, packing: str) -> Iterator[IO[bytes]]:
    """A compressed archive's bytes in a temporary file."""
    with tempfile.TemporaryFile() as copy:
        try:
            unpack(path, packing, copy, whole=False)
        except OSError as error:
            raise OSError(f"no archive: {error.strerror}") from None
        copy.seek(0)
        yield copy
