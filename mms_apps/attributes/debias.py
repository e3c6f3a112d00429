"""De-biasing a model by editing embeddings: nothing is trained again.

Features are chosen by their association with the factor that should not matter, and how many of
them to take out, and how, on a validation split. The comparison with the baselines is on a test
set that neither has seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from features.analysis.concepts import feature_auroc
from features.bootstrap import Estimate
from features.errors import UserError
from features.files import replacing, write_json
from features.modality import Modality
from features.space.space import FeatureSpace
from mms_apps.attributes.edits import (
    WAYS,
    Edit,
    How,
    Project,
    RemoveFeatures,
    calibrated_projection,
    feature_energy,
    random_features,
    reading_directions,
)
from mms_apps.attributes.estimators import TEMPLATES
from mms_apps.attributes.labels import Samples
from mms_apps.attributes.measures import (
    MIN_GROUP,
    REPLICATES,
    bootstrap_weights,
    estimate,
    group_accuracy,
    weighted_mean,
)
from mms_apps.attributes.model import AttributeModel, Method, fit_model

SCHEMA = 1
WEIGHTS = "edit.safetensors"
COUNTS = (1, 2, 3, 5, 8, 12, 20, 30)
"""How many features to take out, of which validation chooses."""
COST = 0.02
"""Mean accuracy over the groups that an edit may cost on the validation split."""
VALIDATION = 0.3
"""Share of the training samples that edits are chosen on."""
RANDOM_SETS = 5
"""Random groups of features whose accuracies are averaged."""


@dataclass(frozen=True)
class Candidate:
    """What one way of taking out so many features does on the validation split."""

    how: How
    count: int
    accuracy: float
    """Mean over the groups: where most samples have the shortcut, their own mean rewards it."""
    worst: float
    """Accuracy of the worst group."""
    loss: float
    """Mean negative log-likelihood in the group where it is greatest."""


@dataclass(frozen=True)
class Choice:
    """The features to take out, and how."""

    how: How
    features: tuple[int, ...]
    association: tuple[float, ...]
    """Of each of the features with the factor, in [-0.5, 0.5] (`association`)."""
    before: Candidate
    """Without an edit, of no features."""
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Debiasing:
    """A comparison of methods, and the edit that was chosen."""

    model: AttributeModel
    choice: Choice
    edit: RemoveFeatures
    factor: str
    unrelated: str
    methods: list[MethodRow]


@dataclass(frozen=True)
class MethodRow:
    """What one method does on the test set.

    samples: of the test set.
    accuracy, worst_group, gap: of the attribute (`measures.Measures`).
    leakage: accuracy with which a probe finds the factor in the edited embeddings.
    utility: accuracy on an unrelated attribute; utility_cost: how much less than without an edit.
    gap_change: the gap less that without an edit; accuracy_change: likewise.
    gap_less_features, worst_less_features: this method's less that of `features`, paired.
    """

    method: str
    samples: int
    accuracy: Estimate
    worst_group: Estimate
    worst_group_name: str
    gap: Estimate
    leakage: Estimate
    utility: Estimate
    utility_cost: Estimate
    gap_change: Estimate
    accuracy_change: Estimate
    gap_less_features: Estimate
    worst_less_features: Estimate


def debias(
    space: FeatureSpace,
    train: Samples,
    test: Samples,
    attribute: str,
    classes: Sequence[str],
    factor: str,
    factor_values: Sequence[str],
    unrelated: str,
    unrelated_classes: Sequence[str],
    method: Method,
    *,
    modality: Modality = "image",
    prompts: Mapping[str, Sequence[str]] | None = None,
    max_features: int = 20,
    seed: int = 0,
) -> Debiasing:
    """Fit a model, choose an edit that takes a factor out, and compare it with the baselines. The
    groups are the cells of attribute and factor.

    Args:
        train: to fit (1 - VALIDATION of it) and to choose on, by id.
        test: with none of the training samples.
        prompts: of the attribute, by class, for zero-shot.

    Raises:
        UserError: there are too few samples, or the factor has one value.
    """
    train, test = (
        s.having(attribute, classes).having(factor, factor_values) for s in (train, test)
    )
    if len(train) == 0 or len(test) == 0:
        raise UserError(
            f"{attribute}, {factor}: {len(train)} training and {len(test)} test samples have both; "
            "give pairs that do"
        )
    if set(train.ids) & set(test.ids):
        raise UserError("the pairs to test on are among the training pairs; give others")
    fitted, validation = split_samples(train, VALIDATION, seed)
    model = fit_model(
        space,
        fitted,
        attribute,
        classes,
        method,
        modality=modality,
        prompts=prompts,
        max_features=max_features,
        seed=seed,
    )
    other = fit_model(
        space,
        fitted,
        unrelated,
        unrelated_classes,
        method,
        modality=modality,
        max_features=max_features,
        seed=seed,
    )

    def groups(samples: Samples) -> np.ndarray:
        return cells(*(samples.columns[name].astype(str) for name in (attribute, factor)))

    choice, edit = choose_edit(model, validation, factor, groups(validation))
    template = TEMPLATES[0]
    projection = prompt_projection(
        model,
        [template.format(value) for value in factor_values],
        [
            (template.format(f"{name} {first}"), template.format(f"{name} {second}"))
            for name in classes
            for first, second in combinations(factor_values, 2)
        ],
    )
    edits: dict[str, Sequence[Edit]] = {
        "none": [Edit()],
        "features": [edit],
        "debias_vl": [projection],
        "random": random_edits(choice, edit, validation, seed=seed),
    }
    methods = compare_methods(
        model,
        edits,
        test,
        factor,
        groups(test),
        probe_samples=train,
        unrelated=other,
        seed=seed,
    )
    return Debiasing(model, choice, edit, factor, unrelated, methods)


def split_samples(samples: Samples, share: float, seed: int) -> tuple[Samples, Samples]:
    """The others, and about `share` of the samples; those of one id fall on one side."""
    ids = np.unique(samples.ids.astype(str))
    chosen = np.random.default_rng(seed).permutation(ids)[: round(share * len(ids))]
    inside = np.isin(samples.ids.astype(str), chosen)
    return samples.take(~inside), samples.take(inside)


def association(activations: np.ndarray, factor: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """How each feature goes with a factor among samples that are alike otherwise: `[features]`.

    Within each stratum, the AUROC of the activation for each of the factor's values against the
    rest, less one half; averaged over the strata by their size; of the values, the one where it is
    largest in size. In [-0.5, 0.5]; 0 where no stratum has two values. Of a feature whose
    activations have both signs, the half that goes with the factor more.

    Args:
        activations: `[n, features]`.
        factor: `[n]`.
        strata: `[n]`, the attribute that the factor must not stand for.
    """
    from scipy.sparse import csr_matrix

    values = np.unique(factor)
    signs = (1, -1) if (activations < 0).any() else (1,)
    total = np.zeros((len(signs), len(values), activations.shape[1]))
    weight = np.zeros((len(values), 1))
    for stratum in np.unique(strata):
        inside = strata == stratum
        labels = factor[inside][:, None] == values  # [inside, values]
        known = labels.any(axis=0) & ~labels.all(axis=0)
        for place, sign in enumerate(signs):
            active = csr_matrix(np.maximum(sign * activations[inside], 0))
            auroc = feature_auroc(active, labels[:, known]) - 0.5
            total[place, known] += inside.sum() * sign * auroc
        weight[known] += inside.sum()
    mean = (total / np.maximum(weight, 1)).reshape(-1, activations.shape[1])
    return mean[np.abs(mean).argmax(axis=0), np.arange(mean.shape[1])]


def cells(attribute: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """The groups of samples with the same attribute and factor, "attribute, factor": `[n]`."""
    return np.array([f"{a}, {f}" for a, f in zip(attribute, factor, strict=True)])


def choose_edit(
    model: AttributeModel,
    validation: Samples,
    factor: str,
    groups: np.ndarray,
    *,
    counts: Sequence[int] = COUNTS,
    ways: Sequence[How] = WAYS,
) -> tuple[Choice, RemoveFeatures]:
    """Choose which features to take out of the embeddings that a model reads.

    Of all candidates that cost at most COST of the accuracy, the one whose worst group has the
    smallest mean loss; the validation's rare groups are too small to tell by their accuracy. Where
    that is no smaller than without an edit, nothing is taken out.

    Args:
        validation: samples that the model was not fitted on, with the model's attribute and the
            factor.
        groups: `[n]`, of which none should do worse.

    Raises:
        UserError: no two groups are large enough, or the factor has one value.
    """
    truth = validation.columns[model.config.attribute].astype(str)
    values = validation.columns[factor].astype(str)
    if len(np.unique(values)) < 2:
        raise UserError(
            f"{factor}: the validation samples have the one value {values[0]}; give pairs in which "
            "it varies"
        )
    names, sizes = np.unique(groups, return_counts=True)
    large = names[sizes >= MIN_GROUP]
    if len(large) < 2:
        raise UserError(
            f"{factor}: fewer than two groups have {MIN_GROUP} validation samples; give more pairs"
        )
    found = association(model.activations(validation.embeddings), values, truth)
    order = np.argsort(-np.abs(found), kind="stable")
    order = order[np.abs(found[order]) > 0]
    counts = [count for count in counts if count <= len(order)]
    if not counts:
        raise UserError(f"{factor}: no feature goes with it; take another space or factor")
    top = torch.from_numpy(order[: max(counts)].copy())
    space, modality = model.space, model.config.modality
    readings = reading_directions(space, validation.embeddings, top, modality)
    before = _candidate(model, Edit(), "subtract", 0, validation, truth, groups, large)
    candidates = []
    edits = {}
    for how in ways:
        for count in counts:
            edit = RemoveFeatures(space, top[:count], modality, how, readings[:count])
            edits[how, count] = edit
            candidates.append(_candidate(model, edit, how, count, validation, truth, groups, large))
    edits[before.how, 0] = RemoveFeatures(space, top[:0], modality, before.how)
    allowed = [c for c in candidates if c.accuracy >= before.accuracy - COST]
    best = min([before, *allowed], key=lambda c: (c.loss, c.count))
    chosen = order[: best.count]
    choice = Choice(
        how=best.how,
        features=tuple(int(f) for f in chosen),
        association=tuple(float(found[f]) for f in chosen),
        before=before,
        candidates=tuple(candidates),
    )
    return choice, edits[best.how, best.count]


def prompt_projection(
    model: AttributeModel, spurious: Sequence[str], pairs: Sequence[tuple[str, str]]
) -> Project:
    """The calibrated projection of Chuang et al. 2023 from prompts.

    Args:
        spurious: prompts that name the factor's values.
        pairs: prompts that differ in the factor alone.
    """
    encoder = model.space.encoder

    def vectors(texts: Sequence[str]) -> Tensor:
        return torch.clone(encoder.encode_texts(list(texts))).cpu()

    first, second = vectors([a for a, _ in pairs]), vectors([b for _, b in pairs])
    matrix = calibrated_projection(vectors(spurious), list(zip(first, second, strict=True)))
    return Project(matrix)


def random_edits(
    choice: Choice, edit: RemoveFeatures, validation: Samples, *, seed: int = 0
) -> list[RemoveFeatures]:
    """RANDOM_SETS edits like `edit`, of random features of the same number and energy."""
    space, modality = edit.space, edit.modality
    energy = feature_energy(space, validation.embeddings, modality)
    rng = np.random.default_rng(seed)
    chosen = np.array(choice.features, dtype=int)
    found = []
    for _ in range(RANDOM_SETS):
        features = torch.from_numpy(random_features(energy, chosen, rng, avoid=chosen))
        readings = None
        if edit.how == "project":
            readings = reading_directions(space, validation.embeddings, features, modality)
        found.append(RemoveFeatures(space, features, modality, edit.how, readings))
    return found


def leakage_hits(
    train: Tensor, train_factor: np.ndarray, strata: np.ndarray, test: Tensor, factor: np.ndarray
) -> np.ndarray:
    """Whether a logistic regression finds the factor in each test embedding: `[n]` bool.

    The cells of stratum and factor weigh the same in training, so that an attribute that goes with
    the factor there does not stand in for it.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    names, place, sizes = np.unique(
        cells(strata, train_factor), return_inverse=True, return_counts=True
    )
    weight = len(place) / (len(names) * sizes[place])
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    probe.fit(train.numpy(), train_factor, logisticregression__sample_weight=weight)
    return probe.predict(test.numpy()) == factor


def compare_methods(
    model: AttributeModel,
    edits: Mapping[str, Sequence[Edit]],
    test: Samples,
    factor: str,
    groups: np.ndarray,
    *,
    probe_samples: Samples,
    unrelated: AttributeModel,
    seed: int = 0,
    replicates: int = REPLICATES,
) -> list[MethodRow]:
    """Measure methods on a test set.

    Args:
        edits: by method; of several, the accuracies are averaged. `none` and `features` must be
            among them.
        test: with the attributes of both models and the factor; samples of one id (several draws
            of one drawing) are resampled together.
        groups: `[n]`.
        probe_samples: to fit the probes of the leakage on.
        unrelated: the model of an attribute that the edits should leave as it is.
    """
    weights = bootstrap_weights(len(test), replicates, seed, test.ids)
    names, sizes = np.unique(groups, return_counts=True)
    large = np.isin(groups, names[sizes >= MIN_GROUP])
    if len(names[sizes >= MIN_GROUP]) < 2:
        raise UserError(
            f"{factor}: fewer than two groups have {MIN_GROUP} test samples; give more pairs"
        )
    truth = test.columns[model.config.attribute].astype(str)
    other_truth = test.columns[unrelated.config.attribute].astype(str)
    known = np.isin(other_truth, unrelated.classes)
    if not known.any():
        raise UserError(
            f"{unrelated.config.attribute}: none of the test samples has one of its classes"
        )
    seen: dict[str, dict[str, np.ndarray]] = {}
    for method, variants in edits.items():
        hits, leaks, other = [], [], []
        for edit in variants:
            edited = edit.apply(test.embeddings)
            hits.append(model.predict(edited) == truth)
            other.append(unrelated.predict(edited[torch.from_numpy(known)]) == other_truth[known])
            leaks.append(
                leakage_hits(
                    edit.apply(probe_samples.embeddings),
                    probe_samples.columns[factor].astype(str),
                    probe_samples.columns[model.config.attribute].astype(str),
                    edited,
                    test.columns[factor].astype(str),
                )
            )
        parts = [group_accuracy(h[large], groups[large], weights[:, large]) for h in hits]
        mean = {
            "accuracy": np.mean([p.overall for p in parts], axis=0),
            "worst": np.mean([p.worst for p in parts], axis=0),
            "gap": np.mean([p.gap for p in parts], axis=0),
            "leakage": weighted_mean(np.mean(leaks, axis=0), weights),
            "utility": weighted_mean(np.mean(other, axis=0), weights[:, known]),
            "worst_name": np.unique(groups[large])[
                np.mean([p.by_group[0] for p in parts], axis=0).argmin()
            ],
        }
        seen[method] = mean
    none, features = seen["none"], seen["features"]
    return [
        MethodRow(
            method=method,
            samples=len(test),
            accuracy=estimate(mean["accuracy"]),
            worst_group=estimate(mean["worst"]),
            worst_group_name=str(mean["worst_name"]),
            gap=estimate(mean["gap"]),
            leakage=estimate(mean["leakage"]),
            utility=estimate(mean["utility"]),
            utility_cost=estimate(none["utility"] - mean["utility"]),
            gap_change=estimate(mean["gap"] - none["gap"]),
            accuracy_change=estimate(mean["accuracy"] - none["accuracy"]),
            gap_less_features=estimate(mean["gap"] - features["gap"]),
            worst_less_features=estimate(mean["worst"] - features["worst"]),
        )
        for method, mean in seen.items()
    ]


def save_edit(choice: Choice, edit: RemoveFeatures, folder: str | Path) -> Path:
    """Write edit.safetensors and then config.json into a folder."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {"features": edit.features.contiguous()}
    if edit.readings is not None:
        weights["readings"] = edit.readings.cpu().contiguous()
    with replacing(folder / WEIGHTS) as temporary:
        save_file(weights, temporary)
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "modality": edit.modality,
        "dictionary_fingerprint": edit.space.config.dictionary_fingerprint,
        **asdict(choice),
    }
    write_json(folder / "config.json", record)
    return folder


def load_edit(folder: str | Path, space: FeatureSpace, modality: Modality) -> RemoveFeatures:
    """Load what `save_edit` wrote.

    Raises:
        UserError: there is none, or it belongs to another space or modality.
    """
    import json

    from safetensors.torch import load_file

    folder = Path(folder)
    if not (folder / "config.json").is_file() or not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder}: no edit here; make one with mms attributes debias")
    record = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if record.get("schema") != SCHEMA or record.get("how") not in WAYS:
        raise UserError(f"{folder}/config.json: not an edit of schema {SCHEMA}")
    if record["dictionary_fingerprint"] != space.config.dictionary_fingerprint:
        raise UserError(f"{folder}: made over another dictionary than the space's; choose anew")
    if record["modality"] != modality:
        raise UserError(f"{folder}: edits {record['modality']}s, not {modality}s; choose anew")
    weights = load_file(folder / WEIGHTS)
    return RemoveFeatures(
        space, weights["features"], modality, record["how"], weights.get("readings")
    )


def _candidate(
    model: AttributeModel,
    edit: Edit,
    how: How,
    count: int,
    validation: Samples,
    truth: np.ndarray,
    groups: np.ndarray,
    large: np.ndarray,
) -> Candidate:
    probabilities = model.predict_proba(edit.apply(validation.embeddings))
    hits = np.array(model.classes)[probabilities.argmax(axis=1)] == truth
    columns = [model.classes.index(label) for label in truth]
    losses = -np.log(np.clip(probabilities[np.arange(len(truth)), columns], 1e-12, None))
    inside = [groups == name for name in large]
    return Candidate(
        how=how,
        count=count,
        accuracy=float(np.mean([hits[g].mean() for g in inside])),
        worst=float(min(hits[g].mean() for g in inside)),
        loss=float(max(losses[g].mean() for g in inside)),
    )
