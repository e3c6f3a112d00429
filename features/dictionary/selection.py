"""Which features of a sample have its largest pre-activations, without sorting all of them.

Exactly, from fp32 pre-activations; or, where the processor has matrix units for bf16, from
candidates, a few more than are wanted: they are chosen by bf16 products, their pre-activations are
computed anew in fp32, and the largest of those are taken.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from features.dictionary.base import Dictionary
from features.dictionary.sparse import outputs_at
from features.distributed import has_bf16_products
from features.errors import UserError

CHUNK = 1024
"""Samples of which all pre-activations are held at once."""
GROUP = 8
"""Features that are first compared by their maximum alone."""
SPARE = 8
"""Candidates beyond those that are wanted."""
WORTH_BF16 = 2**18
"""Dimensions times features from which choosing by bf16 products is faster than by fp32 ones."""
WORTH_THREADS = 2**17
"""Numbers from which a partition is shared among threads."""
INTEGERS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
"""What a positive number's bits are read as, to be compared: the order is the same."""


def resolve_selection(wanted: str, dictionary: Dictionary, device: torch.device) -> str:
    """How a training selects: "exact" or "bf16".

    Args:
        wanted: as `TrainConfig.selection`; "auto" is bf16 where the kind can and it is faster.

    Raises:
        UserError: the kind can't.
    """
    if wanted == "bf16" and not dictionary.selects_by_bf16:
        raise UserError(f"selection bf16: {dictionary.kind} selects exactly; use auto or exact")
    if wanted != "auto":
        return wanted
    large = dictionary.config.dim * dictionary.config.features >= WORTH_BF16
    return "bf16" if dictionary.selects_by_bf16 and large and has_bf16_products(device) else "exact"


def exact_places(x: Tensor, weight: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest outputs of a linear layer: (values, features), `[n, k]` each.

    Args:
        x: `[n, dim]`.
        weight: `[features, dim]`.
        bias: `[features]`.
    """
    values, places = [], []
    for chunk in x.split(CHUNK):
        pre = F.linear(chunk, weight, bias)  # [chunk, features]
        places.append(largest(pre, k))
        values.append(pre.gather(1, places[-1]))
    return torch.cat(values), torch.cat(places)


def candidate_places(
    x: Tensor, weight: Tensor, bias: Tensor, k: int, spare: int = SPARE
) -> tuple[Tensor, Tensor]:
    """As `exact_places`, among the k + spare features whose outputs are the largest in bf16.

    No other feature's output is above the least candidate's in bf16. Where that, and the greatest
    error of a candidate of the sample, reach the k-th largest, the sample is selected exactly: so
    it is where many features have nearly the same output.
    """
    candidates = min(k + spare, len(weight))
    low, low_bias = weight.bfloat16(), bias.bfloat16()
    chunks = x.bfloat16().split(CHUNK)
    found, rough = [], []
    for chunk in chunks:
        pre = F.linear(chunk, low, low_bias)  # [chunk, features]
        found.append(largest(pre, candidates))
        rough.append(pre.gather(1, found[-1]))
    places, estimates = torch.cat(found), torch.cat(rough).float()  # [n, candidates]
    outputs = outputs_at(x, weight, places) + bias[places]  # [n, candidates]
    kept = largest(outputs, k)
    values, features = outputs.gather(1, kept), places.gather(1, kept)  # [n, k]
    others = estimates.amin(1) + (outputs - estimates).abs().amax(1)  # [n]
    doubtful = (others >= values.amin(1)) & (others > 0)
    if candidates < len(weight) and doubtful.any():
        values[doubtful], features[doubtful] = exact_places(x[doubtful], weight, bias, k)
    return values, features


def largest(values: Tensor, count: int) -> Tensor:
    """Places of the largest values of each row, in no order: `[n, count]` int64.

    Where fewer are positive, which of the others fill up is left open.

    On the CPU, in two stages: the count largest values lie in the count groups of features whose
    maxima are largest, so that all others are looked at once.

    Args:
        values: `[n, features]`.
        count: at most the features.
    """
    features = values.shape[1]
    if values.device.type != "cpu" or values.dtype not in INTEGERS:
        return values.topk(count, dim=1, sorted=False).indices
    keys = values.detach().view(INTEGERS[values.dtype])
    groups = features // GROUP
    if groups <= count:
        return _partitioned(keys, count)
    grouped = keys[:, : groups * GROUP].unflatten(1, (GROUP, groups))  # [n, GROUP, groups]
    chosen = _partitioned(grouped.amax(1), count)  # [n, count]
    members = chosen.unsqueeze(1).expand(-1, GROUP, -1)  # [n, GROUP, count]
    rest = keys[:, groups * GROUP :]  # [n, fewer than GROUP]
    looked_at = torch.cat([grouped.gather(2, members).flatten(1), rest], dim=1)
    found = _partitioned(looked_at, count)  # [n, count]
    within_groups = chosen.gather(1, found % count) + found // count * groups
    return torch.where(found < GROUP * count, within_groups, found + GROUP * (groups - count))


def _partitioned(keys: Tensor, count: int) -> Tensor:
    """Places of the largest integers of each row `[n, count]`.

    numpy's partition of whole numbers is vectorised, that of numbers with their places is not: so
    both are packed into one, the place in the lower half.
    """
    width = keys.shape[1]
    bits, wide = (16, torch.int32) if keys.dtype == torch.int16 else (32, torch.int64)
    if width > 1 << bits:
        return keys.topk(count, dim=1, sorted=False).indices
    packed = keys.to(wide).bitwise_left_shift_(bits)  # [n, width]
    packed |= torch.arange(width, dtype=wide)
    threads = torch.get_num_threads() if packed.numel() >= WORTH_THREADS else 1
    parts = np.array_split(packed.numpy(), threads)
    with ThreadPoolExecutor(threads) as pool:  # numpy's own work is of one thread
        for part in parts[1:]:
            pool.submit(part.partition, width - count, axis=1)
        parts[0].partition(width - count, axis=1)
    return (packed[:, width - count :] & ((1 << bits) - 1)).long()
