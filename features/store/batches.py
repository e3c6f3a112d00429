"""Pairs on their way to the encoder: decoded in workers, in batches within one part."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from features.distributed import end_with
from features.encoders.context import Context
from features.encoders.encoder import Preprocessing
from features.errors import UserError
from features.pairs.base import PairSource, Part, Skipped
from features.store.content import KnownContents, content_key

Made = TypeVar("Made")


class Sample(NamedTuple):
    """What a store keeps of a pair beside its embeddings."""

    id: str
    captions: tuple[str, ...]
    """As far as the encoder sees them."""
    location: str
    attributes: dict[str, str | None]
    content: str


@dataclass(frozen=True)
class Batch:
    """Pairs of one part on their way to the encoder."""

    part: int
    skipped: list[Skipped]
    """Those met since the batch before."""
    pixels: Tensor | None = None
    """As `Preprocessing.normalise` takes them, n of them."""
    tokens: Tensor | None = None
    """`[captions, context]`; None where no pair has a caption."""
    owners: Tensor | None = None
    """`[captions]`: which of the n pairs a caption belongs to."""
    samples: list[Sample] = field(default_factory=list)
    """Of the n pairs."""
    captions_cut: int = 0
    known: int = 0
    """Pairs that were left out since the batch before, as they are known."""
    last: bool = False
    """Whether the part is complete."""
    failure: str = ""
    """Why the part cannot be read now, in words: a worker's exception would bring its trace."""

    def pin_memory(self) -> Batch:
        pinned = {
            name: value.pin_memory()
            for name in ("pixels", "tokens", "owners")
            if (value := getattr(self, name)) is not None
        }
        return dataclasses.replace(self, **pinned)


class Batches(IterableDataset[Batch]):
    """Decodes parts into batches; worker w of W takes every W-th part from the w-th on."""

    def __init__(
        self,
        source: PairSource,
        todo: list[tuple[int, Part]],
        preprocessing: Preprocessing,
        tokenizer: Callable[[list[str]], Tensor],
        batch_size: int,
        known: KnownContents,
    ) -> None:
        """
        Args:
            known: pairs that are left out.
        """
        self.source = source
        self.todo = todo
        self.preprocessing = preprocessing
        self.context = Context(tokenizer)
        self.batch_size = batch_size
        self.known = known

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        mine = self.todo if worker is None else self.todo[worker.id :: worker.num_workers]
        for index, part in mine:
            try:
                yield from self._part(index, part)
            except UserError as error:
                yield Batch(index, [], failure=str(error))

    def _part(self, index: int, part: Part) -> Iterator[Batch]:
        samples: list[Sample] = []
        pixels: list[Tensor] = []  # crops, since whole photographs would fill the memory
        skipped: list[Skipped] = []
        known = 0
        for record in self.source.read(part, self.preprocessing.short_side):
            if isinstance(record, Skipped):
                skipped.append(record)
                continue
            content = content_key(record.image, record.captions, record.file)
            if content in self.known:
                known += 1
                continue
            if len(samples) == self.batch_size:
                yield self._batch(index, samples, pixels, skipped, known)
                samples, pixels, skipped, known = [], [], [], 0
            pixels.append(self.preprocessing.pixels_of(record.image))
            samples.append(
                Sample(record.id, record.captions, record.location, record.attributes, content)
            )
        yield self._batch(index, samples, pixels, skipped, known, last=True)

    def _batch(
        self,
        part: int,
        samples: list[Sample],
        pixels: list[Tensor],
        skipped: list[Skipped],
        known: int,
        last: bool = False,
    ) -> Batch:
        if not samples:
            return Batch(part, skipped, known=known, last=last)
        whole = (caption for sample in samples for caption in sample.captions)
        captions = [self.context.within_reach(caption) for caption in whole]
        owners = [i for i, sample in enumerate(samples) for _ in sample.captions]
        tokens, cut = None, 0
        if captions:
            tokens = self.context.tokenizer(captions)
            seen, cut = self.context.as_seen(captions, tokens)
            left = iter(seen)
            samples = [s._replace(captions=tuple(islice(left, len(s.captions)))) for s in samples]
        return Batch(
            part,
            skipped,
            torch.stack(pixels),
            tokens,
            torch.tensor(owners),
            samples,
            cut,
            known,
            last,
        )


def one_ahead(batches: Iterable[Made]) -> Iterator[Made]:
    """The batches, each made in a thread while the one before is worked on."""
    iterator = iter(batches)
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(next, iterator, None)
        while (batch := ahead.result()) is not None:
            ahead = pool.submit(next, iterator, None)
            yield batch


def prepare_worker(_: int) -> None:
    end_with(os.getppid())  # else it may wait for ever to hand over a batch to nobody
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
