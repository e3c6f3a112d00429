"""Pairs -> activation store: resumable, over processes, with decoding beside the encoder.

Each part of the pairs becomes one shard. Under `accelerate launch`, process r of n takes the parts
r, r+n, ...; within a process, worker w of W decodes every W-th of them and hands over batches that
are ready for the encoder. Batches never reach over a part's end, so the embeddings don't depend on
the number of processes or workers.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from features.distributed import from_main_process, has_bf16, this_process
from features.encoders.encoder import Encoder
from features.errors import UserError, first_line
from features.pairs.base import PairSource, Part, Skipped
from features.store.batches import Batch, Batches, Sample, one_ahead, prepare_worker
from features.store.content import KnownContents
from features.store.store import ActivationStore, StoreConfig
from features.store.write import (
    finish_store,
    first_not_finite,
    part_finished,
    part_name,
    sample_table,
    write_part,
)
from features.store.writer import begin_store

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PREFETCH = 3


def extract(
    source: PairSource,
    encoder: Encoder,
    out: str | Path,
    *,
    batch_size: int = 256,
    workers: int | None = None,
    precision: str = "auto",
    strict: bool = False,
    progress: bool = True,
    known: KnownContents | None = None,
) -> ActivationStore:
    """Encode all pairs into the store at `out`, going on from where an earlier run was cut off.

    Pairs that cannot be read are listed with the reason in skipped.jsonl and counted in
    config.json.

    Args:
        workers: decoding processes beside each encoding one; 0 decodes in a thread of its own. The
            default follows the cores and the device, at most 8.
        precision: the encoder's arithmetic: fp32, bf16, fp16, or auto, which is bf16 (or fp16
            where the GPU has no bf16 of its own) on a GPU and fp32 elsewhere.
        strict: stop at the first pair that cannot be read.
        known: pairs that are left out, as another store holds them; None for none.

    Raises:
        UserError: `out` was made from other pairs, another encoder or precision; `strict` and a
            pair cannot be read; a URL cannot be read; the precision overflows; or a batch is too
            large for the GPU's memory.
    """
    out = Path(out)
    state = this_process()
    config = StoreConfig(
        encoder=encoder.id,
        encoder_fingerprint=encoder.fingerprint,
        pairs=source.name,
        pairs_fingerprint=source.fingerprint(),
        dim=encoder.dim,
        precision=resolve_precision(precision, encoder.device),
        shared_space=encoder.shared_space,
    )
    if from_main_process(lambda: begin_store(out, config)):
        store = ActivationStore.open(out)
        if strict and store.config.skipped:
            raise UserError(
                f"{out}: {store.config.skipped} pairs were skipped (see skipped.jsonl); mend them "
                "and extract to another folder"
            )
        return store
    parts = source.parts()
    mine = range(state.process_index, len(parts), state.num_processes)
    _extract_parts(
        source,
        encoder,
        out,
        todo=[(index, parts[index]) for index in mine if not part_finished(out, index)],
        batch_size=batch_size,
        workers=default_workers(encoder.device, state.num_processes)
        if workers is None
        else workers,
        precision=config.precision,
        strict=strict,
        progress=progress and state.is_local_main_process,
        known=known or KnownContents(),
    )
    state.wait_for_everyone()

    def finish() -> None:
        missing = [index for index in range(len(parts)) if not part_finished(out, index)]
        if missing:
            raise UserError(
                f"{out}: {len(missing)} shards are missing; all machines must write to one shared "
                "folder"
            )
        if strict:
            _refuse_skipped(out, len(parts))
        finish_store(out, config, len(parts))

    from_main_process(finish)
    return ActivationStore.open(out)


def resolve_precision(precision: str, device: torch.device) -> str:
    """The precision that `auto` means on this device.

    Raises:
        UserError: there is no such precision.
    """
    if precision == "auto":
        if device.type != "cuda":
            return "fp32"
        return "bf16" if has_bf16(device) else "fp16"
    if precision not in PRECISIONS:
        raise UserError(f"precision {precision!r}: use one of auto, {', '.join(PRECISIONS)}")
    return precision


def default_workers(device: torch.device, processes: int = 1) -> int:
    """Decoding workers of each of `processes` encoding processes on this machine.

    One for every two cores beside a GPU; one for every four beside an encoder on the CPU, which
    wants the cores itself (on two cores, a worker made extraction 20 % slower).
    """
    local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    share = (cores or 1) // (2 if device.type == "cuda" else 4) // max(1, local)
    return min(8, max(1, share) if device.type == "cuda" else share)


def _extract_parts(
    source: PairSource,
    encoder: Encoder,
    out: Path,
    *,
    todo: list[tuple[int, Part]],
    batch_size: int,
    workers: int,
    precision: str,
    strict: bool,
    progress: bool,
    known: KnownContents,
) -> None:
    """Write the shards of the parts `todo`."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    sizes = [part.stop - part.start for _, part in todo if part.stop >= 0]
    total = sum(sizes) if len(sizes) == len(todo) else None
    workers = min(workers, len(todo))
    loader: DataLoader[Batch] = DataLoader(
        Batches(source, todo, encoder.preprocessing, encoder.tokenizer, batch_size, known),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        worker_init_fn=prepare_worker,
        pin_memory=encoder.device.type == "cuda",
        in_order=False,
    )
    waiting: dict[int, list[tuple[Batch, Tensor, Tensor]]] = defaultdict(list)
    skipped: dict[int, list[Skipped]] = defaultdict(list)
    bar = Progress(
        TextColumn("encoding the pairs"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not progress,
    )
    with bar:
        task = bar.add_task("", total=total)
        for batch in loader if workers else one_ahead(loader):
            if batch.failure:
                raise UserError(batch.failure)
            if strict and batch.skipped:
                raise _strict_error(batch.skipped[0])
            skipped[batch.part] += batch.skipped
            if batch.samples:
                try:
                    image, text = _encode(encoder, batch, batch_size, precision)
                except torch.OutOfMemoryError as error:
                    raise UserError(
                        f"{encoder.id}: {len(batch.samples)} pairs at once are too many for the "
                        f"memory of {encoder.device} ({first_line(error)}); give a smaller "
                        "--batch-size"
                    ) from error
                _require_finite(encoder, batch, image, text, precision)
                waiting[batch.part].append((batch, image, text))
            if batch.last:
                _write(out, batch.part, waiting.pop(batch.part, []), skipped, encoder.dim)
                skipped.pop(batch.part)
            bar.advance(task, len(batch.samples) + len(batch.skipped) + batch.known)


def _encode(
    encoder: Encoder, batch: Batch, batch_size: int, precision: str
) -> tuple[Tensor, Tensor]:
    """Unit embeddings (image, text) of a batch's n pairs, each `[n, dim]` fp16 on the CPU.

    A pair's text embedding is the normalised mean of its captions', zeros where it has none.
    """
    assert batch.pixels is not None and batch.owners is not None
    device = encoder.device
    autocast = (
        contextlib.nullcontext()
        if precision == "fp32"
        else torch.autocast(device.type, PRECISIONS[precision])
    )
    pixels = batch.pixels.to(device, non_blocking=True)
    with autocast:
        image = encoder.encode_image_tensors(encoder.preprocessing.normalise(pixels))
        if batch.tokens is None:
            return image.half().cpu(), torch.zeros_like(image).half().cpu()
        tokens = batch.tokens.to(device, non_blocking=True)
        pieces = [encoder.encode_token_tensors(piece) for piece in tokens.split(batch_size)]
    text = torch.cat(pieces)  # [captions, dim]
    owners = batch.owners.to(device)
    if not torch.equal(owners, torch.arange(len(image), device=device)):
        sums = torch.zeros_like(image).index_add_(0, owners, text)  # [n, dim]
        text = F.normalize(sums, dim=-1)
    return image.half().cpu(), text.half().cpu()


def _require_finite(
    encoder: Encoder, batch: Batch, image: Tensor, text: Tensor, precision: str
) -> None:
    """Raise a UserError that names the first pair whose embeddings `[n, dim]` are not finite."""
    row = first_not_finite(image, text)
    if row is not None:
        advice = "use fp32" if precision != "fp32" else "look at its weights, or leave the pair out"
        raise UserError(
            f"{encoder.id}: the embedding of {batch.samples[row].location} is not finite in "
            f"{precision}; {advice}"
        )


def _write(
    out: Path,
    part: int,
    encoded: list[tuple[Batch, Tensor, Tensor]],
    skipped: dict[int, list[Skipped]],
    dim: int,
) -> None:
    """Write one part's shard."""
    samples = [sample for batch, _, _ in encoded for sample in batch.samples]
    columns = zip(*samples, strict=True) if samples else ((),) * len(Sample._fields)
    none = torch.empty(0, dim)
    write_part(
        out,
        part,
        torch.cat([image for _, image, _ in encoded]) if encoded else none,
        torch.cat([text for _, _, text in encoded]) if encoded else none,
        sample_table(*columns),
        skipped[part],
        captions_cut=sum(batch.captions_cut for batch, _, _ in encoded),
    )


def _refuse_skipped(out: Path, parts: int) -> None:
    """Raise a UserError where an earlier run that was not strict skipped a pair."""
    import pyarrow.parquet as pq

    for index in range(parts):
        skipped = json.loads(pq.read_schema(out / part_name(index)).metadata[b"skipped"])
        if skipped:
            raise _strict_error(Skipped(**skipped[0]))


def _strict_error(record: Skipped) -> UserError:
    return UserError(
        f"{record.location}: {record.reason}; mend or remove this pair, or leave strict out"
    )
