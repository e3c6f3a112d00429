"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; it takes the place of `path` at the end."""
    temporary = path.with_name(path.name + ".tmp")
    yield temporary
    os.replace(temporary, path)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, then rename it."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, record: Any) -> None:
    """Write indented JSON under a temporary name, then rename it."""
    write_whole(path, (json.dumps(record, indent=2) + "\n").encode())
