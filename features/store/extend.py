"""More pairs for a store that is there: their shards are added, nothing is encoded again."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from features.distributed import from_main_process
from features.encoders.encoder import Encoder
from features.encoders.fingerprint import same_encoder
from features.errors import UserError
from features.files import replacing, write_json, write_whole
from features.pairs.base import PairSource
from features.store.content import KnownContents
from features.store.extract import extract, resolve_precision
from features.store.store import ActivationStore, StoreConfig, shard_name
from features.store.write import SKIPPED, with_columns

ADDING = "adding"
"""Folder within the store in which new pairs are encoded."""
ROWS = 65_536
"""Rows of samples that are written together."""


def extend(
    source: PairSource,
    encoder: Encoder,
    out: str | Path,
    *,
    precision: str = "auto",
    **options: Any,
) -> ActivationStore:
    """Encode pairs and add them to the finished store at `out`, after those that it holds.

    Killed half way, the store is as it was, and the same call goes on. Pairs that it holds, with
    the same picture and captions, are not added again, wherever they come from.

    Args:
        options: as `extract` takes them.

    Raises:
        UserError: there is no finished store at `out`, or it is of another encoder or precision;
            whatever `extract` raises.
    """
    out = Path(out)
    store = ActivationStore.open(out)
    name = source.fingerprint()
    if from_main_process(lambda: _added(store, name)):
        return store
    _require_same(store, encoder, resolve_precision(precision, encoder.device))
    from_main_process(lambda: _take_back(store))
    known = KnownContents(_contents(store))
    extract(source, encoder, out / ADDING, precision=precision, known=known, **options)
    from_main_process(lambda: _merge(store, name))
    return ActivationStore.open(out)


def _contents(store: ActivationStore) -> Iterator[list[str]]:
    """The contents of a store's pairs, some at a time; none of imported embeddings."""
    if store.has_content:
        for samples in store.sample_batches(ROWS, columns=["content"]):
            yield samples["content"].drop_null().to_pylist()


def _added(store: ActivationStore, name: str) -> bool:
    """Whether these pairs are in the store; what a kill left of them is removed."""
    if name not in sources_of(store.config):
        return False
    shutil.rmtree(store.path / ADDING, ignore_errors=True)
    return True


def sources_of(config: StoreConfig) -> tuple[str, ...]:
    """The fingerprints of all pairs in a store, in their order."""
    return config.sources or (config.pairs_fingerprint,)


def _require_same(store: ActivationStore, encoder: Encoder, precision: str) -> None:
    config = store.config
    if not same_encoder(config.encoder_fingerprint, encoder.fingerprint):
        raise UserError(
            f"{store.path}: holds embeddings of {config.encoder}, not of {encoder.id}; add with "
            "that encoder, or extract to another folder"
        )
    if config.precision != precision:
        raise UserError(
            f"{store.path}: encoded in {config.precision}, now {precision}; add on a device of the "
            "same precision, or extract to another folder"
        )


def _take_back(store: ActivationStore) -> None:
    """Put new shards that a merge had moved when it was killed back where they were encoded."""
    new = store.path / ADDING
    if not (new / "config.json").is_file():
        return
    for index in count():
        moved = store.path / shard_name(len(store.config.shards) + index)
        if not moved.is_file() or (new / shard_name(index)).is_file():
            return
        os.replace(moved, new / shard_name(index))


def _merge(store: ActivationStore, name: str) -> None:
    """Move the new shards into the store; its config comes last, and makes them part of it."""
    new = ActivationStore.open(store.path / ADDING)
    old, more = store.config, new.config
    for index in range(len(more.shards)):
        os.replace(new.path / shard_name(index), store.path / shard_name(len(old.shards) + index))
    _merge_samples(store, new)
    if old.skipped or more.skipped:
        before = _lines(store.path)[: old.skipped]
        write_whole(store.path / SKIPPED, b"".join([*before, *_lines(new.path)]))
    reasons = Counter(old.skipped_reasons) + Counter(more.skipped_reasons)
    sources = (*sources_of(old), name)
    config = dataclasses.replace(
        old,
        pairs=f"{old.pairs} + {more.pairs}",
        pairs_fingerprint=_joined(*sources),
        sources=sources,
        shards=old.shards + more.shards,
        normalised=old.normalised + more.normalised,
        captions_cut=old.captions_cut + more.captions_cut,
        uncaptioned=old.uncaptioned + more.uncaptioned,
        skipped=old.skipped + more.skipped,
        skipped_reasons=dict(sorted(reasons.items())),
        contents=_joined(old.contents, more.contents),
    )
    write_json(store.path / "config.json", dataclasses.asdict(config))
    shutil.rmtree(new.path)


def _merge_samples(store: ActivationStore, new: ActivationStore) -> None:
    """The old samples and then the new ones, null where a side lacks a column."""
    path = store.path / "samples.parquet"
    schemas = [pq.read_schema(each.path / "samples.parquet") for each in (store, new)]
    schema = pa.unify_schemas(schemas)
    with (
        replacing(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        for each in (store, new):
            for table in each.sample_batches(ROWS):
                writer.write_table(with_columns(table, schema))


def _lines(folder: Path) -> list[bytes]:
    path = folder / SKIPPED
    return path.read_bytes().splitlines(keepends=True) if path.is_file() else []


def _joined(*parts: str) -> str:
    return hashlib.sha256("/".join(parts).encode()).hexdigest()
