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

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from features.dictionary import Modality
from features.errors import UserError
from features.space.space import FeatureSpace
from mms_apps.steering.choosing import TEMPLATES, between
from mms_apps.steering.edits import Edit, Probe, ScoreSet, Steering

TAKEN = 8
"""Features, at most."""
PRESENT = 0.5
"""A feature is taken away only where it is active in so large a share of the samples to go from."""
FOLDS = 5
"""Of the cross-validation that chooses a probe's penalty."""
Samples = Tensor | np.ndarray | str | Sequence[str]


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
        source, target: examples, unit embeddings `[n, dim]` and `[m, dim]`; or words, whose texts'
            embeddings stand for them.
        how: features, difference or score_set.
        modality: of the examples.
        taken: features, at most.

    Raises:
        UserError: an unknown way, no samples, or a score set from words, which don't vary.
    """
    if how not in WAYS:
        raise UserError(f"{how}: no way to find edits; use {', '.join(WAYS)}")
    words = not all(isinstance(given, Tensor | np.ndarray) for given in (source, target))
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
    """
    from sklearn.covariance import ledoit_wolf

    difference = target.mean(0) - source.mean(0)  # [dim]
    within = torch.cat([source - source.mean(0), target - target.mean(0)])  # [n + m, dim]
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


def sure_of(source: Tensor, target: Tensor, probability: float = 0.95, seed: int = 0) -> Probe:
    """A probe that tells `target` from `source`, for `Steering.stop`.

    Args:
        source, target: unit embeddings `[n, dim]` and `[m, dim]`.
        probability: of being like `target` at which moves stop.

    Raises:
        UserError: either has no samples.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    if not len(source) or not len(target):
        raise UserError("no samples to tell apart; give at least one of each")
    x = torch.cat([source, target]).cpu().numpy()
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

        x, y = source.cpu().numpy(), (target - source).cpu().numpy()
        found = RidgeCV(alphas=np.logspace(-2, 3, 11)).fit(x, y)
        weight = torch.from_numpy(np.ascontiguousarray(found.coef_.T)).float()
        return cls(weight, torch.from_numpy(np.atleast_1d(found.intercept_)).float())

    def move(self, unit: Tensor) -> Tensor:
        """By how much unit embeddings `[n, dim]` move: `[n, dim]`."""
        return unit @ self.weight.to(unit) + self.bias.to(unit)


def _embedded(space: FeatureSpace, samples: Samples) -> Tensor:
    if isinstance(samples, Tensor | np.ndarray):
        return F.normalize(space.embeddings_of(samples).float(), dim=1)
    words = [samples] if isinstance(samples, str) else list(samples)
    texts = [template.format(word) for word in words for template in TEMPLATES]
    return space.encoder.encode_texts(texts).clone() if texts else torch.zeros(0, 1)
