"""One pass over pairs, after which a dictionary's features can be scored, named and illustrated.

Under `accelerate launch`, process r of n passes over the r-th of n runs of consecutive pairs, and
the main process merges what they found.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TypeVar

import pyarrow as pa
import torch
from torch import Tensor

from features.dictionary import Dictionary
from features.distributed import broadcast, statistics_device, this_process
from features.scores.dominance import DominanceStatistics
from features.scores.monosemanticity import Moments, MonosemanticityStatistics, TopSamples
from features.scores.naming import NamingStatistics
from features.store.store import ActivationStore

Made = TypeVar("Made")


class ScoringStatistics:
    """All that one pass over pairs collects, mergeable.

    Args:
        features: features of the dictionary.
        judge_dim: dimensions of the judge's embeddings.
        terms: to name features by.
        kept: samples to keep a feature and modality.
        seed: of the bootstrap.
        stream: the data set's name, as `DominanceStatistics` takes it.
        start: number of the first pair.
        replicates: of the bootstrap.
    """

    def __init__(
        self,
        features: int,
        judge_dim: int,
        terms: Sequence[str],
        *,
        kept: int = 50,
        seed: int = 0,
        stream: str = "pairs",
        start: int = 0,
        replicates: int = 200,
        device: torch.device | str = "cpu",
    ) -> None:
        self.dominance = DominanceStatistics(
            features, seed=seed, stream=stream, start=start, replicates=replicates, device=device
        )
        self.monosemanticity = MonosemanticityStatistics(features, judge_dim, device)
        self.naming = NamingStatistics(features, terms, device)
        self.image_best = TopSamples(features, kept, device)
        self.text_best = TopSamples(features, kept, device)
        self._next = start

    @property
    def best(self) -> dict[str, TopSamples]:
        """The most activating samples by modality."""
        return {"image": self.image_best, "text": self.text_best}

    def update(
        self,
        image: Tensor,
        text: Tensor,
        judge_image: Tensor,
        judge_text: Tensor,
        samples: pa.Table,
    ) -> None:
        """Add the next pairs.

        Args:
            image: activations `[n, features]`.
            text: activations `[n, features]`.
            judge_image: the judge's embeddings `[n, judge_dim]`.
            judge_text: `[n, judge_dim]`.
            samples: their n rows of the store's samples.
        """
        self.dominance.update(image, text)
        self.monosemanticity.update(image, text, judge_image, judge_text)
        self.naming.update(image, text, samples)
        self.image_best.update(image, self._next)
        self.text_best.update(text, self._next)
        self._next += len(image)

    def merge(self, other: ScoringStatistics) -> None:
        """Add what was found in other pairs.

        Raises:
            ValueError: the features, the terms, or the bootstrap's settings differ.
        """
        self.dominance.merge(other.dominance)
        self.monosemanticity.merge(other.monosemanticity)
        self.naming.merge(other.naming)
        self.image_best.merge(other.image_best)
        self.text_best.merge(other.text_best)


def collect(
    store: ActivationStore,
    dictionary: Dictionary,
    judge: ActivationStore,
    terms: Sequence[str],
    *,
    kept: int,
    batch_size: int,
    seed: int,
    replicates: int,
    device: torch.device,
    progress: bool,
) -> ScoringStatistics:
    """Pass over the pairs.

    Args:
        dictionary: on the device.
        judge: may be the store itself.

    Returns:
        What was found in all pairs; in processes other than the main one, in their own.
    """
    from rich.progress import track

    state = this_process()
    rank, ranks = state.process_index, state.num_processes
    pairs = range(len(store) * rank // ranks, len(store) * (rank + 1) // ranks)
    sums = statistics_device(device)
    found = ScoringStatistics(
        dictionary.config.features,
        judge.dim,
        terms,
        kept=kept,
        seed=seed,
        stream=store.config.pairs_fingerprint,
        start=pairs.start,
        replicates=replicates,
        device=sums,
    )
    batches = zip(
        _on_device(store, batch_size, pairs, device),
        _on_device(judge, batch_size, pairs, sums),
        store.sample_batches(batch_size, pairs),
        strict=True,
    )
    for (image, text), (judge_image, judge_text), samples in track(
        batches,
        description="scoring the features",
        total=-(-len(pairs) // batch_size),
        disable=not (progress and state.is_local_main_process),
    ):
        image = dictionary.encode(image, "image").to(sums)  # [n, features]
        text = dictionary.encode(text, "text").to(sums)  # [n, features]
        found.update(image, text, judge_image, judge_text, samples)
    for other in range(1, ranks):
        theirs = broadcast(to_device(found, "cpu") if rank == other else None, other)
        if state.is_main_process:
            found.merge(theirs)
    return found


def to_device(statistics: Made, device: torch.device | str) -> Made:
    """The statistics with all tensors on a device."""
    moved = copy.copy(statistics)
    for name, value in vars(statistics).items():
        if isinstance(value, Tensor):
            setattr(moved, name, value.to(device))
        elif isinstance(value, STATISTICS):
            setattr(moved, name, to_device(value, device))
    return moved


STATISTICS = (DominanceStatistics, MonosemanticityStatistics, Moments, NamingStatistics, TopSamples)


def _on_device(
    store: ActivationStore, batch_size: int, pairs: range, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    for image, text in store.batches(batch_size, pairs):
        yield image.to(device), text.to(device)
