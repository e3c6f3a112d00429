"""Benchmark of steering prompts alone, as Stable Diffusion takes them.

    python -m benchmarks.steering_prompts --out runs/benchmark-prompts.json

The generator is conditioned on the states of held-out prompts' tokens alone, its image embedding
drowned in noise; no drawing enters. States move as `mms_apps.steering.adapters.prompt_tokens` moves
them. Methods:

- plain: the prompt as it is;
- features: those in which texts with the target differ most from those with the source;
- text_direction, random: the mean difference of texts, and random features, turned by as much;
- prompt: the edited prompt itself, an upper reference.

prompts/success: averaged over seeds, the evaluator gives the target the highest probability; gain:
in that probability, over the plain prompt under other seeds; excess: of leakage over the seeds' own
noise, as `benchmarks/steering.py` has it; drift: degrees of the embedding. Features stand at
the smallest of its drifts with a success of .8 on training prompts, or at their best. Intervals are
bootstrapped over prompts.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor

from benchmarks.common import Result, mean_row, run_sections
from benchmarks.evaluator import ATTRIBUTES
from benchmarks.generator import DRAW_BATCH
from benchmarks.steering import (
    ENOUGH,
    SEEDS,
    TRIED,
    TRIED_SEEDS,
    Bench,
    Probabilities,
    bench_of,
    bench_options,
    variation,
)
from benchmarks.steering_edits import DRIFTS, UNBOUNDED, Task, degrees, solved, turned
from benchmarks.steering_references import Reference
from mms_apps.steering.adapters.base import Call
from mms_apps.steering.adapters.prompt_tokens import PromptTokens
from mms_apps.steering.edits import Steering
from mms_apps.steering.finding import TAKEN, find
from mms_apps.steering.generator import STEPS, scaled
from mms_apps.steering.generator_training.schedules import PROMPT_ALONE

SAID = ("gender", "skin_tone")
"""Attributes that prompts state in one word or two."""
METHODS = ("plain", "features", "text_direction", "random", "prompt")


class PromptBench:
    """The generator, drawing from prompts alone."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.space = bench.space
        self.tokens = PromptTokens(bench.drawer.pipe, bench.space)
        self._steering = cache(self._find)

    def shown(self, states: Tensor, seeds: np.ndarray) -> Probabilities:
        """The evaluator's probabilities by attribute, averaged over each prompt's drawings:
        `[n, values]`.

        Args:
            states: of the prompts' tokens, `[n, tokens, width]`.
            seeds: of their drawings' noise, `[n, seeds]`.
        """
        times = seeds.shape[1]
        repeated = states.repeat_interleave(times, 0)
        noise = [torch.Generator().manual_seed(seed) for seed in seeds.flatten().tolist()]
        drawn = []
        for start in range(0, len(repeated), DRAW_BATCH):
            part = repeated[start : start + DRAW_BATCH]
            drawn += self.bench.drawer.pipe(
                prompt_embeds=part,
                image_embeds=part.new_zeros(len(part), self.bench.drawer.adapter.dim),
                noise_level=PROMPT_ALONE,
                num_inference_steps=STEPS,
                guidance_scale=self.bench.guidance,
                generator=noise[start : start + DRAW_BATCH],
            ).images
        return self.bench.averages(drawn, times)

    def moved(
        self, references: list[Reference], method: str, drift: float
    ) -> tuple[Tensor, np.ndarray]:
        """What one method makes of prompts: the states of their tokens `[n, tokens, width]`, and by
        how many degrees their embeddings turned `[n]`."""
        prompts = [reference.caption for reference in references]
        raw = self.tokens.embed_prompt(prompts)  # [n, dim]
        unit, norm = F.normalize(raw, dim=1), raw.norm(dim=1, keepdim=True)
        if method == "prompt":
            prompts = [reference.edited for reference in references]
            raw = self.tokens.embed_prompt(prompts)
            steered = F.normalize(raw, dim=1)
            states = self._states(raw, raw, prompts)
        else:
            steered = torch.cat(
                [
                    self._steered(reference, unit[n : n + 1], method, drift, self.bench.seed + n)
                    for n, reference in enumerate(references)
                ]
            )
            states = self._states(steered * norm, raw, prompts)
        return states, degrees(steered, unit)

    def _states(self, steered: Tensor, plain: Tensor, prompts: list[str]) -> Tensor:
        states: Tensor = self.tokens.inputs(steered, plain, Call(prompts))["prompt_embeds"]
        return states

    def _steered(
        self, reference: Reference, unit: Tensor, method: str, drift: float, seed: int
    ) -> Tensor:
        """A unit embedding `[1, dim]` under one of the methods that move it."""
        if method == "plain":
            return unit
        task = (reference.attribute, reference.source, reference.target)
        by = self._steering(task, drift).apply(self.space, unit, "text").embedding
        if method == "features":
            return by
        return turned(unit, self.bench.edits.direction(method, task, seed)[None], by)

    def _find(self, task: Task, wanted: float) -> Steering:
        """Edits at the strength that turns training texts by so many degrees on average."""
        examples = self.bench.edits.examples(*task)
        source, target = examples.source_texts, examples.target_texts
        found = find(self.space, source, target, "features", "text", TAKEN)
        found = replace(found, max_drift=UNBOUNDED)

        def drift(strength: float) -> float:
            return float(scaled(found, strength).apply(self.space, source, "text").drift.mean())

        return scaled(found, solved(drift, wanted))


def prompt_rows(prompts: PromptBench, attribute: str, count: int) -> list[Result]:
    """All rows of one attribute, over `count` held-out prompts."""
    bench = prompts.bench
    drift = chosen_drift(prompts, attribute)
    references = bench.world.references(bench.held_out, attribute, count, bench.seed)
    target = targets(bench, references)
    seeds = noise_seeds(len(references), 2 * SEEDS, bench.seed)
    own, others = seeds[:, :SEEDS], seeds[:, SEEDS:]
    plain, _ = prompts.moved(references, "plain", drift)
    before, reseeded = prompts.shown(plain, own), prompts.shown(plain, others)
    elsewhere = [name for name in ATTRIBUTES if name != attribute]
    noise = {name: variation(before[name], reseeded[name]) for name in elsewhere}
    row = partial(mean_row, seed=bench.seed)
    rows = []
    for method in track(METHODS, f"prompts: {attribute}"):
        states, turned_by = prompts.moved(references, method, drift)
        seen = before if method == "plain" else prompts.shown(states, own)
        excess = [variation(seen[name], reseeded[name]) - noise[name] for name in elsewhere]
        gain = np.take_along_axis(seen[attribute] - reseeded[attribute], target[:, None], 1)
        name = f"{attribute}/{method}"
        rows += [
            row(f"prompts/success/{name}", seen[attribute].argmax(1) == target, "share"),
            row(f"prompts/gain/{name}", gain[:, 0], "share"),
        ]
        if method != "plain":
            rows += [
                row(f"prompts/excess/{name}", np.mean(excess, axis=0), "share"),
                row(f"prompts/drift/{name}", turned_by, "degrees"),
            ]
    return rows


def chosen_drift(prompts: PromptBench, attribute: str) -> float:
    """The smallest of DRIFTS with enough success on training prompts, or that with the most."""
    bench = prompts.bench
    references = bench.world.references(bench.tried, attribute, TRIED, bench.seed)
    target = targets(bench, references)
    seeds = noise_seeds(len(references), TRIED_SEEDS, bench.seed)
    success = {}
    for drift in DRIFTS:
        states, _ = prompts.moved(references, "features", drift)
        seen = prompts.shown(states, seeds)[attribute]
        success[drift] = float((seen.argmax(1) == target).mean())
        if success[drift] >= ENOUGH:
            return drift
    return max(success, key=lambda drift: success[drift])


def targets(bench: Bench, references: list[Reference]) -> np.ndarray:
    """The targets' places among the evaluator's values, `[n]`."""
    label = bench.evaluator.vocabulary.label
    return np.array([label(reference.attribute, reference.target) for reference in references])


def noise_seeds(prompts: int, each: int, seed: int) -> np.ndarray:
    """Seeds of every prompt's drawings, `[prompts, each]`."""
    return np.random.default_rng(seed).integers(2**31, size=(prompts, each))


def main() -> None:
    parser = bench_options(__doc__)
    parser.add_argument("--prompts", type=int, default=24, help="of each attribute")
    arguments = parser.parse_args()
    prompts = PromptBench(bench_of(arguments))
    sections = [partial(prompt_rows, prompts, name, arguments.prompts) for name in SAID]
    run_sections(sections, arguments.out, seed=arguments.seed)


if __name__ == "__main__":
    main()
