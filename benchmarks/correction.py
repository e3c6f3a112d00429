"""Benchmark of corrections: is a planted group of mistakes found first, and does its edit mend it?

    python -m benchmarks.correction --out runs/benchmark-correction.json

A linear probe for gender is fitted on drawings of the embedded world in which something was
planted: `bias` ties the gender to the background in 95% of them; `mislabelled` calls one gender by
the other one's label wherever it stands on one background; `nothing` plants nothing. The correction
sees other drawings, half to find and choose on, half to check on; `mended` and `broken` are counts
on held-out combinations of role, gender and skin tone. All is over ten seeds that played no part
when the method was settled, with intervals over seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from rich.progress import track

from benchmarks.attributes import TIED, TIES, tied_samples, world_samples
from benchmarks.common import Result, mean_row, options, run_sections
from features.bootstrap import percentile_interval
from features.embedded.evaluate import GENDERS
from features.space.space import FeatureSpace
from mms_apps.attributes.correction.checking import advise
from mms_apps.attributes.correction.correcting import (
    HELD_OUT,
    OTHER_HALF,
    Correction,
    GroupCorrection,
    correct,
)
from mms_apps.attributes.labels import Samples, split_samples
from mms_apps.attributes.model import fit_model

CASES = ("bias", "mislabelled", "nothing")
FRESH_SEEDS = tuple(range(2000, 2100, 10))
"""Seeds that played no part when the method was settled."""
SEEN = 0.4
"""Share of the training drawings that the model is not fitted on, but corrected by."""
PAIR_DRAWS = (1, 2)
"""Draws of the planted factors under which these drawings are seen."""
TEST_DRAWS = range(3, 7)
"""Draws under which the held-out combinations are seen."""
PLANTED_SHARE = 0.8
"""Of a group's mistakes that must be planted ones for the group to be the planted one."""


@dataclass(frozen=True)
class Case:
    """What the model is fitted on, what corrects it, and what was planted.

    victims: by background, the gender that is taken for the other one there.
    """

    fitted: Samples
    pairs: Samples
    held_out: Samples
    victims: dict[str, str]

    def planted(self, samples: Samples) -> np.ndarray:
        """Which samples are of the kind that was planted, `[n]` bool."""
        return np.array(
            [
                self.victims.get(background) == gender
                for gender, background in zip(
                    samples.columns["gender"], samples.columns["background"], strict=True
                )
            ]
        )


@dataclass(frozen=True)
class Outcome:
    """What the flow did on one seed, of the first group.

    found: whether it is the planted one: PLANTED_SHARE of its mistakes are, and its feature is that
        of a planted background.
    mended, broken, gain, worst_gain: on the held-out pairs; 0 without a proposal.
    enough: whether it mends three there for each one it breaks, by more than chance.
    accepted: the advice on the page, which knows the held-out pairs.
    foretold: the advice by the other half alone.
    """

    found: bool
    mended: int
    broken: int
    gain: float
    worst_gain: float
    enough: bool
    accepted: bool
    foretold: bool


def case_of(name: str, space: FeatureSpace, seed: int) -> Case:
    """One case on one seed."""
    rng = np.random.default_rng(seed)
    if name == "bias":
        drawn = tied_samples(space, "train", [0], TIED, seed)
        pairs = tied_samples(space, "train", PAIR_DRAWS, 0.5, seed + 1)
        held_out = tied_samples(space, "heldout", TEST_DRAWS, 0.5, seed + 2)
        other = dict(zip(GENDERS, reversed(GENDERS), strict=True))
        victims = {TIES[gender]: other[gender] for gender in GENDERS}
    else:
        drawn, pairs, held_out = (
            world_samples(space, split, draws).having("gender", GENDERS)
            for split, draws in (("train", [0]), ("train", PAIR_DRAWS), ("heldout", TEST_DRAWS))
        )
        background = str(rng.choice(sorted(set(drawn.columns["background"]))))
        victims = {background: str(rng.choice(GENDERS))} if name == "mislabelled" else {}
    fitted, seen = split_samples(drawn, SEEN, seed)
    if name == "mislabelled":
        ((background, victim),) = victims.items()
        wrong_label = next(gender for gender in GENDERS if gender != victim)
        inside = (fitted.columns["gender"] == victim) & (fitted.columns["background"] == background)
        labels = np.where(inside, wrong_label, fitted.columns["gender"])
        fitted = replace(fitted, columns=fitted.columns | {"gender": labels.astype(object)})
    pairs = pairs.take(np.isin(pairs.ids.astype(str), seen.ids.astype(str)))
    return Case(fitted, pairs, held_out, victims)


def outcome_of(case: Case, space: FeatureSpace, seed: int) -> Outcome:
    """Correct the model of a case."""
    model = fit_model(space, case.fitted, "gender", GENDERS, "linear_probe", seed=seed)
    correction = correct(model, case.pairs, case.held_out, group="background", seed=seed)
    if not correction.groups:
        return Outcome(False, 0, 0, 0.0, 0.0, False, False, False)
    first = correction.groups[0]
    found = is_planted(first, correction, case)
    if not first.checks:
        return Outcome(found, 0, 0, 0.0, 0.0, False, False, False)
    held_out = first.checks[HELD_OUT]
    before, after = held_out.worst_before, held_out.worst_after
    worst = after.counts.after.value - before.counts.before.value if before and after else 0.0
    return Outcome(
        found=found,
        mended=held_out.counts.mended,
        broken=held_out.counts.broken,
        gain=held_out.gain.value,
        worst_gain=worst,
        enough=held_out.counts.enough,
        accepted=first.advice.accept,
        foretold=advise({OTHER_HALF: first.checks[OTHER_HALF]}).accept,
    )


def is_planted(group: GroupCorrection, correction: Correction, case: Case) -> bool:
    """Whether a group is the planted one."""
    mistakes = correction.half.take(group.mistakes.rows)
    share = float(case.planted(mistakes).mean())
    name = correction.model.space.features["name"][group.mistakes.feature].as_py() or ""
    aligned = any(f"background: {background}" in name for background in case.victims)
    return aligned and share >= PLANTED_SHARE


def case_rows(name: str, space: FeatureSpace, seeds: Sequence[int] = FRESH_SEEDS) -> list[Result]:
    """A case on each seed, and over all of them."""
    outcomes = {}
    for seed in track(seeds, name):
        outcomes[seed] = outcome_of(case_of(name, space, seed), space, seed)
    rows = []
    for seed, one in outcomes.items():
        for key in ("found", "mended", "broken", "accepted", "foretold"):
            value = float(getattr(one, key))
            unit = "predictions" if key in ("mended", "broken") else "yes or no"
            rows.append(Result(f"correction/{name}/{seed}/{key}", value, value, value, 1, unit))
    found = list(outcomes.values())
    for key, unit in (
        ("found", "share of seeds"),
        ("mended", "predictions"),
        ("broken", "predictions"),
        ("gain", "share"),
        ("worst_gain", "share"),
        ("enough", "share of seeds"),
        ("accepted", "share of seeds"),
        ("foretold", "share of seeds"),
    ):
        values = np.array([getattr(one, key) for one in found])
        rows.append(mean_row(f"correction/{key}/{name}", values, unit, 0))
    rows.append(each_row(f"correction/each/{name}", found))
    for key in ("accepted", "foretold"):
        agrees = np.array([getattr(one, key) == one.enough for one in found])
        rows.append(mean_row(f"correction/{key}_agrees/{name}", agrees, "share of seeds", 0))
    return rows


def each_row(name: str, outcomes: Sequence[Outcome], replicates: int = 1000) -> Result:
    """Predictions mended for each one broken, over all seeds, with a bootstrap over seeds."""
    counts = np.array([(one.mended, one.broken) for one in outcomes], dtype=float)
    rng = np.random.default_rng(0)
    draws = counts[rng.integers(len(counts), size=(replicates, len(counts)))].sum(axis=1)
    low, high = percentile_interval(draws[:, 0] / np.maximum(draws[:, 1], 1))
    mended, broken = counts.sum(axis=0)
    return Result(name, mended / max(broken, 1), low, high, len(outcomes), "mended for each broken")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", nargs="+", choices=CASES, default=CASES)
    arguments = parser.parse_args()
    space = FeatureSpace.load("embedded-ssl", device=arguments.device)
    run_sections(
        [lambda name=name: case_rows(name, space) for name in arguments.only],  # type: ignore[misc]
        arguments.out,
        seed=arguments.seed,
    )


if __name__ == "__main__":
    main()
