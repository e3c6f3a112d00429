"""The pointing game (Zhang et al. 2018, arXiv 1608.00507) on planted truth: does the strongest cell
or word lie where the factor of a feature is shown?

Features are chosen on training pairs: for each value of a factor the one whose pre-activation finds
it best, if it finds it at all. They are judged on held-out combinations under eight draws of the
planted factors, on pictures (captions) that show the value and activate the feature. A feature that
finds a value may rest on other things too; so probes are judged beside them, logistic regressions
on training embeddings, on pictures (captions) that show the value.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.common import Result, estimate_row, mean_row
from benchmarks.planted import ALIGNED, HELD_OUT_DRAWS, MIN_SAMPLES, auroc_by_value
from features.bootstrap import Estimate, bootstrap_weights, ratio_interval
from features.embedded.build_pairs import GENDER_WORDS, SKIN_TONES, TONE_WORDS
from features.embedded.evaluate import GENDERS
from features.embedded.world import BACKGROUNDS, REGISTERS, SIZE, EmbeddedPairs, drawn_mask
from features.evidence.pictures import Method, picture_evidence
from features.evidence.targets import Target, scores_of
from features.evidence.windows import GRID
from features.evidence.words import WordEvidence, word_evidence
from features.modality import Modality
from features.space.space import FeatureSpace

METHODS: tuple[Method, ...] = ("exact", "fast")
PICTURES: dict[str, tuple[str, ...]] = {
    "background": tuple(BACKGROUNDS),
    "gender": GENDERS,
    "skin_tone": SKIN_TONES,
}
"""Factors that pictures show, with their values."""
CAPTIONS: dict[str, tuple[str, ...]] = {
    "register": tuple(REGISTERS),
    "gender": GENDERS,
    "skin_tone": SKIN_TONES,
}
"""Factors that words say."""
MAIN = "embedded-ssl"
MOST = 30
"""Pictures or captions for one feature, the first draws first."""
PROBE_STRENGTH = 100.0
"""Inverse regularisation of the probes."""
REPLICATES = 1000


@dataclass(frozen=True)
class Carrier:
    """What finds a value of a factor: a feature, or a probe."""

    factor: str
    value: str
    target: Target
    feature: int | None


@dataclass(frozen=True)
class Case:
    """A held-out pair that shows a value, and which carrier (by its number) finds it."""

    carrier: int
    draw: int
    row: int


Held = dict[int, EmbeddedPairs]
"""The held-out pairs by draw."""


@dataclass(frozen=True)
class Encoded:
    """Pairs by one modality: their attributes, their embeddings `[n, dim]`, and the features'
    pre-activations and activations `[n, features]`."""

    attributes: list[dict[str, str | None]]
    embeddings: np.ndarray
    pre: np.ndarray
    active: np.ndarray


def held_out() -> Held:
    """The held-out combinations under each draw of the planted factors."""
    return {draw: EmbeddedPairs("heldout", draw) for draw in HELD_OUT_DRAWS}


def encoded(space: FeatureSpace, source: EmbeddedPairs, modality: Modality) -> Encoded:
    """Pairs as a space's encoder and dictionary see them."""
    described = [source.described(row) for row in range(source.total())]
    encode: Callable = (
        space.encoder.encode_images if modality == "image" else space.encoder.encode_texts
    )
    samples: Sequence[Image.Image | str] = (
        [source.image(row) for row in range(source.total())]
        if modality == "image"
        else [one.captions[0] for one in described]
    )
    with torch.inference_mode():
        embeddings = torch.cat(
            [encode(samples[start : start + 256]) for start in range(0, len(samples), 256)]
        )
        pre = space.dictionary.pre_activations(embeddings, modality)
        active = space.dictionary.encode(embeddings, modality)
    return Encoded(
        [one.attributes for one in described], *(x.cpu().numpy() for x in (embeddings, pre, active))
    )


def feature_carriers(train: Encoded, factors: dict[str, tuple[str, ...]]) -> list[Carrier]:
    """Of each value, the feature whose pre-activation finds it best, if at an AUROC of ALIGNED."""
    found = []
    for factor, values in factors.items():
        labels = [str(attributes[factor]) for attributes in train.attributes]
        known = sorted(v for v in set(labels) if v != "None" and labels.count(v) >= MIN_SAMPLES)
        scores = dict(zip(known, auroc_by_value(train.pre, labels), strict=True))
        for value in values:
            if value in scores and scores[value].max() >= ALIGNED:
                feature = int(scores[value].argmax())
                found.append(Carrier(factor, value, [feature], feature))
    return found


def probe_carriers(train: Encoded, factors: dict[str, tuple[str, ...]]) -> list[Carrier]:
    """Of each value, its logit beyond the mean of the factor's other values."""
    from sklearn.linear_model import LogisticRegression

    found = []
    for factor, values in factors.items():
        labels = np.array([str(attributes[factor]) for attributes in train.attributes])
        own = np.isin(labels, values)
        if len(set(labels[own])) < 2:
            continue
        probe = LogisticRegression(C=PROBE_STRENGTH, max_iter=1000)
        probe.fit(train.embeddings[own], labels[own])
        weights = (
            probe.coef_ if len(probe.classes_) > 2 else np.stack([-probe.coef_[0], probe.coef_[0]])
        )
        weights = weights - weights.mean(0)
        for value, row in zip(probe.classes_, weights, strict=True):
            along = torch.from_numpy(row).float()

            def logit(embedding: Tensor, along: Tensor = along) -> Tensor:
                return embedding @ along.to(embedding)

            found.append(Carrier(factor, str(value), logit, None))
    return found


def cases(held: dict[int, Encoded], carriers: Sequence[Carrier]) -> list[Case]:
    """The held-out pairs on which each carrier is judged, at most MOST of each."""
    found = []
    for number, carrier in enumerate(carriers):
        own = [
            Case(number, draw, row)
            for draw, pairs in held.items()
            for row, attributes in enumerate(pairs.attributes)
            if str(attributes[carrier.factor]) == carrier.value
            and (carrier.feature is None or pairs.active[row, carrier.feature] > 0)
        ]
        found += own[:MOST]
    return found


def cells_on(mask: np.ndarray, *, tolerance: bool) -> np.ndarray:
    """Which cells lie on a region of a picture: bool `[GRID, GRID]`.

    Args:
        mask: of the region, bool `[SIZE, SIZE]`.
        tolerance: a cell that holds a part of the region will do, as if the region were wider by
            half a cell; else it must hold more of the region than of the rest.
    """
    side = SIZE // GRID
    blocks = mask.reshape(GRID, side, GRID, side)
    return np.asarray(blocks.any((1, 3)) if tolerance else blocks.mean((1, 3)) > 0.5)


def picture_rows(space: FeatureSpace, world: str, held: Held, seed: int) -> list[Result]:
    """`pointing/<factor>/...`: the strongest cell lies on the background for background features,
    on the drawing for gender and skin tone; `pointing_strict/...` without tolerance;
    `pointing_probe/...` of probes."""
    train = encoded(space, EmbeddedPairs("train"), "image")
    seen = {draw: encoded(space, source, "image") for draw, source in held.items()}
    carriers = [*feature_carriers(train, PICTURES), *probe_carriers(train, PICTURES)]
    judged = cases(seen, carriers)
    cells = {
        "exact": _exact_cells(space, held, judged, carriers),
        "fast": _fast_cells(space, held, judged, carriers),
    }
    rows = []
    for kind, probes in (("", False), ("_probe", True)):
        of_kind = [
            number
            for number, case in enumerate(judged)
            if (carriers[case.carrier].feature is None) == probes
        ]
        for factor in PICTURES:
            own = [n for n in of_kind if carriers[judged[n].carrier].factor == factor]
            if not own:
                continue
            groups = _groups(held, [judged[number] for number in own])
            for name, tolerance in ((f"pointing{kind}", True), (f"pointing{kind}_strict", False)):
                on = [_on(held, judged[number], factor, tolerance=tolerance) for number in own]
                start = f"{named(name, world)}/{factor}"
                for method in METHODS:
                    hits = [
                        float(region[cells[method][number].argmax()])
                        for number, region in zip(own, on, strict=True)
                    ]
                    rows.append(share_row(f"{start}/{method}", hits, groups, seed))
                chance = [float(region.mean()) for region in on]
                rows.append(share_row(f"{start}/chance", chance, groups, seed))
        agree = [rank_correlation(cells["exact"][n], cells["fast"][n]) for n in of_kind]
        name = f"agreement{kind}/{world}/pictures"
        rows.append(mean_row(name, np.array(agree), "Spearman", seed))
    return rows


def word_rows(space: FeatureSpace, world: str, held: Held, seed: int) -> list[Result]:
    """`pointing/<factor>_words/...`: the strongest word is one that says the register, the gender
    or the skin tone; `pointing_probe/...` of probes."""
    train = encoded(space, EmbeddedPairs("train"), "text")
    seen = {draw: encoded(space, source, "text") for draw, source in held.items()}
    rows = []
    for kind, carriers in (
        ("", feature_carriers(train, CAPTIONS)),
        ("_probe", probe_carriers(train, CAPTIONS)),
    ):
        hits: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        kept: dict[str, list[Case]] = defaultdict(list)
        agree = []
        judged = cases(seen, carriers)
        for number, carrier in enumerate(carriers):
            own = [case for case in judged if case.carrier == number]
            captions = [held[case.draw].described(case.row).captions[0] for case in own]
            found = [word_evidence(space, captions, carrier.target, m) for m in METHODS]
            for case, *by_method in zip(own, *found, strict=True):
                says = words_that_say(carrier.factor, held[case.draw], case.row, by_method[0])
                if not says.any() or says.all():
                    continue
                kept[carrier.factor].append(case)
                words = [one.words[0].numpy() for one in by_method]
                for method, strength in zip(METHODS, words, strict=True):
                    hits[carrier.factor][method].append(float(says[strength.argmax()]))
                hits[carrier.factor]["chance"].append(float(says.mean()))
                agree.append(rank_correlation(*words))
        for factor, by_name in hits.items():
            groups = _groups(held, kept[factor])
            for name, own_hits in by_name.items():
                start = f"{named(f'pointing{kind}', world)}/{factor}_words"
                rows.append(share_row(f"{start}/{name}", own_hits, groups, seed))
        name = f"agreement{kind}/{world}/words"
        rows.append(mean_row(name, np.array(agree), "Spearman", seed))
    return rows


def words_that_say(factor: str, source: EmbeddedPairs, row: int, found: WordEvidence) -> np.ndarray:
    """Which words of a caption say a factor's value: bool `[words]`.

    The register is said by all that stands around the name.
    """
    drawn = source.factors(row)
    name = source.rows[row]["text"]
    start = REGISTERS[drawn.register][drawn.wording].index("{}")
    end = start + len(name)
    if factor == "register":
        return np.array([not (a < end and b > start) for a, b in found.spans])
    pattern = GENDER_WORDS if factor == "gender" else TONE_WORDS
    said = [match.span() for match in pattern.finditer(name)]
    return np.array([any(a < start + e and b > start + s for s, e in said) for a, b in found.spans])


def named(row: str, world: str) -> str:
    """The beginning of a row's name: that of the world in which every factor is carried stands
    without it."""
    return row if world == MAIN else f"{row}_{world}"


def share_row(name: str, hits: Sequence[float], groups: Sequence[str], seed: int) -> Result:
    """The share of hits, with an interval over the drawings from which the pairs are made, which is
    never of width 0."""
    _, index = np.unique(groups, return_inverse=True)
    part, whole = np.bincount(index, hits), np.bincount(index).astype(float)
    weights = bootstrap_weights(seed, name, 0, len(whole), REPLICATES).numpy().T
    low, high = ratio_interval(
        (weights @ part)[:, None], (weights @ whole)[:, None], whole.mean(), seed=seed
    )
    estimate = Estimate(float(np.mean(hits)), float(low[0]), float(high[0]))
    return estimate_row(name, estimate, len(hits), "share")


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's."""
    from scipy.stats import spearmanr

    return float(spearmanr(one, other).statistic)


def _exact_cells(
    space: FeatureSpace, held: Held, judged: Sequence[Case], carriers: Sequence[Carrier]
) -> list[np.ndarray]:
    """Each case's cells for its own carrier, `[GRID * GRID]`; a picture is covered once for all."""
    scores = [scores_of(space, carrier.target, "image") for carrier in carriers]

    def all_carriers(embedding: Tensor) -> Tensor:
        return torch.cat([score(embedding) for score in scores], 1)

    shown = sorted({(case.draw, case.row) for case in judged})
    images = [held[draw].image(row) for draw, row in shown]
    evidence = picture_evidence(space, images, all_carriers, "exact")
    cells = {where: one.cells for where, one in zip(shown, evidence, strict=True)}
    return [cells[case.draw, case.row][case.carrier].flatten().numpy() for case in judged]


def _fast_cells(
    space: FeatureSpace, held: Held, judged: Sequence[Case], carriers: Sequence[Carrier]
) -> list[np.ndarray]:
    """As `_exact_cells`."""
    found: dict[int, np.ndarray] = {}
    for number, carrier in enumerate(carriers):
        own = [place for place, case in enumerate(judged) if case.carrier == number]
        images = [held[judged[place].draw].image(judged[place].row) for place in own]
        evidence = picture_evidence(space, images, carrier.target, "fast")
        for place, one in zip(own, evidence, strict=True):
            found[place] = one.cells[0].flatten().numpy()
    return [found[place] for place in range(len(judged))]


def _on(held: Held, case: Case, factor: str, *, tolerance: bool) -> np.ndarray:
    """Which cells of a case's picture lie on what shows the factor: bool `[GRID * GRID]`."""
    source = held[case.draw]
    mask = drawn_mask(source.drawing(case.row), source.factors(case.row))
    return cells_on(~mask if factor == "background" else mask, tolerance=tolerance).flatten()


def _groups(held: Held, judged: Sequence[Case]) -> list[str]:
    return [held[case.draw].rows[case.row]["id"] for case in judged]
