"""Writing an activation store, at once or shard by shard."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from features.errors import UserError
from features.files import replacing, write_json, write_whole
from features.pairs.base import Skipped
from features.store.store import ATTRIBUTE, ActivationStore, StoreConfig, shard_name


def write_store(
    path: str | Path,
    image: Tensor,
    text: Tensor,
    samples: pa.Table,
    config: StoreConfig,
    *,
    shard_rows: int | None = None,
) -> ActivationStore:
    """Write embeddings that are in memory.

    Args:
        image: `[n, dim]`; stored as fp16.
        text: `[n, dim]`.
        samples: n rows, as `sample_table` makes them.
        shard_rows: rows a shard; one shard where it is None.

    Raises:
        UserError: `path` exists already.
        ValueError: the lengths or the dimension differ.
    """
    path = Path(path)
    if path.exists():
        raise UserError(f"{path}: exists already; name another folder or remove it")
    if image.shape != text.shape or len(image) != len(samples) or image.shape[1] != config.dim:
        raise ValueError(
            f"image {list(image.shape)}, text {list(text.shape)}, {len(samples)} samples, "
            f"dim {config.dim}"
        )
    temporary = path.with_name(path.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    rows = shard_rows or max(1, len(image))
    starts = range(0, max(1, len(image)), rows)
    for index, start in enumerate(starts):
        stop = start + rows
        write_part(temporary, index, image[start:stop], text[start:stop], samples[start:stop], [])
    finish_store(temporary, config, len(starts))
    os.replace(temporary, path)
    return ActivationStore.open(path)


def sample_table(
    ids: Sequence[str],
    captions: Sequence[Sequence[str]],
    locations: Sequence[str] | None = None,
    attributes: Sequence[dict[str, str | None]] | None = None,
) -> pa.Table:
    """The table of a store's samples.

    Args:
        captions: each pair's captions; `caption` is null where there are none.
        locations: by which the pair source finds the image again; the ids where None.
        attributes: each pair's attributes; a pair that lacks one has null.
    """
    columns: dict[str, pa.Array] = {
        "id": pa.array(ids, pa.string()),
        "caption": pa.array([texts[0] if texts else None for texts in captions], pa.string()),
        "captions": pa.array([list(texts) for texts in captions], pa.list_(pa.string())),
        "location": pa.array(ids if locations is None else locations, pa.string()),
    }
    attributes = attributes or []
    for name in dict.fromkeys(name for record in attributes for name in record):
        values = [record.get(name) for record in attributes]
        columns[ATTRIBUTE + name] = pa.array(values, pa.string())
    return pa.table(columns)


def part_name(index: int) -> str:
    return f"part-{index:05d}.parquet"


def write_part(
    folder: Path,
    index: int,
    image: Tensor,
    text: Tensor,
    samples: pa.Table,
    skipped: Sequence[Skipped],
) -> None:
    """Write one shard of an unfinished store; the shard's own file comes last.

    Args:
        image: `[rows, dim]`.
        text: `[rows, dim]`.
        skipped: the pairs of this part that were left out.
    """
    from safetensors.torch import save

    half = {"image": image.half().contiguous().cpu(), "text": text.half().contiguous().cpu()}
    content = save(half)
    metadata = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "skipped": json.dumps([dataclasses.asdict(record) for record in skipped]),
    }
    table = samples.replace_schema_metadata(metadata)
    with replacing(folder / part_name(index)) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    write_whole(folder / shard_name(index), content)


def part_finished(folder: Path, index: int) -> bool:
    """Whether `write_part` ran to its end."""
    return (folder / shard_name(index)).is_file() and (folder / part_name(index)).is_file()


def finish_store(folder: Path, config: StoreConfig, parts: int) -> StoreConfig:
    """Merge the parts' samples, write config.json and remove what only an extraction needs.

    Where it is killed, calling it again completes it.
    """
    schemas = [pq.read_schema(folder / part_name(index)) for index in range(parts)]
    schema = pa.unify_schemas([s.remove_metadata() for s in schemas]) if schemas else None
    schema = schema or sample_table([], []).schema
    rows: list[int] = []
    uncaptioned = 0
    digest = hashlib.sha256()
    reasons: Counter[str] = Counter()
    skipped_lines: list[str] = []
    with (
        replacing(folder / "samples.parquet") as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        for index in range(parts):
            table = pq.read_table(folder / part_name(index))
            rows.append(len(table))
            metadata = table.schema.metadata
            digest.update(metadata[b"sha256"])
            for record in json.loads(metadata[b"skipped"]):
                reasons[record["reason"].split(":")[0]] += 1
                skipped_lines.append(json.dumps(record, ensure_ascii=False) + "\n")
            uncaptioned += table["caption"].null_count
            if len(table):
                writer.write_table(_with_columns(table, schema))
    if skipped_lines:
        write_whole(folder / "skipped.jsonl", "".join(skipped_lines).encode())
    config = dataclasses.replace(
        config,
        shards=tuple(rows),
        uncaptioned=uncaptioned,
        skipped=reasons.total(),
        skipped_reasons=dict(sorted(reasons.items())),
        contents=digest.hexdigest(),
    )
    write_json(folder / "config.json", dataclasses.asdict(config))
    remove_extraction_files(folder)
    return config


def remove_extraction_files(folder: Path) -> None:
    """Remove what a finished store no longer needs."""
    for pattern in ("part-*.parquet", "*.tmp", "extraction.json"):
        for file in folder.glob(pattern):
            file.unlink(missing_ok=True)


def _with_columns(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the schema's columns in its order, null where it has none."""
    columns = [
        table[f.name].cast(f.type) if f.name in table.column_names else pa.nulls(len(table), f.type)
        for f in schema
    ]
    return pa.table(columns, schema=schema)
