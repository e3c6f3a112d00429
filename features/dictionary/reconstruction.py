"""How well a dictionary reconstructs embeddings."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from features.bootstrap import bootstrap_weights
from features.dictionary.base import Dictionary, DictionaryConfig
from features.distributed import in_all_processes, statistics_device, summed
from features.modality import MODALITIES, Modality

REPLICATES = 200
"""Of the bootstrap behind the intervals of the reconstruction."""
RECONSTRUCTION_FIGURES = (
    "fvu",
    "fvu_low",
    "fvu_high",
    "l0",
    "l0_low",
    "l0_high",
    "dead",
    "samples",
)


@torch.no_grad()
def reconstruction_figures(
    dictionary: Dictionary, batches: Iterable[tuple[Tensor, Tensor]], first: int = 0
) -> dict[str, dict[str, float | None]]:
    """How well a dictionary reconstructs, by "image", "text", "within" and "overall", in one pass.

    - fvu: sum ||x - x_hat||^2 / sum ||x - mu||^2, one ratio over all samples, mu their mean vector;
      explained variance is 1 - fvu. "within" takes images and texts together, each about the mean
      of its own modality: the headline. "overall" takes both about one mean, so that the gap
      between the modalities, which two vectors explain, counts as variance: it flatters.
    - l0: mean count of non-zero activations a sample.
    - fvu_low, fvu_high, l0_low, l0_high: 95% percentile intervals from a bootstrap over
      the pairs.
    - dead: share of the features that are active for none of the samples.
    - samples: their number.

    fvu is None where the samples don't vary, and all but `samples` where there are none.

    Of several processes each gives its share of the pairs, and all get the figures of the whole.

    Args:
        batches: (image, text), each `[n, dim]`.
        first: number of the first pair, on which its weights in the bootstrap depend.
    """

    def own_totals() -> dict[Modality, _Totals]:
        totals = {m: _Totals.empty(dictionary.config) for m in MODALITIES}
        for image, text in batches:
            start = first + totals["image"].count
            weights = bootstrap_weights(0, "reconstruction", start, len(image), REPLICATES).double()
            weights = torch.cat([torch.ones(len(image), 1, dtype=torch.float64), weights], dim=1)
            totals["image"].add(dictionary, "image", image, weights)
            totals["text"].add(dictionary, "text", text, weights)
        return totals

    totals = {m: own.of_all_processes() for m, own in in_all_processes(own_totals).items()}
    both = totals["image"].plus(totals["text"])
    variances = {m: totals[m].variance() for m in MODALITIES}
    return {m: totals[m].figures(variances[m]) for m in MODALITIES} | {
        "within": both.figures(variances["image"] + variances["text"]),
        "overall": both.figures(both.variance()),
    }


@torch.no_grad()
def fvu_within(dictionary: Dictionary, image: Tensor, text: Tensor) -> float | None:
    """FVU "within" of a few pairs, without an interval; None where they don't vary.

    Of several processes each gives its share of the pairs, and all get the figure of the whole.

    Args:
        image: `[n, dim]`.
        text: `[n, dim]`.
    """
    pairs = torch.stack([image, text]).to(statistics_device(image.device))  # [2, n, dim]
    count = summed(pairs.new_tensor(len(image), dtype=torch.float64))
    means = summed(pairs.double().sum(1, keepdim=True)) / count.clamp(min=1)  # [2, 1, dim]
    variance = summed((pairs.double() - means).square().sum())
    error = torch.zeros_like(variance)
    for modality, x in zip(MODALITIES, (image, text), strict=True):
        code = dictionary.encode_sparse(x, modality)
        missed = (x - dictionary.decode_sparse(code, modality)).to(pairs.device)  # [n, dim]
        error += missed.double().square().sum()
    error = summed(error)
    varies = variance > 1e-9 * (variance + count * means.square().sum())
    return float(error / variance) if varies else None


@dataclass
class _Totals:
    """float64 sums over samples, as they are (first) and under the bootstrap's weights."""

    count: int
    weight: Tensor
    """`[1 + replicates]`"""
    total: Tensor
    """sum x: `[1 + replicates, dim]`"""
    squares: Tensor
    """sum ||x||^2: `[1 + replicates]`"""
    error: Tensor
    """sum ||x - x_hat||^2: `[1 + replicates]`"""
    nonzero: Tensor
    """`[1 + replicates]`"""
    active: Tensor
    """Features that were active: `[features]` bool."""

    @classmethod
    def empty(cls, config: DictionaryConfig) -> _Totals:
        zeros = torch.zeros(1 + REPLICATES, dtype=torch.float64)
        total = torch.zeros(1 + REPLICATES, config.dim, dtype=torch.float64)
        return cls(0, zeros, total, zeros, zeros, zeros, torch.zeros(config.features).bool())

    def add(self, dictionary: Dictionary, modality: Modality, x: Tensor, weights: Tensor) -> None:
        """`weights`: `[n, 1 + replicates]`."""
        code = dictionary.encode_sparse(x, modality)
        error = (x - dictionary.decode_sparse(code, modality)).double()
        nonzero = code.values != 0  # [n, k]
        weights = weights.T  # [1 + replicates, n]
        self.count += len(x)
        self.weight = self.weight + weights.sum(1)
        self.total = self.total + weights @ x.double()
        self.squares = self.squares + weights @ x.double().square().sum(1)
        self.error = self.error + weights @ error.square().sum(1)
        self.nonzero = self.nonzero + weights @ nonzero.sum(1).double()
        self.active[code.indices[nonzero]] = True

    def plus(self, other: _Totals) -> _Totals:
        return _Totals(
            self.count + other.count,
            self.weight + other.weight,
            self.total + other.total,
            self.squares + other.squares,
            self.error + other.error,
            self.nonzero + other.nonzero,
            self.active | other.active,
        )

    def of_all_processes(self) -> _Totals:
        """What all processes found."""
        return _Totals(
            int(summed(torch.tensor(self.count))),
            summed(self.weight),
            summed(self.total),
            summed(self.squares),
            summed(self.error),
            summed(self.nonzero),
            summed(self.active.int()) > 0,
        )

    def variance(self) -> Tensor:
        """sum ||x - mu||^2: `[1 + replicates]`"""
        return self.squares - self.total.square().sum(1) / self.weight

    def figures(self, variance: Tensor) -> dict[str, float | None]:
        """`variance`: what the errors are a fraction of, `[1 + replicates]`."""
        if self.count == 0:
            return dict.fromkeys(RECONSTRUCTION_FIGURES) | {"samples": 0}
        fvu = torch.where(variance > 1e-9 * self.squares, self.error / variance, torch.nan)
        return {
            **_with_interval("fvu", fvu),
            **_with_interval("l0", self.nonzero / self.weight),
            "dead": 1 - float(self.active.double().mean()),
            "samples": self.count,
        }


def _with_interval(name: str, values: Tensor) -> dict[str, float | None]:
    """A figure `[1 + replicates]` and its 95% percentile interval; None where it is undefined."""
    low, high = values[1:].nanquantile(torch.tensor([0.025, 0.975]).to(values)).tolist()
    found = {name: float(values[0]), f"{name}_low": low, f"{name}_high": high}
    return {key: None if math.isnan(value) else value for key, value in found.items()}
