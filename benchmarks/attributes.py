"""Benchmark of the attributes app: accuracy, a planted bias, a real one, modality classes, bounds.

    python -m benchmarks.attributes --out runs/benchmark-attributes.json

Probes are fitted, and everything is chosen, on the training pairs; all figures are on the held-out
combinations under several draws of the planted factors, with intervals over drawings. `--spaces`
takes FeatureSpaces of other dictionaries too, such as `benchmarks.dictionaries` leaves. The rows
`fresh/...` repeat the planted case on seeds that played no part when its rule was settled; their
means have intervals over seeds.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor

from benchmarks.attributes_stream import stream_rows
from benchmarks.common import (
    Result,
    estimate_row,
    mean_row,
    options,
    run_sections,
)
from features.embedded.build_pairs import SKIN_TONES
from features.embedded.evaluate import BATCH, GENDERS, gender_prompts, skin_tone_prompts
from features.embedded.world import REGISTERS, EmbeddedPairs, render
from features.space.space import FeatureSpace
from mms_apps.attributes.audit import class_effects, wilson
from mms_apps.attributes.debias.baselines import FactorPrompts
from mms_apps.attributes.debias.choosing import ChosenFeatures
from mms_apps.attributes.debias.comparison import MethodRow
from mms_apps.attributes.debias.debiasing import VALIDATION, every_method
from mms_apps.attributes.explain import explain
from mms_apps.attributes.labels import Samples, cells, split_samples
from mms_apps.attributes.measures import (
    bootstrap_weights,
    estimate,
    weighted_mean,
)
from mms_apps.attributes.model import METHODS, fit_model
from mms_apps.attributes.permutation import permutation_tests

SECTIONS = ("probes", "planted", "fresh", "real", "classes", "false_alarms", "stream")
TEST_DRAWS = range(1, 5)
"""Draws of the planted factors under which each held-out drawing is tested."""
TIED = 0.95
"""Share of the training pairs in which the gender and the background go together."""
TIES = {"man": "blue", "woman": "red"}
ROLE_PAIRS = 8
"""Training drawings that a role must have for the real case, so that each gender has some."""
FRESH_SEEDS = tuple(range(1000, 1100, 10))
"""Seeds that played no part when the rule by which features are chosen was settled."""
MEASURES = (
    "accuracy",
    "worst_group",
    "gap",
    "leakage",
    "utility",
    "utility_cost",
    "gap_change",
    "accuracy_change",
    "gap_less_features",
    "worst_less_features",
)
FAIR_DRAWS = 200
FAIR_GROUPS = 10
FAIR_GROUP = 30
"""Samples of each of the groups that a predictor serves alike."""


def world_samples(space: FeatureSpace, split: str, draws: Sequence[int]) -> Samples:
    """Images of a split of the embedded world under each draw of the planted factors."""
    sources = [EmbeddedPairs(split, draw) for draw in draws]
    pairs = [source.pair(index) for source in sources for index in range(len(source.rows))]
    return Samples(
        encoded(space, [pair.image for pair in pairs]),
        np.array([pair.id for pair in pairs], dtype=object),
        {
            name: np.array([pair.attributes[name] for pair in pairs], dtype=object)
            for name in ("gender", "skin_tone", "role", "background")
        },
    )


def tied_samples(
    space: FeatureSpace, split: str, draws: Sequence[int], tied: float, seed: int
) -> Samples:
    """Men and women on a blue or a red background.

    Args:
        tied: share of the drawings whose background is that of TIES; 0.5 is balanced.
    """
    rng = np.random.default_rng(seed)
    images, ids = [], []
    columns: dict[str, list[str | None]] = {"gender": [], "skin_tone": [], "background": []}
    for draw in draws:
        source = EmbeddedPairs(split, draw)
        for index, row in enumerate(source.rows):
            if row["gender"] not in TIES:
                continue
            own = TIES[row["gender"]]
            other = next(b for b in TIES.values() if b != own)
            background = own if rng.random() < tied else other
            factors = dataclasses.replace(source.factors(index), background=background)
            images.append(render(source.drawing(index), factors))
            ids.append(row["id"])
            for name, value in (*row.items(), ("background", background)):
                if name in columns:
                    columns[name].append(value)
    return Samples(
        encoded(space, images),
        np.array(ids, dtype=object),
        {name: np.array(values, dtype=object) for name, values in columns.items()},
    )


def encoded(space: FeatureSpace, images: Sequence[Image.Image]) -> Tensor:
    """Embeddings `[n, dim]` of images."""
    parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
    return torch.cat([torch.clone(space.encoder.encode_images(part)) for part in parts])


def prompts_of(attribute: str) -> dict[str, list[str]]:
    """The prompts of the world's own words."""
    if attribute == "gender":
        return dict(zip(GENDERS, gender_prompts(), strict=True))
    return dict(zip(SKIN_TONES, skin_tone_prompts(), strict=True))


def accuracy_rows(space: FeatureSpace, prefix: str, seed: int) -> list[Result]:
    """Each method's accuracy, the sparse probe's less the linear one's, and the features used."""
    train = world_samples(space, "train", [0])
    held_out = world_samples(space, "heldout", TEST_DRAWS)
    rows = []
    for attribute, classes in (("gender", GENDERS), ("skin_tone", SKIN_TONES)):
        test = held_out.having(attribute, classes)
        truth = test.columns[attribute].astype(str)
        weights = bootstrap_weights(len(test), 1000, seed, test.ids)
        share, error = {}, 0.0
        for method in METHODS:
            model = fit_model(
                space, train, attribute, classes, method, prompts=prompts_of(attribute), seed=seed
            )
            share[method] = weighted_mean(model.predict(test.embeddings) == truth, weights)
            name = f"{prefix}accuracy/{attribute}/{method}"
            rows.append(estimate_row(name, estimate(share[method]), len(test), "share"))
            explained = explain(model, test.embeddings[:200])
            error = max(error, *(abs(e.total - e.logit) for e in explained))
        difference = estimate(share["sparse_probe"] - share["linear_probe"])
        name = f"{prefix}accuracy/{attribute}/sparse_less_linear"
        rows.append(estimate_row(name, difference, len(test), "share"))
        used = float(np.count_nonzero(model.estimator.coef_.any(axis=0)))
        name = f"{prefix}accuracy/{attribute}/sparse_features"
        rows.append(Result(name, used, used, used, 1, "features"))
        name = f"{prefix}explain/{attribute}/largest_error"
        rows.append(Result(name, error, error, error, 200 * len(METHODS), "logit"))
    return rows


def space_rows(folders: Sequence[Path], device: str, seed: int) -> list[Result]:
    """The same of other FeatureSpaces, loaded one after the other."""
    rows = []
    for folder in folders:
        space = FeatureSpace.load(folder, device=device)
        rows += accuracy_rows(space, f"spaces/{folder.name}/", seed)
    return rows


def planted_rows(space: FeatureSpace, seed: int) -> list[Result]:
    """The planted case on the benchmark's seed."""
    return method_rows(planted(space, seed), "")


def fresh_rows(space: FeatureSpace, seeds: Sequence[int] = FRESH_SEEDS) -> list[Result]:
    """The planted case on other seeds, and the means over them with intervals over seeds."""
    runs = {seed: planted(space, seed) for seed in track(seeds, "fresh seeds")}
    measures = (
        "accuracy",
        "worst_group",
        "gap",
        "leakage",
        "utility_cost",
        "gap_less_features",
        "worst_less_features",
    )
    rows = []
    for seed, found in runs.items():
        rows += method_rows(found, f"fresh/{seed}/", measures)
    gaps: dict[str, np.ndarray] = {}
    for measure in measures:
        for place, method in enumerate(next(iter(runs.values()))):
            values = np.array([getattr(found[place], measure).value for found in runs.values()])
            rows.append(mean_row(f"fresh/{measure}/{method.method}", values, "share", 0))
            if measure == "gap":
                gaps[method.method] = values
    halved = gaps["features"] <= gaps["none"] / 2
    rows.append(mean_row("fresh/gap_halved", halved, "share of seeds", 0))
    return rows


def planted(space: FeatureSpace, seed: int) -> list[MethodRow]:
    """A linear probe for gender whose training pairs tie gender to the background."""
    tied = tied_samples(space, "train", [0], TIED, seed)
    train, validation = split_samples(tied, VALIDATION, seed)
    test = tied_samples(space, "heldout", TEST_DRAWS, 0.5, seed + 1)
    balanced = tied_samples(space, "train", [0], 0.5, seed + 2)
    model = fit_model(space, train, "gender", GENDERS, "linear_probe", seed=seed)
    unrelated = fit_model(
        space, None, "skin_tone", SKIN_TONES, "zero_shot", prompts=prompts_of("skin_tone")
    )
    template = REGISTERS["plain"][0]
    first, second = TIES.values()
    prompts = FactorPrompts(
        [template.format(f"{background} background") for background in TIES.values()],
        [
            (
                template.format(f"{gender} on a {first} background"),
                template.format(f"{gender} on a {second} background"),
            )
            for gender in GENDERS
        ],
    )
    choice, _, rows = every_method(
        model,
        train,
        validation,
        test,
        "background",
        lambda samples: cells(*(samples.columns[c].astype(str) for c in ("gender", "background"))),
        prompts,
        probe_samples=balanced,
        unrelated=unrelated,
        seed=seed,
    )
    say(choice, space, rows)
    return rows


def say(choice: ChosenFeatures, space: FeatureSpace, rows: Sequence[MethodRow]) -> None:
    """Print what validation chose."""
    names = space.features["name"].to_pylist()
    print([(feature, names[feature]) for feature in choice.features])
    print({row.method: row.setting for row in rows if row.setting}, flush=True)


def real_rows(space: FeatureSpace, seed: int) -> list[Result]:
    """Zero-shot prediction of a person's role, by gender: roles of the emoji names."""
    everyone = world_samples(space, "train", [0])
    gendered = everyone.take(np.isin(everyone.columns["gender"].astype(str), GENDERS))
    held_out = world_samples(space, "heldout", TEST_DRAWS)
    test = held_out.take(np.isin(held_out.columns["gender"].astype(str), GENDERS))
    by_role = Counter(gendered.columns["role"])
    roles = sorted(role for role, count in by_role.items() if count >= ROLE_PAIRS)
    gendered, test = gendered.having("role", roles), test.having("role", roles)
    template = REGISTERS["plain"][0]
    prompts = {role: [template.format(role)] for role in roles}
    model = fit_model(space, None, "role", roles, "zero_shot", prompts=prompts)
    unrelated = fit_model(
        space, None, "skin_tone", SKIN_TONES, "zero_shot", prompts=prompts_of("skin_tone")
    )
    factor_prompts = FactorPrompts(
        [template.format(gender) for gender in GENDERS],
        [
            (template.format(f"{GENDERS[0]} {role}"), template.format(f"{GENDERS[1]} {role}"))
            for role in roles
        ],
    )
    fitted, validation = split_samples(gendered, VALIDATION, seed)
    choice, _, found = every_method(
        model,
        fitted,
        validation,
        test,
        "gender",
        lambda samples: samples.columns["gender"].astype(str),
        factor_prompts,
        probe_samples=gendered,
        unrelated=unrelated,
        seed=seed,
    )
    say(choice, space, found)
    return method_rows(found, "real/")


def method_rows(
    found: Sequence[MethodRow], prefix: str, measures: Sequence[str] = MEASURES
) -> list[Result]:
    """One row a measure and method, and what the gap is by chance with its p-value."""
    rows = [
        estimate_row(
            f"{prefix}{measure}/{method.method}", getattr(method, measure), method.samples, "share"
        )
        for measure in measures
        for method in found
    ]
    for method in found:
        for name, value, unit in (
            ("gap_by_chance", method.gap.chance, "share"),
            ("gap_p", method.gap.p, "p-value"),
        ):
            label = f"{prefix}{name}/{method.method}"
            rows.append(Result(label, value, value, value, method.samples, unit))
    return rows


def false_alarm_rows(seed: int) -> list[Result]:
    """How often a predictor that is right by chance, whatever the group, is found unfair: the
    share of draws with p < 0.05; and how often one is that errs twice as often on one group."""
    groups = np.repeat([f"group {k}" for k in range(FAIR_GROUPS)], FAIR_GROUP)
    found: dict[str, list[bool]] = {}
    for draw in track(range(FAIR_DRAWS), "fair predictors"):
        rng = np.random.default_rng((seed, draw))
        truth = np.array(GENDERS)[rng.integers(2, size=len(groups))]
        other = np.array(GENDERS)[(truth == GENDERS[0]).astype(int)]
        for name, errors in (
            ("false_alarms", np.full(len(groups), 0.2)),
            ("found", np.where(groups == "group 0", 0.4, 0.2)),
        ):
            predicted = np.where(rng.random(len(groups)) < errors, other, truth)
            tests = permutation_tests(truth, predicted, groups, GENDERS, seed=draw)
            for statistic, test in tests.items():
                found.setdefault(f"{name}/{statistic}", []).append(test.p < 0.05)
    return [
        estimate_row(name, wilson(sum(hits), len(hits)), len(hits), "share of draws")
        for name, hits in found.items()
    ]


def class_rows(space: FeatureSpace, seed: int) -> list[Result]:
    """What each modality class carries of gender, and of the background that only images show."""
    train = world_samples(space, "train", [0])
    held_out = world_samples(space, "heldout", TEST_DRAWS)
    backgrounds = sorted(set(held_out.columns["background"]))
    rows = []
    for attribute, classes, prefix in (
        ("gender", GENDERS, "class/"),
        ("background", backgrounds, "class/background/"),
    ):
        test = held_out.having(attribute, classes)
        model = fit_model(space, train, attribute, classes, "linear_probe", seed=seed)
        for effect in class_effects(model, test, seed=seed):
            name = f"{prefix}{effect.what}/{effect.modality_class}"
            rows.append(estimate_row(name, effect.accuracy, len(test), "share"))
            rows.append(estimate_row(f"{name}/random", effect.random, len(test), "share"))
            rows.append(estimate_row(f"{name}/less_random", effect.difference, len(test), "share"))
    return rows


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument(
        "--spaces", type=Path, help="folder of FeatureSpaces to fit probes on as well"
    )
    arguments = parser.parse_args()
    seed = arguments.seed
    plain = FeatureSpace.load("embedded", device=arguments.device)
    ssl = FeatureSpace.load("embedded-ssl", device=arguments.device)
    folders = sorted(arguments.spaces.iterdir()) if arguments.spaces else []
    with tempfile.TemporaryDirectory() as scratch:
        sections: dict[str, Callable[[], list[Result]]] = {
            "probes": lambda: [
                *accuracy_rows(plain, "", seed),
                *accuracy_rows(ssl, "embedded-ssl/", seed),
                *space_rows(folders, arguments.device, seed),
            ],
            "planted": lambda: planted_rows(ssl, seed),
            "fresh": lambda: fresh_rows(ssl),
            "real": lambda: real_rows(plain, seed),
            "classes": lambda: class_rows(ssl, seed),
            "false_alarms": lambda: false_alarm_rows(seed),
            "stream": lambda: stream_rows(Path(scratch), seed),
        }
        run_sections([sections[name] for name in arguments.only], arguments.out, seed=seed)


if __name__ == "__main__":
    main()
