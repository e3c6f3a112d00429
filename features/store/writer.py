"""Writing an activation store piece by piece, in bounded memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from features.arrays import tensor_of
from features.errors import UserError
from features.files import read_json, write_json
from features.store.store import ActivationStore, StoreConfig
from features.store.write import (
    finish_store,
    part_finished,
    part_name,
    remove_extraction_files,
    require_fit,
    unit_rows,
    write_part,
)

SHARD_ROWS = 16_384


class Origin(NamedTuple):
    """Where rows come from, for messages."""

    image: str = "image embeddings"
    text: str = "text embeddings"
    first_row: int | None = None
    """The number of the first one there; None counts all rows that were written."""


UNNAMED = Origin()


class StoreWriter:
    """Writes a store shard by shard; where an earlier writer was cut off, it goes on.

        writer = StoreWriter("runs/store", config)
        for image, text, samples in pieces_from(writer.rows):
            writer.write(image, text, samples)
        store = writer.finish()

    Embeddings of another length than 1 are normalised, and counted in the config.

    Attributes:
        finished: whether the store is complete already.

    Raises:
        UserError: `path` holds a store made from something else.
    """

    def __init__(
        self, path: str | Path, config: StoreConfig, *, shard_rows: int = SHARD_ROWS
    ) -> None:
        if shard_rows < 1:
            raise UserError(f"shard_rows {shard_rows}: must be at least 1")
        self.path = Path(path)
        self.config = config
        self._shard_rows = shard_rows
        self._parts = self._rows_kept = self._rows_waiting = 0
        self._waiting: list[tuple[Tensor, Tensor, Tensor, pa.Table]] = []
        self.finished = begin_store(self.path, config)
        while not self.finished and part_finished(self.path, self._parts):
            self._rows_kept += pq.read_metadata(self.path / part_name(self._parts)).num_rows
            self._parts += 1

    @property
    def rows(self) -> int:
        """Pairs that were written, those of an earlier writer among them."""
        if self.finished:
            return len(ActivationStore.open(self.path))
        return self._rows_kept + self._rows_waiting

    def write(
        self,
        image: Tensor | np.ndarray,
        text: Tensor | np.ndarray,
        samples: pa.Table,
        origin: Origin = UNNAMED,
    ) -> None:
        """Add pairs.

        Args:
            image: `[n, dim]`.
            text: `[n, dim]`; a pair without captions may have zeros.
            samples: n rows, as `sample_table` makes them.
            origin: what messages call them.

        Raises:
            UserError: shapes, samples and the config's dim don't fit together; or an embedding is
                not finite, or zero.
        """
        image, text = tensor_of(image, "image embeddings"), tensor_of(text, "text embeddings")
        require_fit(image, text, samples, self.config.dim)
        first = self.rows if origin.first_row is None else origin.first_row
        captioned = torch.from_numpy(np.asarray(samples["caption"].is_valid()))  # [n]
        every = torch.ones(len(image), dtype=torch.bool)
        image, images_scaled = unit_rows(image, origin.image, every, first)
        text, texts_scaled = unit_rows(text, origin.text, captioned, first)
        scaled = images_scaled.int() + texts_scaled.int()  # [n]
        self._waiting.append((image.half().cpu(), text.half().cpu(), scaled.cpu(), samples))
        self._rows_waiting += len(image)
        while self._rows_waiting >= self._shard_rows:
            self._write_shard(self._shard_rows)

    def finish(self) -> ActivationStore:
        """Write what is left, and make it a store.

        Raises:
            UserError: no pairs were written.
        """
        if not self.finished:
            if self._rows_waiting:
                self._write_shard(self._rows_waiting)
            if not self._parts:
                raise UserError("no embeddings: a store needs at least one pair")
            finish_store(self.path, self.config, self._parts)
            self.finished = True
        return ActivationStore.open(self.path)

    def _write_shard(self, rows: int) -> None:
        images, texts, counts, tables = zip(*self._waiting, strict=True)
        image, text, scaled = torch.cat(images), torch.cat(texts), torch.cat(counts)
        samples = pa.concat_tables(tables, promote_options="default")
        write_part(
            self.path,
            self._parts,
            image[:rows],
            text[:rows],
            samples[:rows],
            [],
            normalised=int(scaled[:rows].sum()),
        )
        left = (image[rows:].clone(), text[rows:].clone(), scaled[rows:], samples[rows:])
        self._waiting = [left] if len(left[0]) else []
        self._parts += 1
        self._rows_kept += rows
        self._rows_waiting -= rows


def begin_store(out: Path, config: StoreConfig) -> bool:
    """Whether the store at `out` is complete; if not, it is begun, or goes on.

    Raises:
        UserError: what stands at `out` was made from something else.
    """
    if _finished(out, config):
        return True
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "extraction.json", dataclasses.asdict(config))
    return False


def _finished(out: Path, config: StoreConfig) -> bool:
    """Whether the store at `out` is complete; what a kill left beside it is removed.

    Raises:
        UserError: what stands at `out` was made from something else.
    """
    for name in ("config.json", "extraction.json"):
        if not (out / name).is_file():
            continue
        record = read_json(out / name)
        if not {"pairs_fingerprint", "precision"} <= record.keys():
            break  # a dictionary's, say
        if record.get("schema") == 1:
            raise UserError(
                f"{out}: extracted by version 0.1.0, which knew encoders by their weights alone; "
                "name another folder, or remove this one to extract again"
            )
        for key in ("schema", "pairs_fingerprint", "encoder_fingerprint", "precision", "dim"):
            if record.get(key) != getattr(config, key):
                what = key.removesuffix("_fingerprint")
                before, now = record.get(what), getattr(config, what)
                addable = what == "pairs" and name == "config.json"
                more = ", or add what is new to it (mms extract --add)" if addable else ""
                changed = f"{before}, now {now}" if before != now else f"{now}, which has changed"
                raise UserError(
                    f"{out}: made with another {what} ({changed}); name another folder or remove "
                    f"this one{more}"
                )
        if name == "config.json":
            remove_extraction_files(out)
            return True
        return False
    begun = "extraction.json.tmp"  # all that a kill right after the start leaves
    if out.exists() and (not out.is_dir() or any(file.name != begun for file in out.iterdir())):
        raise UserError(f"{out}: exists already and is no activation store; name another folder")
    return False
