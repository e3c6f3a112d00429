"""Embeddings in files of others, read in order and in batches: .npy, .npz, .safetensors, .parquet.

Files are read, not mapped, so that memory follows the batch alone; nothing is ever unpickled.
"""

from __future__ import annotations

import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from features.errors import UserError, first_line

ENDINGS = (".npy", ".npz", ".safetensors", ".parquet")
SAFETENSORS_TYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": None}
"""numpy has no bfloat16."""
KEYS = (
    ("image", "text"),
    ("image_embedding", "text_embedding"),
    ("image_embeddings", "text_embeddings"),
    ("image_embeds", "text_embeds"),
    ("image_emb", "text_emb"),
    ("img_emb", "text_emb"),
    ("image_features", "text_features"),
    ("l14_img", "l14_txt"),
    ("b32_img", "b32_txt"),
)
"""What files that hold both call the images' and the texts' embeddings, the likeliest first."""
BUFFER = 1 << 20


class EmbeddingRows(ABC):
    """Embeddings `[rows, dim]` in a file.

    Attributes:
        path: the file.
        key: under which name the file holds them; "" in .npy files.
    """

    path: Path
    key: str
    rows: int
    dim: int

    @abstractmethod
    def batches(self, first: int, size: int) -> Iterator[Tensor]:
        """From row `first` on: `[size, dim]` float32, the last one shorter.

        Raises:
            UserError: rows that are no embeddings of `dim` numbers.
        """


class ArrayRows(EmbeddingRows):
    """Embeddings that lie one after another, from a place in a file on.

    Args:
        read: opens the file, or the part of it that `offset` counts from.
        kind: numpy's type; None for bfloat16.
    """

    def __init__(
        self,
        path: Path,
        key: str,
        read: Callable[[], IO[bytes]],
        offset: int,
        kind: np.dtype[Any] | None,
        shape: Sequence[int],
        size: int,
    ) -> None:
        self.path, self.key = path, key
        self._read, self._offset, self._kind = read, offset, kind
        if len(shape) != 2 or min(shape) < 1:
            raise UserError(f"{path}: {key or 'the array'} is {list(shape)}; give [rows, dim]")
        self.rows, self.dim = int(shape[0]), int(shape[1])
        self._width = self.dim * (2 if kind is None else kind.itemsize)
        if size < offset + self.rows * self._width:
            raise UserError(f"{path}: cut off, {self.rows} rows don't fit in; copy it again")

    def batches(self, first: int, size: int) -> Iterator[Tensor]:
        with self._read() as file:
            file.seek(self._offset + first * self._width)
            for start in range(first, self.rows, size):
                count = min(size, self.rows - start)
                content = file.read(count * self._width)
                if self._kind is None:
                    flat = torch.frombuffer(bytearray(content), dtype=torch.bfloat16).float()
                else:
                    flat = torch.from_numpy(np.frombuffer(content, self._kind).astype(np.float32))
                yield flat.view(count, self.dim)


class ColumnRows(EmbeddingRows):
    """A parquet file's column of lists of numbers."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self.rows = pq.read_metadata(path).num_rows
        first = next(parquet_batches(path, [key], 0, 1), None)
        if first is None or first[key].null_count:
            raise UserError(f"{path}: column {key} begins with no embedding; give one a row")
        self.dim = len(first[key][0])

    def batches(self, first: int, size: int) -> Iterator[Tensor]:
        for table in parquet_batches(self.path, [self.key], first, size):
            column = table[self.key].combine_chunks()
            lengths = np.asarray(column.value_lengths().fill_null(-1))  # [batch]
            if (lengths != self.dim).any():
                row = first + int(np.flatnonzero(lengths != self.dim)[0])
                raise UserError(
                    f"{self.path}: row {row} of column {self.key} has not the {self.dim} numbers "
                    "of the others; leave it out"
                )
            numbers = column.flatten()
            if numbers.null_count:
                place = int(np.flatnonzero(np.asarray(numbers.is_null()))[0])
                raise UserError(
                    f"{self.path}: row {first + place // self.dim} of column {self.key} lacks a "
                    "number; leave it out"
                )
            values = np.asarray(numbers).astype(np.float32)
            yield torch.from_numpy(values).view(-1, self.dim)
            first += len(table)


def parquet_batches(
    path: Path, columns: Sequence[str], first: int, size: int
) -> Iterator[pa.Table]:
    """A parquet file's rows from `first` on, `size` at a time, the last fewer."""
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER) as file:
        groups, start = list(range(file.num_row_groups)), 0
        while groups and start + file.metadata.row_group(groups[0]).num_rows <= first:
            start += file.metadata.row_group(groups.pop(0)).num_rows
        waiting = file.schema_arrow.empty_table().select(list(columns))
        for batch in file.iter_batches(size, row_groups=groups, columns=list(columns)):
            table = pa.Table.from_batches([batch]).select(list(columns))
            skip = max(0, first - start)
            start += len(table)
            waiting = pa.concat_tables([waiting, table.slice(skip)])
            while len(waiting) >= size:
                yield waiting.slice(0, size)
                waiting = waiting.slice(size)
        if len(waiting):
            yield waiting


def open_rows(path: Path, key: str | None, side: int) -> EmbeddingRows:
    """The embeddings of one side in a file.

    Args:
        key: the array, tensor or column; None for the usual names, or the only one there is.
        side: 0 for images, 1 for texts.

    Raises:
        UserError: it holds none, or several and none of a usual name; they are no floats; or the
            file is damaged.
    """
    try:
        if path.suffix == ".npy":
            return _npy(path, "", lambda: path.open("rb"), path.stat().st_size)
        if path.suffix == ".npz":
            return _npz(path, key, side)
        if path.suffix == ".safetensors":
            return _safetensors(path, key, side)
        if path.suffix == ".parquet":
            columns = [field.name for field in pq.read_schema(path) if is_vector(field.type)]
            return ColumnRows(path, _chosen(path, key, side, columns))
    except (pa.ArrowException, zipfile.BadZipFile, ValueError, KeyError) as error:
        raise UserError(f"{path}: damaged ({first_line(error)}); copy it again") from None
    raise UserError(f"{path}: no file of embeddings; give one of {', '.join(ENDINGS)}")


def _chosen(path: Path, key: str | None, side: int, there: Sequence[str]) -> str:
    if key is not None:
        if key in there:
            return key
        raise UserError(f"{path}: no embeddings {key!r}; there are {', '.join(there) or 'none'}")
    for names in KEYS:
        if names[side] in there:
            return names[side]
    if len(there) == 1:
        return there[0]
    raise UserError(
        f"{path}: {'none' if not there else 'several'} that may be embeddings "
        f"({', '.join(there)}); say which with --{('image', 'text')[side]}-key"
    )


def _npy(path: Path, key: str, read: Callable[[], IO[bytes]], size: int) -> ArrayRows:
    with read() as file:
        version = np.lib.format.read_magic(file)
        header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version](file)
        offset = file.tell()
    shape, by_column, kind = header
    what = key or "the array"
    if kind.kind != "f":
        raise UserError(f"{path}: {what} holds {kind}, no floats; write float16 or float32")
    if by_column:
        raise UserError(f"{path}: {what} stands by columns; save numpy.ascontiguousarray of it")
    return ArrayRows(path, key, read, offset, kind, shape, size)


def _npz(path: Path, key: str | None, side: int) -> ArrayRows:
    with zipfile.ZipFile(path) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    names = [name.removesuffix(".npy") for name in sizes if name.endswith(".npy")]
    chosen = _chosen(path, key, side, names)
    member = f"{chosen}.npy"
    return _npy(path, chosen, lambda: zipfile.ZipFile(path).open(member), sizes[member])


def _safetensors(path: Path, key: str | None, side: int) -> ArrayRows:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= size - 8:
            raise ValueError("its header does not fit in")
        header = json.loads(file.read(length))
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    matrices = [name for name, entry in tensors.items() if len(entry["shape"]) == 2]
    chosen = _chosen(path, key, side, matrices)
    entry = tensors[chosen]
    if entry["dtype"] not in SAFETENSORS_TYPES:
        raise UserError(f"{path}: {chosen} holds {entry['dtype']}, no floats; write float16")
    kind = SAFETENSORS_TYPES[entry["dtype"]]
    offset = 8 + length + int(entry["data_offsets"][0])
    return ArrayRows(
        path,
        chosen,
        lambda: path.open("rb"),
        offset,
        None if kind is None else np.dtype(kind),
        entry["shape"],
        size,
    )


def is_vector(kind: pa.DataType) -> bool:
    """Whether a column's values are lists of floats."""
    is_list = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(check(kind) for check in is_list) and pa.types.is_floating(kind.value_type)
