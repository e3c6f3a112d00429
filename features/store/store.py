"""The activation store: the unit embeddings of many pairs, on disk, memory-mapped.

    config.json            StoreConfig
    shard-NNNNN.safetensors  `image` and `text`, fp16 [rows, dim]
    samples.parquet        id, caption, captions, location, content, attribute.<name> ...; row i is
                           pair i
    skipped.jsonl          the pairs that were left out, each with its reason (where there are any)

While an extraction runs, `extraction.json` stands in for config.json, and each finished shard has
its samples beside it in `part-NNNNN.parquet`; `finish_store` merges them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from features.errors import UserError, first_line
from features.files import part_within, read_json
from features.pairs.base import unknown_attribute

SCHEMA = 2
READABLE = (1, 2)
"""Stores of schema 1 (0.1.0) have no `content`."""
SHUFFLE_CHUNK = 256
"""Rows that are read together when shuffling."""
SHUFFLE_BUFFER = 65_536
"""Rows that are held in memory (fp16) when shuffling."""
OPEN_SHARDS = 256
MAX_HEADER = 1 << 20
"""Bytes of a shard's header; a damaged file may claim any number."""
ATTRIBUTE = "attribute."
COPY_AGAIN = "copy the store again whole, or extract it to another folder"
SAMPLE_BATCH = 4096
"""Rows of samples that are read together."""


@dataclass(frozen=True)
class StoreConfig:
    """What a store holds and how it was made.

    `write_store` and `finish_store` fill in everything from `shards` on.
    """

    encoder: str
    encoder_fingerprint: str
    pairs: str
    pairs_fingerprint: str
    dim: int
    precision: str = "fp32"
    """The encoder's arithmetic: fp32, bf16 or fp16; "imported" where others encoded. Embeddings are
    stored as fp16."""
    sources: tuple[str, ...] = ()
    """The pairs' fingerprints in their order, where some were added later; pairs_fingerprint is
    then over these."""
    shared_space: bool = True
    """Whether a cosine of an image's and a text's embedding means anything."""
    schema: int = SCHEMA
    shards: tuple[int, ...] = ()
    """Rows of each shard."""
    normalised: int = 0
    """Embeddings that were given with another length than 1."""
    captions_cut: int = 0
    """Captions that are longer than the encoder's context: they are kept as far as it sees them."""
    uncaptioned: int = 0
    """Pairs without a caption, whose text embedding is zero."""
    skipped: int = 0
    skipped_reasons: dict[str, int] = field(default_factory=dict)
    """Count by reason, cut at its first colon."""
    contents: str = ""
    """sha256 over the shards' sha256."""


class ActivationStore:
    """Image and text embeddings of the same pairs, row i of both being pair i.

    A pair with several captions has the normalised mean of their embeddings.
    """

    def __init__(self, path: Path, config: StoreConfig) -> None:
        self.path = path
        self.config = config
        self._starts = np.concatenate([[0], np.cumsum(config.shards, dtype=np.int64)])
        self._open: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()

    @classmethod
    def open(cls, path: str | Path) -> ActivationStore:
        """Open a finished store.

        Raises:
            UserError: there is none at `path`, its extraction was cut off, its schema is newer, or
                a file of it is missing or cut off.
        """
        path = Path(path)
        if not (path / "config.json").is_file():
            if (path / "extraction.json").is_file():
                raise UserError(
                    f"{path}: this store is unfinished; run the same extraction again to go on"
                )
            raise UserError(
                f"{path}: no activation store here (no config.json); "
                + part_within(path, "store", "extract one first")
            )
        record = read_json(path / "config.json")
        if record.get("schema") not in READABLE or "shards" not in record:
            raise UserError(
                f"{path}/config.json: not an activation store of schema {SCHEMA} or older; extract "
                "it again"
            )
        known = {f.name for f in dataclasses.fields(StoreConfig)}
        record = {key: value for key, value in record.items() if key in known}
        lists = {key: tuple(record.get(key, ())) for key in ("shards", "sources")}
        config = StoreConfig(**record | lists)
        _require_whole(path, config)
        return cls(path, config)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def sample_columns(self) -> list[str]:
        """The names of the columns of `samples`."""
        return list(pq.read_schema(self.path / "samples.parquet").names)

    def require_attributes(self, attributes: Sequence[str]) -> None:
        """Check that the pairs have these attributes.

        Raises:
            UserError: they lack one.
        """
        columns = self.sample_columns
        known = [name.removeprefix(ATTRIBUTE) for name in columns if name.startswith(ATTRIBUTE)]
        for attribute in attributes:
            if attribute not in known:
                raise unknown_attribute(attribute, self.config.pairs, known)

    @property
    def has_content(self) -> bool:
        """Whether the samples have the column `content`."""
        return "content" in self.sample_columns

    @property
    def dim(self) -> int:
        """Dimensions of an embedding."""
        return self.config.dim

    @property
    def fingerprint(self) -> str:
        """sha256 of the embeddings, the encoder, the pairs and the precision."""
        c = self.config
        parts = (c.contents, c.encoder_fingerprint, c.pairs_fingerprint, c.precision)
        return hashlib.sha256("/".join(parts).encode()).hexdigest()

    def batches(
        self, batch_size: int, pairs: range | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs in order: (image, text), each `[batch, dim]` float32; the last may be shorter.

        Batches are filled across shards.

        Args:
            pairs: consecutive numbers; None for all.
        """
        pairs = range(len(self)) if pairs is None else pairs
        for start in range(pairs.start, pairs.stop, batch_size):
            image, text = self._range(start, min(start + batch_size, pairs.stop))
            yield torch.from_numpy(image).float(), torch.from_numpy(text).float()

    def shuffled_batches(
        self, batch_size: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """All pairs once, shuffled: (image, text), each `[batch, dim]` float32.

        Up to 65,536 pairs the order is a uniform permutation. Beyond, runs of 256 neighbours are
        shuffled, and then the pairs within each 65,536 of them, which bounds the memory.
        """
        return (batch[1:] for batch in self.numbered_shuffled_batches(batch_size, generator))

    def numbered_shuffled_batches(
        self, batch_size: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """As `shuffled_batches`, with the pairs' numbers before them: `[batch]` int64."""
        chunks = torch.randperm(-(-len(self) // SHUFFLE_CHUNK), generator=generator).tolist()
        chunks_held = SHUFFLE_BUFFER // SHUFFLE_CHUNK
        left = [np.empty(0, np.int64), *[np.empty((0, self.dim), np.float16)] * 2]
        for first in range(0, len(chunks), chunks_held):
            runs = [
                (c * SHUFFLE_CHUNK, min((c + 1) * SHUFFLE_CHUNK, len(self)))
                for c in chunks[first : first + chunks_held]
            ]
            held = [(np.arange(*run), *self._range(*run)) for run in runs]
            numbers, image, text = (
                torch.from_numpy(np.concatenate(parts)) for parts in zip(left, *held, strict=True)
            )
            order = torch.randperm(len(image), generator=generator)  # [rows held]
            last = first + chunks_held >= len(chunks)
            whole = len(order) if last else len(order) // batch_size * batch_size
            for start in range(0, whole, batch_size):
                picked = order[start : min(start + batch_size, whole)]
                yield numbers[picked], image[picked].float(), text[picked].float()
            left = [part[order[whole:]].numpy() for part in (numbers, image, text)]

    def rows(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """The pairs at `indices`, in their order: (image, text), each `[n, dim]` float32.

        Raises:
            IndexError: an index is negative or beyond the last pair.
        """
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(
                f"rows of a store of {len(self)} pairs: {wanted.min()}..{wanted.max()}"
            )
        image = np.empty((len(wanted), self.dim), np.float16)
        text = np.empty_like(image)
        shard_of = np.searchsorted(self._starts, wanted, side="right") - 1
        for shard in np.unique(shard_of):
            mine = shard_of == shard
            local = wanted[mine] - self._starts[shard]
            shard_image, shard_text = self._arrays(int(shard))
            image[mine], text[mine] = shard_image[local], shard_text[local]
        return torch.from_numpy(image).float(), torch.from_numpy(text).float()

    def samples(self) -> pa.Table:
        """Columns id, caption (the first), captions (list), location, content (by which pairs are
        told apart, `features.store.content`), attribute.<name> ...

        Captions are kept as far as the encoder saw them.
        """
        table = pq.read_table(self.path / "samples.parquet", memory_map=True)
        return table[: len(self)]  # more while others are being added

    def sample_batches(
        self, batch_size: int, pairs: range | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[pa.Table]:
        """The rows of `samples` that go with `batches`, without reading the whole table.

        Args:
            pairs: consecutive numbers; None for all.
            columns: None for all.
        """
        pairs = range(len(self)) if pairs is None else pairs
        with pq.ParquetFile(self.path / "samples.parquet") as file:
            starts = _group_starts(file)  # [groups + 1]
            groups = np.flatnonzero((starts[:-1] < pairs.stop) & (starts[1:] > pairs.start))
            if len(groups) == 0:
                return
            at = int(starts[groups[0]])
            names = file.schema_arrow.names if columns is None else list(columns)
            waiting = file.schema_arrow.empty_table().select(names)
            for batch in file.iter_batches(batch_size, groups.tolist(), names):
                table = pa.Table.from_batches([batch]).select(names)
                first, at = at, at + len(table)
                skip = max(0, pairs.start - first)
                table = table.slice(skip, max(0, min(at, pairs.stop) - first - skip))
                waiting = pa.concat_tables([waiting, table])
                while len(waiting) >= batch_size:
                    yield waiting.slice(0, batch_size)
                    waiting = waiting.slice(batch_size)
            if len(waiting):
                yield waiting

    def sample_rows(self, indices: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """The rows of `samples` at `indices`, in their order; only their row groups are read."""
        wanted, places = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
        with pq.ParquetFile(self.path / "samples.parquet") as file:
            starts = _group_starts(file)  # [groups + 1]
            found = [file.schema_arrow.empty_table().select(columns)]
            group_of = np.searchsorted(starts, wanted, side="right") - 1
            for group in np.unique(group_of):
                table = file.read_row_group(int(group), columns=list(columns))
                local = wanted[group_of == group] - starts[group]
                found.append(table.select(columns).take(pa.array(local)))
        return pa.concat_tables(found).take(pa.array(places.reshape(-1)))

    def _range(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Copies of rows start..stop: (image, text), each `[stop - start, dim]` fp16."""
        image = np.empty((stop - start, self.dim), np.float16)
        text = np.empty_like(image)
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        at = start
        while at < stop:
            end = min(stop, int(self._starts[shard + 1]))
            shard_image, shard_text = self._arrays(shard)
            local = slice(at - self._starts[shard], end - self._starts[shard])
            image[at - start : end - start] = shard_image[local]
            text[at - start : end - start] = shard_text[local]
            at, shard = end, shard + 1
        return image, text

    def _arrays(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """One shard's memory-mapped (image, text), each `[rows, dim]` fp16."""
        if shard not in self._open:
            if len(self._open) >= OPEN_SHARDS:
                self._open.popitem(last=False)
            self._open[shard] = _map_shard(self.path / shard_name(shard))
        self._open.move_to_end(shard)
        return self._open[shard]


def same_pairs(store: ActivationStore, other: ActivationStore) -> bool:
    """Whether row i of both is the same pair: by content, or by id where a store has none."""
    if len(store) != len(other):
        return False
    key = "content" if store.has_content and other.has_content else "id"
    keys = (each.sample_batches(SAMPLE_BATCH, columns=[key]) for each in (store, other))
    return all(left.equals(right) for left, right in zip(*keys, strict=True))


def shard_name(index: int) -> str:
    return f"shard-{index:05d}.safetensors"


def _group_starts(file: pq.ParquetFile) -> np.ndarray:
    """The first row of each row group, and the number of rows: `[groups + 1]`."""
    metadata = file.metadata
    rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])


class _Place(NamedTuple):
    """Where a tensor stands in its file."""

    offset: int
    shape: tuple[int, ...]


def shard_places(path: Path) -> tuple[_Place, _Place]:
    """Where a whole shard's `image` and `text` stand (8 bytes of length, JSON header, data).

    Raises:
        UserError: it is missing, damaged, or cut off.
    """
    if not path.is_file():
        raise UserError(f"{path}: missing; {COPY_AGAIN}")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        head = file.read(min(length, MAX_HEADER))
    try:
        header = json.loads(head)
        entries = [header[name] for name in ("image", "text")]
        end = 8 + length + max(entry["data_offsets"][1] for entry in entries)
        if path.stat().st_size < end:
            raise ValueError(f"{path.stat().st_size:,} of {end:,} bytes")
        image, text = (
            _Place(8 + length + entry["data_offsets"][0], tuple(entry["shape"]))
            for entry in entries
        )
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path}: damaged or cut off ({first_line(error)}); {COPY_AGAIN}") from None
    return image, text


def _map_shard(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Memory-map a shard's `image` and `text`.

    Raises:
        UserError: it is missing, damaged, or cut off.
    """
    image, text = (
        np.empty(shape, np.float16) if 0 in shape else np.memmap(path, np.float16, "r", at, shape)
        for at, shape in shard_places(path)
    )
    return image, text


def _require_whole(path: Path, config: StoreConfig) -> None:
    """Raise a UserError that names the first file of a finished store that is missing, cut off, or
    another's."""
    for index, rows in enumerate(config.shards):
        shard = path / shard_name(index)
        image, text = (place.shape for place in shard_places(shard))
        if image != (rows, config.dim) or text != image:
            raise UserError(
                f"{shard}: holds embeddings {image} and {text}, config.json says "
                f"{(rows, config.dim)}; {COPY_AGAIN}"
            )
    samples = path / "samples.parquet"
    if not samples.is_file():
        raise UserError(f"{samples}: missing; {COPY_AGAIN}")
    try:
        rows = pq.read_metadata(samples).num_rows
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{samples}: damaged or cut off ({first_line(error)}); {COPY_AGAIN}"
        ) from None
    if rows < sum(config.shards):
        raise UserError(f"{samples}: {rows} samples for {sum(config.shards)} pairs; {COPY_AGAIN}")
