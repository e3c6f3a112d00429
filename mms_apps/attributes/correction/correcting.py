"""From labelled pairs to edits that correct a model: found and chosen on one half, checked on the
other and on held-out pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.errors import UserError
from mms_apps.attributes.correction.checking import Advice, Check, advise, check
from mms_apps.attributes.correction.mistakes import MistakeGroup, judge, mistake_groups
from mms_apps.attributes.correction.proposing import Corrected, Proposal, propose
from mms_apps.attributes.labels import Samples, split_samples
from mms_apps.attributes.model import AttributeModel

LEAST_SAMPLES = 20
"""Labelled samples that are worth halving."""
MOST_GROUPS = 8
"""Groups for which an edit is proposed."""
OTHER_HALF, HELD_OUT = "the other half", "the held-out pairs"


@dataclass(frozen=True, eq=False)
class GroupCorrection:
    """A group of wrong predictions and what is proposed for it.

    proposal, edited: None where no edit mends more than COST times what it breaks on the half.
    checks: by set of pairs, OTHER_HALF and where there are some HELD_OUT; empty without a proposal.
    """

    mistakes: MistakeGroup
    proposal: Proposal | None
    edited: Corrected | None
    checks: dict[str, Check]
    advice: Advice


@dataclass(frozen=True, eq=False)
class Correction:
    """What was found.

    group: the attribute whose values are the groups that are protected.
    half, other: samples of the half on which groups were found and edits chosen, and of the other.
    wrong: wrong predictions on the half.
    groups: as `mistake_groups` sorts them, at most MOST_GROUPS.
    """

    model: AttributeModel
    group: str
    half: Samples
    other: Samples
    wrong: int
    groups: tuple[GroupCorrection, ...]
    seed: int

    @property
    def accepted(self) -> list[GroupCorrection]:
        return [found for found in self.groups if found.advice.accept]


def correct(
    model: AttributeModel,
    samples: Samples,
    held_out: Samples | None = None,
    *,
    group: str | None = None,
    seed: int = 0,
) -> Correction:
    """Group a model's wrong predictions by what made them wrong; propose and check an edit for each
    group.

    Args:
        samples: labelled, that the model was not fitted on; halved at random.
        held_out: others, for a further check.
        group: attribute of both whose values are the groups to protect; None takes the label's own.

    Raises:
        UserError: too few samples have one of the model's classes as their label, all have the same
            one, or no prediction on the half is wrong.
    """
    attribute = model.config.attribute
    labelled = samples.having(attribute, model.classes)
    if len(labelled) < LEAST_SAMPLES:
        raise UserError(
            f"{attribute}: {len(labelled)} pairs have one of the labels {', '.join(model.classes)} "
            f"(the model was not fitted on them); {LEAST_SAMPLES} are needed to halve them"
        )
    if len(set(labelled.columns[attribute])) < 2:
        raise UserError(
            f"{attribute}: all {len(labelled)} pairs have the one label "
            f"{labelled.columns[attribute][0]}; give pairs of at least two"
        )
    other, half = split_samples(labelled, 0.5, seed)
    judged = judge(model, half)
    wrong = int((~judged.right).sum())
    if not wrong:
        raise UserError(
            f"{attribute}: all {len(half)} predictions on the half that is searched are right; "
            "there is nothing to correct. Give more pairs, or other ones"
        )
    sets = {OTHER_HALF: other}
    if held_out is not None:
        sets[HELD_OUT] = held_out.having(attribute, model.classes)
        if not len(sets[HELD_OUT]):
            raise UserError(
                f"{attribute}: none of the held-out pairs has one of the labels "
                f"{', '.join(model.classes)}; give others"
            )
    protected = group or attribute
    plain = Corrected(model)
    groups = mistake_groups(judged)
    found = []
    for mistakes in groups[:MOST_GROUPS]:
        best = propose(model, half, judged, mistakes, groups, seed=seed)
        if best is None:
            advice = Advice(False, "no edit mends clearly more than it breaks where it was chosen")
            found.append(GroupCorrection(mistakes, None, None, {}, advice))
            continue
        proposal, edited = best
        checks = {name: check(plain, edited, some, protected, seed) for name, some in sets.items()}
        found.append(GroupCorrection(mistakes, proposal, edited, checks, advise(checks)))
    return Correction(model, protected, half, other, wrong, tuple(found), seed)


def confusion(model: AttributeModel, samples: Samples, rows: np.ndarray) -> dict[str, int]:
    """How often which label was taken for which class, such as {"man for woman": 3}, the most
    frequent first."""
    some = samples.take(rows)
    truth = some.columns[model.config.attribute].astype(str)
    pairs = [f"{t} for {p}" for t, p in zip(truth, model.predict(some.embeddings), strict=True)]
    names, counts = np.unique(pairs, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {str(names[k]): int(counts[k]) for k in order}
