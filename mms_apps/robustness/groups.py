"""Groups of features: edits that keep, remove or re-weight them, controls, and what an attack
moves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from features.dictionary import Dictionary
from features.errors import UserError
from features.modality import CROSS_MODAL, IMAGE_DOMINANT, TEXT_DOMINANT
from features.space.space import FeatureSpace
from mms_apps.robustness.checks.of_controls import CONTROL_KINDS, MIN_CONTROL_SEEDS, ControlGroup
from mms_apps.robustness.models import Squeezed

GROUPS = (IMAGE_DOMINANT, TEXT_DOMINANT, CROSS_MODAL)
MOVED_FEATURES = 12
"""Features that a study names as the most moved."""
DEFENCES = ("keep", "remove", "weight", "squeeze")


class GroupEdit(nn.Module):
    """Embeddings with the features' activations re-weighted.

    Args:
        weights: `[features]`; 1 leaves a feature as it is, 0 removes it.
        keep_error: add what the dictionary leaves out again; without it the embedding is
            restricted to the features of non-zero weight, and the mean.
    """

    weights: Tensor

    def __init__(self, dictionary: Dictionary, weights: Tensor, *, keep_error: bool) -> None:
        super().__init__()
        self.dictionary = dictionary
        self.keep_error = keep_error
        self.register_buffer("weights", weights.float())

    def extra_repr(self) -> str:
        return f"keep_error={self.keep_error}"

    def forward(self, embedding: Tensor) -> Tensor:
        """Unit image embeddings `[n, dim]` -> edited `[n, dim]`, of any length."""
        activations = self.dictionary.encode(embedding, "image")  # [n, features]
        return self.dictionary.reweighted(
            embedding, activations, self.weights, "image", keep_error=self.keep_error
        )


class PcaEdit(nn.Module):
    """Embeddings projected on principal components about a mean."""

    mean: Tensor
    components: Tensor

    def __init__(self, mean: Tensor, components: Tensor) -> None:
        """
        Args:
            mean: `[dim]`.
            components: orthonormal rows `[rank, dim]`.
        """
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("components", components)

    def forward(self, embedding: Tensor) -> Tensor:
        return (embedding - self.mean) @ self.components.T @ self.components + self.mean


@dataclass(frozen=True)
class Defence:
    """A defence as the command line writes it.

    `keep:CrossD` restricts embeddings to groups (joined by +), `remove:ImgD` takes groups out,
    `weight:ImgD=0.5,CrossD=2` re-weights them, `squeeze:3` rounds pixels to 3 bits.
    """

    spec: str
    kind: str
    weights: tuple[tuple[str, float], ...] = ()
    bits: int = 0

    @classmethod
    def parse(cls, spec: str) -> Defence:
        """
        Raises:
            UserError: it is none of these.
        """
        kind, _, rest = spec.partition(":")
        wrong = UserError(
            f"--defence {spec}: use keep:GROUP, remove:GROUP, weight:GROUP=NUMBER (groups "
            f"{', '.join(GROUPS)}, several joined by + or by commas) or squeeze:BITS"
        )
        if kind not in DEFENCES or not rest:
            raise wrong
        try:
            if kind == "squeeze":
                if not 1 <= int(rest) <= 7:
                    raise wrong
                return cls(spec, kind, bits=int(rest))
            if kind == "weight":
                pairs = [part.split("=") for part in rest.split(",")]
                weights = tuple((name, float(value)) for name, value in pairs)
            else:
                weights = tuple((name, 1.0 if kind == "keep" else 0.0) for name in rest.split("+"))
        except ValueError:
            raise wrong from None
        if any(name not in GROUPS or not np.isfinite(value) for name, value in weights):
            raise wrong
        return cls(spec, kind, weights)

    def edit(self, space: FeatureSpace) -> GroupEdit | None:
        """The edit of the embedding; None for one of the pixels."""
        if self.kind == "squeeze":
            return None
        weights = torch.full((len(space),), 0.0 if self.kind == "keep" else 1.0)
        for group, weight in self.weights:
            weights[space.select(group)] = weight
        return _edit(space, weights, keep_error=self.kind != "keep")

    def before(self, *, straight_through: bool) -> Squeezed | None:
        """The edit of the pixels; None for one of the embedding."""
        if self.kind != "squeeze":
            return None
        return Squeezed(self.bits, straight_through=straight_through)


def keep_only(space: FeatureSpace, features: Tensor) -> GroupEdit:
    """Embeddings restricted to some features, `[selected]` int64."""
    weights = torch.zeros(len(space))
    weights[features] = 1
    return _edit(space, weights, keep_error=False)


def _edit(space: FeatureSpace, weights: Tensor, *, keep_error: bool) -> GroupEdit:
    return GroupEdit(space.dictionary, weights.to(space.device), keep_error=keep_error)


@dataclass(frozen=True)
class Control:
    """A random group of features, or principal components, to compare a group with."""

    described: ControlGroup
    features: Tensor | None
    """`[selected]` int64; None for principal components."""
    pca: PcaEdit | None

    def edit(self, space: FeatureSpace) -> nn.Module:
        """The edit that restricts embeddings to it."""
        if self.features is None:
            assert self.pca is not None
            return self.pca
        return keep_only(space, self.features)

    def share(self, moved: Tensor, change: Tensor) -> Tensor:
        """Of what an attack moved, each image's share that lies in the control: `[n]`.

        Args:
            moved: change of the activations, `[n, features]`.
            change: change of the embedding, `[n, dim]`.
        """
        if self.features is not None:
            return _share(moved[:, self.features].square().sum(1), moved.square().sum(1))
        assert self.pca is not None
        along = (change @ self.pca.components.T).square().sum(1)
        return _share(along, change.square().sum(1))


def energy(activations: Tensor) -> Tensor:
    """Mean squared activation of each feature, `[features]`, of activations `[n, features]`."""
    return activations.square().mean(0)


def controls(
    space: FeatureSpace,
    group: str,
    embeddings: Tensor,
    *,
    seeds: int = MIN_CONTROL_SEEDS,
) -> Iterator[Control]:
    """For every kind of control and every seed, one beside a group.

    Args:
        embeddings: clean unit image embeddings, `[n, dim]`, by which energy and components go.
    """
    own = space.select(group)
    activations = space.encode_images(embeddings)  # [n, features]
    energies = energy(activations).cpu()
    scored = torch.cat([space.select(name) for name in GROUPS])
    rank = max(1, round(float((activations[:, own] != 0).sum(1).float().mean())))
    for kind in CONTROL_KINDS:
        for seed in range(seeds):
            generator = torch.Generator().manual_seed(seed)
            if kind == "pca":
                pca = _components(embeddings, rank, generator)
                yield Control(ControlGroup(group, kind, seed, float(rank)), None, pca)
                continue
            order = scored[torch.randperm(len(scored), generator=generator)]
            if kind == "size":
                chosen = order[: len(own)]
            else:
                chosen = _of_energy(order, energies, float(energies[own].sum()))
            described = ControlGroup(group, kind, seed, float(energies[chosen].sum()))
            yield Control(described, chosen, None)


def _of_energy(order: Tensor, energies: Tensor, wanted: float) -> Tensor:
    """The first features in an order whose energies add up to at most `wanted`: `[selected]`."""
    chosen, total = [], 0.0
    for feature in order.tolist():
        own = float(energies[feature])
        if total + own <= wanted:
            chosen.append(feature)
            total += own
    return torch.tensor(chosen, dtype=torch.int64)


def _components(embeddings: Tensor, rank: int, generator: torch.Generator) -> PcaEdit:
    """Principal components of a bootstrap sample of embeddings `[n, dim]`."""
    drawn = torch.randint(len(embeddings), (len(embeddings),), generator=generator)
    sample = embeddings[drawn.to(embeddings.device)]
    mean = sample.mean(0)
    directions = torch.linalg.svd(sample - mean, full_matrices=False).Vh  # [dim, dim]
    return PcaEdit(mean, directions[:rank])


def shares(space: FeatureSpace, moved: Tensor) -> dict[str, Tensor]:
    """Of what an attack moved, each image's share that lies in a group's features: `[n]` by group,
    of the squared changes of activations; NaN where nothing moved.

    Args:
        moved: change of the activations, `[n, features]`.
    """
    whole = moved.square().sum(1)
    return {g: _share(moved[:, space.select(g)].square().sum(1), whole) for g in GROUPS}


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 1e-12, part / whole.clamp(min=1e-12), torch.nan)


def most_moved(
    space: FeatureSpace, before: Tensor, after: Tensor, count: int = MOVED_FEATURES
) -> list[dict[str, object]]:
    """The features with the largest mean change of activation, up or down, the largest first;
    beside it what each usually has where it is active (`mean_active`).

    Args:
        before: activations of images, `[n, features]`.
        after: of the same images, attacked.
    """
    change = (after - before).abs().mean(0)  # [features]
    table, usual = space.features, space.mean_active("image")
    rows: list[dict[str, object]] = []
    for feature in change.topk(min(count, len(change))).indices.tolist():
        if float(change[feature]) <= 0:
            break
        rows.append(
            {
                "feature": feature,
                "name": table["name"][feature].as_py(),
                "class": table["class"][feature].as_py(),
                "change": float(change[feature]),
                "before": float(before[:, feature].mean()),
                "after": float(after[:, feature].mean()),
                "mean_active": float(usual[feature]),
            }
        )
    return rows
