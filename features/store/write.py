"""Writing an activation store, at once or shard by shard."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from features.arrays import tensor_of
from features.errors import UserError
from features.files import replacing, write_json, write_whole
from features.pairs.base import Skipped
from features.pairs.records import text_of
from features.store.store import ATTRIBUTE, ActivationStore, StoreConfig, shard_name, shard_places

SKIPPED = "skipped.jsonl"
LENGTH_TOLERANCE = 1e-3
"""How far from 1 an embedding's length may lie: fp16 rounds as much."""


def write_store(
    path: str | Path,
    image: Tensor | np.ndarray,
    text: Tensor | np.ndarray,
    samples: pa.Table,
    config: StoreConfig,
    *,
    shard_rows: int | None = None,
) -> ActivationStore:
    """Write embeddings that are in memory.

    Those of another length than 1 are normalised, with a warning, and counted in the config.

    Args:
        image: `[n, dim]`; stored as fp16.
        text: `[n, dim]`; a pair without captions may have zeros.
        samples: n rows, as `sample_table` makes them.
        shard_rows: rows a shard; one shard where it is None.

    Raises:
        UserError: `path` exists already; there are no pairs; the shapes, the samples and
            `config.dim` don't fit together; or an embedding is not finite, or zero.
    """
    image, text = tensor_of(image, "image embeddings"), tensor_of(text, "text embeddings")
    path = Path(path)
    if path.exists():
        raise UserError(f"{path}: exists already; name another folder or remove it")
    if shard_rows is not None and shard_rows < 1:
        raise UserError(f"shard_rows {shard_rows}: must be at least 1")
    require_fit(image, text, samples, config.dim)
    captioned = torch.from_numpy(np.asarray(samples["caption"].is_valid()))  # [n]
    every = torch.ones(len(image), dtype=torch.bool)
    image, images_scaled = unit_rows(image, "image embeddings", every)
    text, texts_scaled = unit_rows(text, "text embeddings", captioned)
    scaled = images_scaled.int() + texts_scaled.int()  # [n]
    if scaled.any():
        warnings.warn(
            f"{path}: {int(images_scaled.sum())} image and {int(texts_scaled.sum())} text "
            f"embeddings of {len(image)} pairs had another length than 1 and were normalised",
            stacklevel=2,
        )
    temporary = path.with_name(path.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    rows = shard_rows or len(image)
    starts = range(0, len(image), rows)
    for index, start in enumerate(starts):
        part = slice(start, start + rows)
        normalised = int(scaled[part].sum())
        write_part(
            temporary, index, image[part], text[part], samples[part], [], normalised=normalised
        )
    finish_store(temporary, config, len(starts))
    os.replace(temporary, path)
    return ActivationStore.open(path)


def require_fit(image: Tensor, text: Tensor, samples: pa.Table, dim: int) -> None:
    """Raise a UserError where embeddings and samples don't make a store."""
    shapes = f"image {list(image.shape)}, text {list(text.shape)}"
    if image.ndim != 2 or image.shape != text.shape or image.shape[1] != dim:
        raise UserError(f"{shapes}: both must be [n, {dim}], {dim} being the config's dim")
    for name, embeddings in (("image", image), ("text", text)):
        if embeddings.is_complex() or embeddings.dtype == torch.bool:
            raise UserError(f"{name}: {embeddings.dtype} is no type of embeddings; give floats")
        if embeddings.layout != torch.strided:
            raise UserError(f"{name}: a tensor of {embeddings.layout}; give its to_dense()")
    if len(image) == 0:
        raise UserError("no embeddings: a store needs at least one pair")
    if not isinstance(samples, pa.Table):
        raise UserError(f"samples: a {type(samples).__name__}; make them with sample_table")
    if len(samples) != len(image):
        raise UserError(f"{shapes}: {len(samples)} samples; there must be one a row")
    wanted = sample_table([], []).column_names
    missing = [name for name in wanted if name not in samples.column_names]
    if missing:
        raise UserError(f"samples: no column {missing[0]}; make them with sample_table")


def unit_rows(
    embeddings: Tensor, where: str, needed: Tensor, first: int = 0
) -> tuple[Tensor, Tensor]:
    """Embeddings `[n, dim]` of unit length as float32, and which had another length `[n]` bool.

    Args:
        where: what or which file they are, for messages.
        needed: rows that must not be zero, `[n]` bool.
        first: number of the first row there.

    Raises:
        UserError: a row is not finite, or zero though it is needed.
    """
    embeddings = embeddings.detach().float()
    row = first_not_finite(embeddings)
    if row is not None:
        raise UserError(f"{where}: row {first + row} holds NaN or infinity; leave its pair out")
    lengths = embeddings.double().norm(dim=1)  # [n]
    zero = (lengths == 0) & needed.to(lengths.device)
    if zero.any():
        row = int(zero.nonzero()[0])
        raise UserError(
            f"{where}: row {first + row} is zero, so it has no direction; leave its pair out"
        )
    other = (lengths > 0) & ((lengths - 1).abs() > LENGTH_TOLERANCE)
    if other.any():
        unit = (embeddings[other].double() / lengths[other, None]).float()
        embeddings = embeddings.index_put((other.nonzero()[:, 0],), unit)
    return embeddings, other


def first_not_finite(*embeddings: Tensor) -> int | None:
    """The first row of embeddings, each `[n, dim]`, that holds NaN or infinity in any of them."""
    rows = [(~torch.isfinite(each)).any(dim=1).nonzero() for each in embeddings]
    return min((int(found[0]) for found in rows if len(found)), default=None)


def sample_table(
    ids: Iterable[str | int],
    captions: Iterable[Sequence[str] | str | None],
    locations: Iterable[str | None] | None = None,
    attributes: Iterable[Mapping[str, Any]] | None = None,
    contents: Iterable[str] | None = None,
) -> pa.Table:
    """The table of a store's samples.

    Numbers become text; None and NaN are missing.

    Args:
        captions: each pair's captions, or its one; `caption` is null where there are none.
        locations: by which the pair source finds the image again; the ids where None.
        attributes: each pair's attributes; a pair that lacks one has null.
        contents: each pair's key (`features.store.content`); without them pairs are told apart by
            their ids.

    Raises:
        UserError: there is not one of each for every pair, an id is missing, or a value is no text.
    """
    names = _values(ids)
    texts = [_captions_of(own, place) for place, own in enumerate(_values(captions))]
    columns: dict[str, list[Any]] = {
        "id": _texts(names, "id"),
        "caption": [own[0] if own else None for own in texts],
        "captions": texts,
    }
    if None in columns["id"]:
        raise UserError(f"id {columns['id'].index(None)} is missing; give one a pair")
    columns["location"] = columns["id"]
    for name, given in (("location", locations), ("content", contents)):
        if given is not None:
            columns[name] = _texts(_values(given), name)
    records = [] if attributes is None else _values(attributes)
    for place, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise UserError(f"attributes {place} are {record!r}; give a dictionary a pair")
    for name in dict.fromkeys(name for record in records for name in record):
        columns[f"{ATTRIBUTE}{name}"] = _texts([record.get(name) for record in records], name)
    for name, values in columns.items():
        if len(values) != len(names):
            raise UserError(f"{len(names)} ids, {len(values)} of {name}; give one a pair")
    several = {"captions": pa.list_(pa.string())}
    return pa.table(
        {name: pa.array(own, several.get(name, pa.string())) for name, own in columns.items()}
    )


def _values(given: Any) -> list[Any]:
    """What a sequence or a column of Arrow's holds."""
    return given.to_pylist() if hasattr(given, "to_pylist") else list(given)


def _captions_of(given: Any, place: int) -> list[str]:
    """A pair's captions, without missing ones."""
    alone = isinstance(given, str | bytes | Mapping) or not hasattr(given, "__iter__")
    texts = _texts([given] if alone else given, f"pair {place}: caption")
    return [text for text in texts if text is not None]


def _texts(values: Iterable[Any], what: str) -> list[str | None]:
    """Scalars as text, None where one is missing.

    Raises:
        UserError: one is no text.
    """
    texts: list[str | None] = []
    for place, value in enumerate(values):
        plain = value.item() if isinstance(value, np.generic) else value
        text = plain if isinstance(plain, str) else text_of(plain)
        if text is None and plain is not None and not isinstance(plain, float):
            raise UserError(f"{what} {place} is {value!r}, a {type(value).__name__}; give text")
        texts.append(text)
    return texts


def part_name(index: int) -> str:
    return f"part-{index:05d}.parquet"


def write_part(
    folder: Path,
    index: int,
    image: Tensor,
    text: Tensor,
    samples: pa.Table,
    skipped: Sequence[Skipped],
    *,
    captions_cut: int = 0,
    normalised: int = 0,
) -> None:
    """Write one shard of an unfinished store; the shard's own file comes last.

    Args:
        image: `[rows, dim]`.
        text: `[rows, dim]`.
        skipped: the pairs of this part that were left out.
        captions_cut: of this part's captions.
        normalised: how many embeddings had another length than 1.

    Raises:
        UserError: an embedding is not finite, or doesn't fit into fp16.
    """
    from safetensors.torch import save

    half = {"image": image.half().contiguous().cpu(), "text": text.half().contiguous().cpu()}
    row = first_not_finite(*half.values())
    if row is not None:
        raise UserError(f"{folder}: row {row} of shard {index} is not finite; leave its pair out")
    content = save(half)
    metadata = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "skipped": json.dumps([dataclasses.asdict(record) for record in skipped]),
        "captions_cut": str(captions_cut),
        "normalised": str(normalised),
    }
    table = samples.replace_schema_metadata(metadata)
    with replacing(folder / part_name(index)) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    write_whole(folder / shard_name(index), content)


def part_finished(folder: Path, index: int) -> bool:
    """Whether `write_part` ran to its end, and its shard is still whole."""
    if not (folder / part_name(index)).is_file():
        return False
    try:
        shard_places(folder / shard_name(index))
    except UserError:
        return False
    return True


def finish_store(folder: Path, config: StoreConfig, parts: int) -> StoreConfig:
    """Merge the parts' samples, write config.json and remove what only an extraction needs.

    Where it is killed, calling it again completes it.
    """
    schemas = [pq.read_schema(folder / part_name(index)) for index in range(parts)]
    schema = pa.unify_schemas([s.remove_metadata() for s in schemas]) if schemas else None
    schema = schema or sample_table([], []).schema
    rows: list[int] = []
    uncaptioned = captions_cut = normalised = 0
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
            captions_cut += int(metadata[b"captions_cut"])
            normalised += int(metadata.get(b"normalised", 0))
            if len(table):
                writer.write_table(with_columns(table, schema))
    if skipped_lines:
        write_whole(folder / SKIPPED, "".join(skipped_lines).encode())
    config = dataclasses.replace(
        config,
        shards=tuple(rows),
        captions_cut=captions_cut,
        normalised=normalised,
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


def with_columns(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the schema's columns in its order, null where it has none."""
    columns = [
        table[f.name].cast(f.type) if f.name in table.column_names else pa.nulls(len(table), f.type)
        for f in schema
    ]
    return pa.table(columns, schema=schema)
