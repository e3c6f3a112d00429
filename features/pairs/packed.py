"""Files that gzip, bzip2 or xz has packed, told by their content, whatever their names end in."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from features.errors import first_line

PACKINGS = {"gzip": b"\x1f\x8b", "bzip2": b"BZh", "xz": b"\xfd7zXZ\x00"}
"""How such files begin."""
PACKED = (".gz", ".bz2", ".xz")
"""How their names end."""
OPENED: dict[str, Callable[[Path], Any]] = {
    "gzip": gzip.GzipFile,
    "bzip2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
}
BLOCK = 1 << 16


def packing_of(file: IO[bytes]) -> str | None:
    """How a file is packed; None where it is not. The file is at its beginning afterwards."""
    first = file.read(6)
    file.seek(0)
    return next((kind for kind, mark in PACKINGS.items() if first.startswith(mark)), None)


def unpack(path: Path, packing: str, copy: IO[bytes], *, whole: bool = True) -> None:
    """Write what a file holds.

    Args:
        whole: False where what comes before a damage is of use.

    Raises:
        OSError: it is damaged, or nothing of it can be read.
    """
    with OPENED[packing](path) as packed:
        try:
            while block := packed.read1(BLOCK):
                copy.write(block)
        except (EOFError, lzma.LZMAError, OSError) as error:
            if whole or not copy.tell():
                raise OSError(0, f"as {packing}: {first_line(error)}") from None


def unpacked_name(name: str) -> str:
    """A file's name as it was before it was packed, in small letters."""
    lower = name.lower()
    return next((lower.removesuffix(end) for end in PACKED if lower.endswith(end)), lower)
