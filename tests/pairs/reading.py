"""What the tests of pairs share."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from features.pairs.base import Pair, PairSource, Skipped
from features.pairs.open import open_pairs


def png(colour: str | tuple[int, ...] = "red", mode: str = "RGB", size: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (size, size), colour).save(file, "PNG")
    return file.getvalue()


def records(source: PairSource | str | Path) -> list[Pair | Skipped]:
    opened = source if isinstance(source, PairSource) else open_pairs(str(source))
    return [record for part in opened.parts() for record in opened.read(part)]


def pairs(source: PairSource | str | Path) -> list[Pair]:
    return [record for record in records(source) if isinstance(record, Pair)]


def captions(source: PairSource | str | Path) -> list[str]:
    return [caption for pair in pairs(source) for caption in pair.captions]


def reasons(source: PairSource | str | Path) -> list[str]:
    return [record.reason for record in records(source) if isinstance(record, Skipped)]


def write_tar(path: Path, files: Iterable[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path
