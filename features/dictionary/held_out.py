"""The pairs of a store that are kept from training, and what is measured on them and on the others.

Of several processes each passes over its run of the pairs, and all get the figures of the whole.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from features.dictionary.base import Dictionary
from features.dictionary.reconstruction import reconstruction_figures
from features.distributed import in_all_processes, own_run, sum_of_earlier, summed, this_process
from features.store.store import ActivationStore

EVALUATION_BATCH = 1024
HELD_OUT_ONE_IN = 10
HASHED_DIMS = 16
EVALUATED_PAIRS = 4096
"""Held-out pairs on which a running training is measured."""


def is_held_out(image: Tensor) -> Tensor:
    """Which pairs are kept from training: `[n]` bool, about a tenth.

    Decided by a hash of the image's embedding as the store keeps it (fp16), so that pairs with the
    same image fall on the same side, whatever the order.

    Args:
        image: `[n, dim]`.
    """
    bits = image[:, :HASHED_DIMS].half().contiguous().view(torch.int16).long()  # [n, hashed dims]
    state = torch.full((len(bits),), 0x2545F491, device=image.device)
    for column in bits.unbind(1):  # FNV-like; int64 arithmetic wraps
        state = (state ^ (column & 0xFFFF)) * 0x100000001B3
        state = state ^ ((state >> 29) & 0x7FFFFFFFF)
    return (state & 0x7FFFFFFF) % HELD_OUT_ONE_IN == 0


def training_means(store: ActivationStore) -> tuple[Tensor, int]:
    """Mean image and mean text of the training pairs `[2, dim]` float64, and their count."""

    def own_sums() -> tuple[Tensor, Tensor]:
        total = torch.zeros(2, store.dim, dtype=torch.float64)
        pairs = torch.zeros((), dtype=torch.long)
        for image, text in store.batches(EVALUATION_BATCH, own_run(len(store))):
            kept = ~is_held_out(image)
            total += torch.stack([image[kept].double().sum(0), text[kept].double().sum(0)])
            pairs += kept.sum()
        return total, pairs

    total, pairs = (summed(own) for own in in_all_processes(own_sums))
    return total / pairs.clamp(min=1), int(pairs)


def held_out_figures(
    dictionary: Dictionary, store: ActivationStore
) -> dict[str, dict[str, float | None]]:
    """How well a dictionary reconstructs the held-out pairs of its training store."""
    first = 0
    if this_process().num_processes > 1:
        mine = in_all_processes(lambda: sum(len(image) for image, _ in _held_out(store)))
        first = sum_of_earlier(mine)
    return reconstruction_figures(dictionary, _held_out(store), first)


def evaluated_pairs(store: ActivationStore) -> tuple[Tensor, Tensor]:
    """The first held-out pairs: (image, text), each `[EVALUATED_PAIRS or fewer, dim]`."""
    found: list[tuple[Tensor, Tensor]] = []
    count = 0
    for image, text in store.batches(EVALUATION_BATCH):
        rows = is_held_out(image)
        found.append((image[rows], text[rows]))
        count += int(rows.sum())
        if count >= EVALUATED_PAIRS:
            break
    image, text = (torch.cat(side)[:EVALUATED_PAIRS] for side in zip(*found, strict=True))
    return image, text


def _held_out(store: ActivationStore) -> Iterator[tuple[Tensor, Tensor]]:
    """The held-out ones among this process's run of the pairs."""
    for image, text in store.batches(EVALUATION_BATCH, own_run(len(store))):
        rows = is_held_out(image)
        if rows.any():
            yield image[rows], text[rows]
