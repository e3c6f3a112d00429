"""Passes over pairs, after which a dictionary's features can be scored, named and illustrated.

Under `accelerate launch`, process r of n passes over the r-th of n runs of consecutive pairs (of
shuffled ones, over every n-th batch), and the main process merges what they found.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, tee
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from features.dictionary import Dictionary
from features.dictionary.base import SparseCode
from features.distributed import broadcast, own_run, statistics_device, this_process
from features.modality import MODALITIES
from features.scores.active import ActivePairs
from features.scores.agreement import AgreementStatistics
from features.scores.dominance import DominanceStatistics
from features.scores.monosemanticity import Moments, MonosemanticityStatistics, TopSamples
from features.scores.naming import NamingStatistics
from features.store.batches import one_ahead
from features.store.pictures import Pictures, PicturesOfBatch
from features.store.store import ActivationStore

SHUFFLED_BATCH = 1024
"""Pairs of a shuffled batch, whatever the batch size: who meets whom by chance depends on it."""
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
        self.add(ActivePairs.of(image, text), judge_image, judge_text, samples)

    def add(
        self,
        active: ActivePairs,
        judge_image: Tensor,
        judge_text: Tensor,
        samples: pa.Table,
        pictures: PicturesOfBatch | None = None,
    ) -> None:
        """Add the next pairs; the rest as `update` takes it.

        Args:
            pictures: what the pairs show; None where each shows a picture of its own.
        """
        self.dominance.add(active, pictures)
        self.monosemanticity.add(active, judge_image, judge_text, pictures)
        self.naming.add(active, samples)
        images, texts = active.images, active.texts
        if pictures is not None:
            images = images.where(pictures.new.to(images.pair.device)[images.pair])
            texts = texts.where(pictures.new_pair.to(texts.pair.device)[texts.pair])
        self.image_best.add(images, images.image, self._next)
        self.text_best.add(texts, texts.text, self._next)
        self._next += active.pairs

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


Mergeable = TypeVar("Mergeable", ScoringStatistics, AgreementStatistics, NamingStatistics)


def collect(
    store: ActivationStore,
    dictionary: Dictionary,
    judge: ActivationStore,
    terms: Sequence[str],
    pictures: Pictures,
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
        pictures: of the store.

    Returns:
        What was found in all pairs; in processes other than the main one, in their own.
    """
    from rich.progress import track

    pairs = own_run(len(store))
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
    embeddings = store.batches(batch_size, pairs)
    if judge is store:
        embeddings, judged = tee(embeddings)
    else:
        judged = judge.batches(batch_size, pairs)
    batches = zip(
        _active_pairs(embeddings, dictionary, device),
        judged,
        store.sample_batches(batch_size, pairs),
        strict=True,
    )
    first = pairs.start
    for active, (judge_image, judge_text), samples in track(
        one_ahead(batches),
        description="scoring the features",
        total=-(-len(pairs) // batch_size),
        disable=not (progress and this_process().is_local_main_process),
    ):
        shown = pictures.among(np.arange(first, first + active.pairs))
        found.add(active, judge_image.to(sums), judge_text.to(sums), samples, shown)
        first += active.pairs
    return _merged(found)


def collect_agreement(
    store: ActivationStore,
    dictionary: Dictionary,
    means: Tensor,
    terms: Sequence[str],
    pictures: Pictures,
    *,
    seed: int,
    replicates: int,
    device: torch.device,
    progress: bool,
) -> tuple[AgreementStatistics, NamingStatistics]:
    """Pass over the pairs once more, shuffled.

    Args:
        dictionary: on the device.
        means: `DominanceStatistics.means` of all pairs, `[2, features]`.
        pictures: of the store.

    Returns:
        The agreement, and what `collect_naming_chance` gives, from the same pass.
    """
    found = AgreementStatistics(
        means.to(statistics_device(device)),
        seed=seed,
        stream=store.config.pairs_fingerprint,
        replicates=replicates,
    )
    names = collect_naming_chance(
        store, dictionary, terms, pictures, found, seed=seed, device=device, progress=progress
    )
    return _merged(found), names


def collect_naming_chance(
    store: ActivationStore,
    dictionary: Dictionary,
    terms: Sequence[str],
    pictures: Pictures,
    agreement: AgreementStatistics | None = None,
    *,
    seed: int,
    device: torch.device,
    progress: bool,
) -> NamingStatistics:
    """Pass over the captions in their order and over the activations shuffled: what names get by
    chance.

    Args:
        dictionary: on the device.
        pictures: of the store.
        agreement: is given the pairs and its floor from the same shuffled activations.

    Returns:
        As `collect`.
    """
    from rich.progress import track

    found = NamingStatistics(dictionary.config.features, terms, statistics_device(device))
    shuffled = store.numbered_shuffled_batches(SHUFFLED_BATCH, torch.Generator().manual_seed(seed))
    numbered, batches = tee(_own_batches(shuffled))
    shown, to_weight = tee(pictures.among(numbers) for numbers, *_ in numbered)
    passed = zip(
        _active_pairs((batch[1:] for batch in batches), dictionary, device),
        shown,
        (None if agreement is None else agreement.weights_of(p.number) for p in to_weight),
        _own_batches(store.sample_batches(SHUFFLED_BATCH)),
        strict=True,
    )
    for active, of_batch, weights, samples in track(
        one_ahead(passed),
        description="agreement, and scores by chance",
        total=_own_batch_count(store),
        disable=not (progress and this_process().is_local_main_process),
    ):
        found.add(active, samples)
        if agreement is not None and weights is not None:
            agreement.add(active, weights, of_batch)
            agreement.add_chance(active, of_batch)
    return _merged(found)


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


def _own_batches(batches: Iterable[Made]) -> Iterator[Made]:
    """This process's share of batches that all processes read."""
    return islice(batches, this_process().process_index, None, this_process().num_processes)


def _own_batch_count(store: ActivationStore) -> int:
    return len(list(_own_batches(range(0, len(store), SHUFFLED_BATCH))))


@torch.no_grad()
def _active_pairs(
    batches: Iterable[tuple[Tensor, Tensor]], dictionary: Dictionary, device: torch.device
) -> Iterator[ActivePairs]:
    """Where batches of embeddings activate the features, where statistics are kept."""
    sums = statistics_device(device)
    for batch in batches:
        embeddings = [x.to(device) for x in batch]
        if dictionary.codes_are_sparse:
            codes = [
                SparseCode(*(part.to(sums) for part in dictionary.encode_sparse(x, modality)))
                for x, modality in zip(embeddings, MODALITIES, strict=True)
            ]
            yield ActivePairs.of_codes(codes[0], codes[1], dictionary.config.features)
        else:
            z, w = (
                dictionary.encode(x, modality).to(sums)
                for x, modality in zip(embeddings, MODALITIES, strict=True)
            )  # [n, features] each
            yield ActivePairs.of(z, w)


def _merged(found: Mergeable) -> Mergeable:
    """In the main process, what all processes found."""
    state = this_process()
    for other in range(1, state.num_processes):
        theirs = broadcast(to_device(found, "cpu") if state.process_index == other else None, other)
        if state.is_main_process:
            found.merge(theirs)
    return found
