"""Edits that turn samples like these into samples like those, from examples or from words.

Four ways, tried against one another in `benchmarks/steering.py`:

- features: those in which the two differ most, each by that difference;
- difference: the mean difference, in a few features by orthogonal matching pursuit;
- score_set: each sample's score on the line that tells the two apart (Fisher's discriminant) is set
  to the target's mean, along the same few features: as far as each sample has to go;
- `AffineMap`: every direction at once, fitted on pairs; no features, an upper reference.

`sure_of` gives a probe at which moves can stop, so that each sample goes no further than it must.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from features.arrays import tensor_of
from features.dictionary import Modality
from features.errors import UserError
from features.space.space import FeatureSpace
from mms_apps.steering.choosing import TEMPLATES, between
from mms_apps.steering.edits import Edit, Probe, ScoreSet, Steering, probability_of
from mms_apps.steering.values import whole

TAKEN = 8
"""Features, at most."""
PRESENT = 0.5
"""A feature is taken away only where it is active in so large a share of the samples to go from."""
ALIKE = 1e-6
"""Unit embeddings, or means of them, that differ by less are taken for one."""
FOLDS = 5
"""Of the cross-validation that chooses a probe's penalty."""
Samples = Tensor | np.ndarray | Sequence[Tensor | np.ndarray] | str | Sequence[str]


def find(
    space: FeatureSpace,
    source: Samples,
    target: Samples,
    how: str = "difference",
    modality: Modality = "image",
    taken: int = TAKEN,
) -> Steering:
    """A steering from samples like `source` to samples like `target`.

    Args:
        source, target: examples, embeddings `[n, dim]` and `[m, dim]`, or a list of embeddings
            `[dim]`; or words, whose texts' embeddings stand for them.
        how: features, difference or score_set.
        modality: of the examples.
        taken: features, at most.

    Raises:
        UserError: an unknown way, samples that are neither embeddings nor words, none of them, or a
            score set from words or from samples that don't vary.
    """
    if how not in WAYS:
        raise UserError(f"{how}: no way to find edits; use {', '.join(WAYS)}")
    taken = whole("taken", taken, 1)
    words = any([_words(samples) is not None for samples in (source, target)])
    if words and how == "score_set":
        raise UserError("a score set needs examples; give embeddings, or use difference")
    before, after = (_embedded(space, samples) for samples in (source, target))
    if not len(before) or not len(after):
        raise UserError("no samples to go from or to; give at least one of each")
    return WAYS[how](space, before, after, "text" if words else modality, taken)


def by_features(
    space: FeatureSpace, source: Tensor, target: Tensor, modality: Modality, taken: int
) -> Steering:
    """`find`'s features."""
    return Steering(between(space, source, target, modality, taken))


def by_difference(
    space: FeatureSpace, source: Tensor, target: Tensor, modality: Modality, taken: int
) -> Steering:
    """`find`'s difference."""
    difference = target.mean(0) - source.mean(0)  # [dim]
    features, steps = pursue(space, difference, source, modality, taken)
    usual = space.mean_active(modality)[features]
    return Steering(
        tuple(
            Edit(int(feature), float(step / mean))
            for feature, step, mean in zip(features, steps, usual, strict=True)
        )
    )


def by_score(
    space: FeatureSpace, source: Tensor, target: Tensor, modality: Modality, taken: int
) -> Steering:
    """`find`'s score_set.

    With the covariance S within the two, the discriminant is w = S^-1 d, d being the mean
    difference. The least change of a normal sample that changes its score goes along S w, which is
    d: d / (w . d) changes it by 1.

    Raises:
        UserError: the samples don't vary, or have one mean.
    """
    from sklearn.covariance import ledoit_wolf

    difference = target.mean(0) - source.mean(0)  # [dim]
    within = torch.cat([source - source.mean(0), target - target.mean(0)])  # [n + m, dim]
    if within.abs().max() < ALIKE:
        raise UserError("a score set needs samples that vary; give more, or use difference")
    if difference.abs().max() < ALIKE:
        raise UserError("the samples to go from and to have one mean; give others")
    covariance = torch.from_numpy(ledoit_wolf(within.double().cpu().numpy())[0])
    weight = torch.linalg.solve(covariance, difference.double().cpu()).float()  # [dim]
    unit = difference / float(weight @ difference.cpu())
    features, steps = pursue(space, unit, source, modality, taken)
    score = ScoreSet(
        tuple(weight.tolist()),
        float(weight @ target.mean(0).cpu()),
        tuple(features.tolist()),
        tuple(steps.tolist()),
    )
    return Steering(score_sets=(score,))


WAYS: dict[str, Callable[..., Steering]] = {
    "features": by_features,
    "difference": by_difference,
    "score_set": by_score,
}


@torch.no_grad()
def pursue(
    space: FeatureSpace, wanted: Tensor, source: Tensor, modality: Modality, taken: int
) -> tuple[Tensor, Tensor]:
    """A move in a few features: orthogonal matching pursuit (Pati et al. 1993) in which features
    are added to any sample, and taken away only where most samples have them.

    Args:
        wanted: `[dim]`.
        source: the samples to be moved, unit embeddings `[n, dim]`.

    Returns:
        The features `[k]`, k at most `taken`, and how each one's activation changes `[k]`.
    """
    from scipy.optimize import nnls

    rows = space.dictionary.directions.detach().cpu().double().numpy()  # [features, dim]
    present = space.dictionary.encode(source.to(space.device), modality) > 0
    usable = (space.mean_active(modality) > 0).numpy()
    down = usable & (present.float().mean(0) >= PRESENT).cpu().numpy()
    numbers = np.concatenate([np.flatnonzero(usable), np.flatnonzero(down)])
    signs = np.concatenate([np.ones(usable.sum()), -np.ones(down.sum())])
    atoms = signs[:, None] * rows[numbers]  # [atoms, dim]
    goal = wanted.detach().cpu().double().numpy()
    chosen: list[int] = []
    steps = np.zeros(0)
    residual = goal
    for _ in range(taken):
        fit = atoms @ residual / np.linalg.norm(atoms, axis=1).clip(1e-12)
        fit[chosen] = -np.inf
        if not len(fit) or fit.max() <= 1e-9:
            break
        chosen.append(int(fit.argmax()))
        steps, _ = nnls(atoms[chosen].T, goal)
        residual = goal - steps @ atoms[chosen]
    kept = [place for place, step in enumerate(steps) if step > 0]
    places = np.array(chosen, dtype=int)[kept]
    found = torch.from_numpy(signs[places] * steps[kept]).float()
    return torch.from_numpy(numbers[places]), found


def sure_of(
    source: Tensor | np.ndarray,
    target: Tensor | np.ndarray,
    probability: float = 0.95,
    seed: int = 0,
) -> Probe:
    """A probe that tells `target` from `source`, for `Steering.stop`.

    Args:
        source, target: embeddings `[n, dim]` and `[m, dim]`.
        probability: of being like `target` at which moves stop, in (0, 1).

    Raises:
        UserError: either has no samples or is no embeddings, or the probability is none.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    probability = probability_of(probability)
    source, target = _unit(source), _unit(target)
    if not len(source) or not len(target):
        raise UserError("no samples to tell apart; give at least one of each")
    if source.shape[1] != target.shape[1]:
        raise UserError(
            f"embeddings {list(source.shape)} and {list(target.shape)}: give both of one encoder"
        )
    x = torch.cat([source, target]).numpy()
    y = np.repeat([0, 1], [len(source), len(target)])
    probe = LogisticRegression(max_iter=2000).fit(x, y)
    folds = min(FOLDS, len(source), len(target))
    if folds > 1:
        splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
        penalties = {"C": np.logspace(-2, 4, 7)}
        search = GridSearchCV(probe, penalties, scoring="neg_log_loss", cv=splits)
        probe = search.fit(x, y).best_estimator_
    return Probe(tuple(probe.coef_[0].tolist()), float(probe.intercept_[0]), probability)


@dataclass(frozen=True)
class AffineMap:
    """Ridge regression of what pairs turn into: an upper reference for edits of few features.

    weight: `[dim, dim]`.
    bias: `[dim]`.
    """

    weight: Tensor
    bias: Tensor

    @classmethod
    def fit(cls, source: Tensor, target: Tensor) -> AffineMap:
        """Fit on pairs `[n, dim]`, the penalty chosen by cross-validation."""
        from sklearn.linear_model import RidgeCV

        before, after = source.float().cpu(), target.float().cpu()
        x, y = before.numpy(), (after - before).numpy()
        found = RidgeCV(alphas=np.logspace(-2, 3, 11)).fit(x, y)
        weight = torch.from_numpy(np.ascontiguousarray(found.coef_.T)).float()
        return cls(weight, torch.from_numpy(np.atleast_1d(found.intercept_)).float())

    def move(self, unit: Tensor) -> Tensor:
        """By how much unit embeddings `[n, dim]` move: `[n, dim]`."""
        return unit @ self.weight.to(unit) + self.bias.to(unit)


def _words(samples: Samples) -> list[str] | None:
    """The words that stand for samples; None of embeddings.

    Raises:
        UserError: they are neither.
    """
    given: object = samples
    if isinstance(samples, np.ndarray) and samples.dtype.kind in "UO":
        given = samples.tolist()
    if isinstance(given, Tensor | np.ndarray):
        return None
    words = [given] if isinstance(given, str) else given
    if isinstance(words, list | tuple):
        if words and all(isinstance(one, Tensor | np.ndarray) for one in words):
            return None
        if all(isinstance(one, str) and one.strip() for one in words):
            return list(words)
    raise UserError(
        f"samples {reprlib.repr(samples)}: give words or embeddings; space.encoder.encode_images "
        "makes embeddings of images"
    )


def _embedded(space: FeatureSpace, samples: Samples) -> Tensor:
    """The unit embeddings of samples, where the space is: `[n, dim]`."""
    words = _words(samples)
    if words is None:
        rows = space.embeddings_of(_rows(samples)).detach().to(space.device)
        return F.normalize(rows.float(), dim=1)
    texts = [template.format(word) for word in words for template in TEMPLATES]
    return space.encoder.encode_texts(texts).clone() if texts else torch.zeros(0, 1)


def _unit(samples: Samples) -> Tensor:
    """Embeddings as unit embeddings on the CPU: `[n, dim]`.

    Raises:
        UserError: they are none.
    """
    if _words(samples):
        raise UserError("words tell no samples apart; give embeddings [n, dim]")
    rows = _rows(samples).detach().float().cpu()
    if rows.ndim != 2 or not rows.isfinite().all():
        raise UserError(f"embeddings {list(rows.shape)}: give finite ones, [n, dim]")
    return F.normalize(rows, dim=1)


def _rows(samples: Any) -> Tensor:
    """Embeddings as a tensor, one below another where they are given as a list.

    Raises:
        UserError: those of the list are of several sizes.
    """
    if isinstance(samples, Tensor | np.ndarray):
        return tensor_of(samples, "embeddings")
    rows = [torch.atleast_2d(tensor_of(one, "embeddings")) for one in samples]
    if len({row.shape[1:] for row in rows}) > 1:
        sizes = " and ".join({str(list(row.shape[1:])): "" for row in rows})
        raise UserError(f"embeddings of several sizes, {sizes}; give those of one encoder")
    return torch.cat([row.to(rows[0].device) for row in rows]) if rows else torch.zeros(0, 1)
