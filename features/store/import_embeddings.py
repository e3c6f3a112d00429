"""A store from embeddings that others computed: streaming, in bounded memory, resumable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from features.distributed import from_main_process
from features.encoders.encoder import Encoder
from features.errors import UserError
from features.pairs.base import Record
from features.pairs.records import (
    IMAGE_COLUMNS,
    Columns,
    Wanted,
    record_attributes,
    record_captions,
    text_of,
)
from features.store.embedding_files import parquet_batches
from features.store.layouts import EmbeddingFiles, EmbeddingPart, table_columns
from features.store.store import ActivationStore, StoreConfig
from features.store.write import sample_table
from features.store.writer import SHARD_ROWS, Origin, StoreWriter

BATCH = 2048
"""Pairs that are read at once."""
UNKNOWN = "unknown"
IMPORTED = "imported"
ID_COLUMNS = ("uid", "id", "key", "sample_id")
LOCATION_COLUMNS = (*IMAGE_COLUMNS, "url")
CHECKED = 32
"""Captions that are embedded to see whether an encoder made the embeddings."""
ALIKE = 0.9
"""Least median cosine with what the encoder makes of these captions."""


def import_embeddings(
    files: EmbeddingFiles,
    out: str | Path,
    *,
    encoder: Encoder | str = UNKNOWN,
    caption_column: str | None = None,
    shard_rows: int = SHARD_ROWS,
    progress: bool = True,
) -> ActivationStore:
    """Write the store of embeddings in files, going on from where an earlier run was cut off.

    Rows are not reordered. Embeddings of another length than 1 are normalised and counted. A pair
    whose caption is not known keeps its text embedding, with an empty caption.

    Args:
        encoder: what made them. Of an `Encoder`, the store goes with everything that this encoder
            made; some captions are embedded to see that it is the one. A name is taken on trust:
            stores of one name go together. `UNKNOWN` goes with nothing but itself.
        caption_column: of the tables; None looks for the usual names.

    Raises:
        UserError: a row is not finite or zero; the encoder is another one; there is no such
            column; or `out` holds something else.
    """
    return from_main_process(
        lambda: _import(files, Path(out), encoder, caption_column, shard_rows, progress)
    )


def _import(
    files: EmbeddingFiles,
    out: Path,
    encoder: Encoder | str,
    caption_column: str | None,
    shard_rows: int,
    progress: bool,
) -> ActivationStore:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    readers = [_TableReader(part, caption_column) for part in files.parts]
    fingerprint = files.fingerprint()
    writer = StoreWriter(out, _config(files, fingerprint, encoder), shard_rows=shard_rows)
    if writer.finished:
        return writer.finish()
    if isinstance(encoder, Encoder):
        _require_its_own(files.parts[0], readers[0], encoder)
    bar = Progress(
        TextColumn("importing the pairs"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not progress,
    )
    with bar:
        task = bar.add_task("", total=files.rows, completed=writer.rows)
        start = 0
        for part, reader in zip(files.parts, readers, strict=True):
            first = max(0, writer.rows - start)
            for image, text, samples in _batches(part, reader, first, start):
                names = Origin(str(part.image.path), str(part.text.path), first)
                writer.write(image, text, samples, names)
                first += len(image)
                bar.advance(task, len(image))
            start += part.image.rows
    return writer.finish()


def _config(files: EmbeddingFiles, fingerprint: str, encoder: Encoder | str) -> StoreConfig:
    """What the store is.

    Raises:
        UserError: the encoder's embeddings have another length.
    """
    if isinstance(encoder, Encoder) and encoder.dim != files.dim:
        raise UserError(
            f"{files.parts[0].image.path}: {files.dim} dimensions, but {encoder.id} makes "
            f"{encoder.dim}; name the encoder that made them"
        )
    if isinstance(encoder, Encoder):
        name, known_by = encoder.id, encoder.fingerprint
    else:
        name = encoder
        known_by = f"{IMPORTED} {fingerprint if encoder == UNKNOWN else encoder}"
    return StoreConfig(
        encoder=name,
        encoder_fingerprint=known_by,
        pairs=files.name,
        pairs_fingerprint=fingerprint,
        dim=files.dim,
        precision=IMPORTED,
    )


def _batches(
    part: EmbeddingPart, reader: _TableReader, first: int, start: int
) -> Iterator[tuple[Tensor, Tensor, pa.Table]]:
    """A part's pairs from row `first` on: (image, text, samples).

    Args:
        start: the number of the part's first pair among all.
    """
    if first >= part.image.rows:
        return
    sides = (part.image.batches(first, BATCH), part.text.batches(first, BATCH))
    for image, text, records in zip(*sides, reader.records(first, BATCH), strict=True):
        yield image, text, reader.samples(records, text, start + first)
        first += len(image)


class _TableReader:
    """What a part's table says of its pairs; empty records where it has none.

    Raises:
        UserError: there is no such caption column.
    """

    def __init__(self, part: EmbeddingPart, caption_column: str | None) -> None:
        self._path = part.table
        self._rows = part.image.rows
        self._names: list[str] = []
        captions: tuple[str, ...] = ()
        if self._path is not None:
            self._names = table_columns(self._path)
            wanted = Wanted(None, caption_column, captions_needed=False)
            captions = wanted.columns(self._names, str(self._path), image_beside=True).captions
        elif caption_column is not None:
            raise UserError(
                f"{part.image.path}: no table beside it, so no column {caption_column!r}; name one "
                "with --metadata"
            )
        by_name = {name.lower(): name for name in reversed(self._names)}
        self._id = next((by_name[name] for name in ID_COLUMNS if name in by_name), None)
        location = next((by_name[name] for name in LOCATION_COLUMNS if name in by_name), None)
        self._columns = Columns(location, captions, False)

    def records(self, first: int, size: int) -> Iterator[Sequence[Record]]:
        """The table's rows from `first` on, `size` at a time."""
        if self._path is None or not self._names:
            for start in range(first, self._rows, size):
                yield [{}] * min(size, self._rows - start)
            return
        for table in parquet_batches(self._path, self._names, first, size):
            try:
                yield table.to_pylist()
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{self._path}: rows {first} to {first + len(table) - 1} hold text that is not "
                    f"{error.encoding}; write the table again"
                ) from None
            first += len(table)

    def samples(self, records: Sequence[Record], text: Tensor, first: int) -> pa.Table:
        """The store's rows of samples.

        Args:
            records: of n pairs.
            text: their texts' embeddings `[n, dim]`.
            first: the number of the first pair, its id where it has no other.
        """
        there = (text != 0).any(1).tolist()
        ids, captions, locations, attributes = [], [], [], []
        for number, (record, has_text) in enumerate(zip(records, there, strict=True), start=first):
            location = text_of(record.get(self._columns.image or ""))
            name = text_of(record.get(self._id or "")) or location or str(number)
            own = record_attributes(record, self._columns)
            own.pop(self._id or "", None)
            ids.append(name)
            captions.append(record_captions(record, self._columns.captions) or ("",) * has_text)
            locations.append(location or name)
            attributes.append(own)
        return sample_table(ids, captions, locations, attributes)


@torch.inference_mode()
def _require_its_own(part: EmbeddingPart, reader: _TableReader, encoder: Encoder) -> None:
    """Raise a UserError where an encoder makes something else of the first captions."""
    text = next(part.text.batches(0, CHECKED))
    samples = reader.samples(next(iter(reader.records(0, CHECKED))), text, 0)
    rows = [n for n, texts in enumerate(samples["captions"].to_pylist()) if len(texts) == 1]
    rows = [n for n in rows if samples["caption"][n].as_py()]
    if not rows:
        return
    made = encoder.encode_texts([samples["caption"][n].as_py() for n in rows]).cpu()
    cosine = float(torch.cosine_similarity(made, text[rows]).median())
    if cosine < ALIKE:
        raise UserError(
            f"{part.text.path}: not made by {encoder.id}, whose embeddings of the first captions "
            f"have a median cosine of {cosine:.2f} with these; name the encoder that made them, or "
            "give its name alone with --encoder-name"
        )
