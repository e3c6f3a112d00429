"""Webdataset tar files."""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

from PIL import Image

from features.errors import UserError, first_line
from features.pairs.base import Pair, PairSource, Part, Record, Skipped
from features.pairs.images import UnreadableImage, decode_image
from features.pairs.records import CAPTION_COLUMNS, make_pair, record_captions
from features.pairs.remote import local_file, path_of, size_and_head

IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "webp")
CONNECTIONS = 16
"""Files that are looked at together."""


class TarPairs(PairSource):
    """Webdataset tar files: an image with .txt (the caption) or .json (captions, attributes).

    A file behind a URL is downloaded when it is read, and removed afterwards.

    Args:
        files: paths or URLs, at least one.
    """

    def __init__(self, files: list[str], name: str) -> None:
        self.name = name
        paths = {file: path_of(file) for file in files}
        parent = os.path.commonpath([path.parent for path in paths.values()])
        self.files = {path.relative_to(parent).as_posix(): file for file, path in paths.items()}

    def parts(self) -> list[Part]:
        return [Part(name, 0, -1) for name in self.files]

    def read(self, part: Part) -> Iterator[Pair | Skipped]:
        """As in `PairSource`; raises UserError where a URL cannot be read."""
        with local_file(self.files[part.name]) as path:
            try:
                for sample in _tar_samples(path):
                    yield _tar_pair(sample, f"{part.name}/{sample['__key__']}")
            except Exception as error:  # tarfile, zlib and webdataset each raise their own
                detail = first_line(error).replace(str(path), part.name)
                yield Skipped(part.name, part.name, f"unreadable tar file from here on: {detail}")

    def images(self, locations: Iterable[str]) -> dict[str, Image.Image]:
        keys_of: dict[str, set[str]] = defaultdict(set)
        for location in locations:
            for name in self.files:
                if location.startswith(name + "/"):
                    keys_of[name].add(location.removeprefix(name + "/"))
        found = {}
        for name, keys in keys_of.items():
            try:
                with local_file(self.files[name]) as path:
                    for sample in _tar_samples(path):
                        key = sample["__key__"]
                        content = _member(sample, IMAGE_EXTENSIONS)
                        if key in keys and content is not None:
                            try:
                                found[f"{name}/{key}"] = decode_image(content)
                            except UnreadableImage:
                                continue
            except Exception:
                continue
        return found

    def fingerprint(self) -> str:
        """sha256 over the files' names, sizes and first 64 KiB."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            heads = pool.map(size_and_head, self.files.values())
            for name, (size, head) in zip(self.files, heads, strict=True):
                digest.update(f"{name}/{size}/".encode() + head)
        return digest.hexdigest()


def _tar_samples(path: Path) -> Iterator[Record]:
    import webdataset as wds

    return iter(wds.DataPipeline(wds.SimpleShardList([str(path)]), wds.tarfile_to_samples()))


def _member(sample: Record, extensions: tuple[str, ...]) -> bytes | None:
    """The content of the sample's first file with one of the extensions."""
    for name, content in sample.items():
        if name.rsplit(".", 1)[-1].lower() in extensions and isinstance(content, bytes):
            return content
    return None


def _tar_pair(sample: Record, location: str) -> Pair | Skipped:
    content = _member(sample, IMAGE_EXTENSIONS)
    if content is None:
        return Skipped(location, location, "missing image file: no .png, .jpg, .jpeg or .webp")
    record: Record = {}
    described = _member(sample, ("json",))
    if described is not None:
        try:
            parsed = json.loads(described)
        except ValueError as error:
            return Skipped(location, location, f"unreadable metadata row: {error}")
        if isinstance(parsed, dict):
            own = parsed.get("attributes")
            record = dict(own) if isinstance(own, dict) else {}
            record |= {k: v for k, v in parsed.items() if k in ("id", "tags", *CAPTION_COLUMNS)}
    text = _member(sample, ("txt",))
    if text is not None and not record_captions(record):
        record["caption"] = text.decode("utf-8", errors="replace")
    return make_pair({"id": sample["__key__"]} | record, None, content, location)


def _expand(pattern: str) -> list[str]:
    """The files of a brace and glob pattern.

    Raises:
        UserError: there is none, or one that the braces name is missing.
    """
    files: list[str] = []
    for piece in _braces(pattern):
        found = [piece] if os.path.isfile(piece) else sorted(glob.glob(piece))
        if not found:
            raise UserError(f"{piece}: no such .tar file; check the path or the pattern")
        files += found
    return list(dict.fromkeys(files))


def _braces(pattern: str) -> Iterator[str]:
    """All that a pattern's braces stand for: `{0..9}`, `{a,b}`."""
    from braceexpand import braceexpand

    return braceexpand(pattern)
