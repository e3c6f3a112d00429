"""Files that are written whole or not at all."""

from __future__ import annotations

import dataclasses
import glob
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.errors import UserError, first_line

if TYPE_CHECKING:
    from torch import Tensor


def part_within(folder: Path, part: str, otherwise: str) -> str:
    """What to do where a folder is not what it was taken for: give the part of a run in it, if it
    is the folder of a run."""
    inside = folder / part
    return f"give {inside}" if (inside / "config.json").is_file() else otherwise


def globbed(pattern: str) -> list[str]:
    """The files and folders that a glob stands for, sorted. Folders in front that are there are
    called as it says, whatever brackets they have (`photos [2024]/*.tar`)."""
    path = Path(pattern)
    there = next((folder for folder in path.parents if folder.is_dir()), None)
    if there is not None and there.parts:
        pattern = os.path.join(glob.escape(str(there)), path.relative_to(there))
    return sorted(glob.glob(pattern, recursive=True))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; it takes the place of `path` at the end.

    Raises:
        UserError: a folder has that name.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file")
    temporary = path.with_name(path.name + ".tmp")
    yield temporary
    os.replace(temporary, path)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, then rename it."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file under a temporary name, then rename it.

    The library's own writing would hide an error of the system, as of a full disk, in one of its
    own.
    """
    from safetensors.torch import save

    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, save(whole, metadata))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """What the safetensors file of an artifact holds.

    Raises:
        UserError: it is damaged, cut off, or cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: damaged or cut off ({first_line(error)}); make or copy its folder again"
        ) from None


def jsonable(value: Any) -> Any:
    """What JSON can hold, at any depth: dataclasses as dictionaries, tuples as lists, and None for
    what is no finite number."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {str(key): jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> dict[str, Any]:
    """What the JSON file of an artifact holds.

    Raises:
        UserError: it holds no JSON object.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path}: damaged ({first_line(error)}); make or copy its folder again"
        ) from None
    if not isinstance(record, dict):
        raise UserError(f"{path}: holds no JSON object; make or copy its folder again")
    return record


def write_json(path: Path, record: Any) -> None:
    """Write indented JSON under a temporary name, then rename it."""
    write_whole(path, (json.dumps(record, indent=2) + "\n").encode())
