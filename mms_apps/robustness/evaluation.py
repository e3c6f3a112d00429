"""An evaluation: attacks at several eps, the worst case of each image, checks, feature groups and
defences.

    run.json              what was evaluated and how; another evaluation is refused
    parts/*.safetensors   one attack at one eps each, so that a killed evaluation goes on
    robustness.json       the result (`Evaluation`)
    report.html           the same to read

What is undefined is null in the JSON.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from features.errors import UserError
from features.files import replacing, write_json
from features.space import FeatureSpace
from mms_apps.robustness import checks
from mms_apps.robustness.attacks import ATTACKS, AttackConfig, require_offered, run_attack
from mms_apps.robustness.checks import Check, all_passed
from mms_apps.robustness.distances import readable_eps
from mms_apps.robustness.groups import (
    GROUPS,
    Control,
    Defence,
    Estimate,
    controls,
    energy,
    keep_only,
    most_moved,
    shares,
)
from mms_apps.robustness.models import ZeroShot, batched, correct
from mms_apps.robustness.nearest import minimal_eps
from mms_apps.robustness.tasks import Task

SCHEMA = 1
RESULT = "robustness.json"
RUN = "run.json"
WORST = "worst case"
TRANSFER = "transfer"
Progress = Callable[[float, str], None]
"""Called with the share that is done, in [0, 1], and what is being done."""


@dataclass(frozen=True)
class EvaluationConfig:
    """What an evaluation runs."""

    attacks: tuple[str, ...] = ("noise", "fgsm", "pgd", "apgd", "square")
    eps: tuple[float, ...] = (1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255)
    """In pixel values of [0, 1]."""
    attack: AttackConfig = field(default_factory=AttackConfig)
    defences: tuple[str, ...] = ()
    """As `Defence.parse` reads them."""
    check_images: int = 64
    """Images on which checks that need attacks of their own run."""
    control_seeds: int = checks.MIN_CONTROL_SEEDS
    examples: int = 6

    def __post_init__(self) -> None:
        if not self.eps or any(not 0 < value < math.inf for value in self.eps):
            raise UserError(f"eps {list(self.eps)}: give positive numbers")
        if not self.attacks:
            raise UserError("no attack given; name at least one")
        if self.check_images < 1:
            raise UserError(f"check_images {self.check_images}: must be at least 1")

    @property
    def middle(self) -> float:
        """The eps of the checks, drifts and defences."""
        ordered = sorted(self.eps)
        return ordered[len(ordered) // 2]


@dataclass(frozen=True)
class Part:
    """One attack at one eps."""

    withstood: Tensor
    """Whether each image is still classified right: `[n]` bool."""
    rounded: Tensor
    """The same with the adversarial image rounded to 8 bits."""
    excess: float
    """By how much eps or [0, 1] was left (`checks.bounds_excess`)."""
    lost: int
    """Images that were fooled on the way but not in what the attack returned."""
    history: list[float]
    shown: Tensor
    """The first adversarial images, `[examples, 3, height, width]`."""
    embedding: Tensor
    """Of the adversarial images, before any edit: `[n, dim]`; empty where the model has none."""

    def save(self, path: Path) -> None:
        """Write it as one safetensors file, whole or not at all."""
        tensors = {
            "withstood": self.withstood.to(torch.uint8),
            "rounded": self.rounded.to(torch.uint8),
            "excess": torch.tensor(self.excess),
            "lost": torch.tensor(self.lost),
            "history": torch.tensor(self.history),
            "shown": self.shown,
            "embedding": self.embedding,
        }
        with replacing(path) as temporary:
            save_file({key: value.cpu().contiguous() for key, value in tensors.items()}, temporary)

    @classmethod
    def load(cls, path: Path) -> Part:
        """Read what `save` wrote."""
        tensors = load_file(path)
        return cls(
            withstood=tensors["withstood"].bool(),
            rounded=tensors["rounded"].bool(),
            excess=float(tensors["excess"]),
            lost=int(tensors["lost"]),
            history=tensors["history"].tolist(),
            shown=tensors["shown"],
            embedding=tensors["embedding"],
        )


@dataclass(frozen=True)
class GroupResult:
    """One feature group beside its controls."""

    group: str
    features: int
    energy_share: float
    """Of the activations' energy on clean images."""
    accuracy: Estimate
    """Of predictions restricted to the group, on clean images."""
    control_accuracy: dict[str, list[float]]
    """By kind of control, one a seed."""
    drift: Estimate
    """Of what the attack moved, the share in the group."""
    control_drift: dict[str, list[float]]


@dataclass(frozen=True)
class DefenceResult:
    """One defence at the middle eps."""

    defence: str
    clean: Estimate
    nonadaptive: Estimate
    """Under images made against the undefended model: not evidence of robustness."""
    adaptive: Estimate
    """Attacked through the defence."""
    undefended: Estimate
    """The undefended model under the same attacks."""


@dataclass(frozen=True)
class Evaluation:
    """The result."""

    task: str
    pairs: str
    encoder: str
    classes: list[str]
    images: int
    config: EvaluationConfig
    clean: Estimate
    accuracy: dict[str, dict[float, Estimate]]
    """By attack and eps; "worst case" among them, "transfer" where there was another model."""
    minimal: list[float]
    """The smallest eps found at which each image is adversarial; 0 where it was wrong from the
    start, infinite where even the largest eps was withstood."""
    checks: list[Check]
    groups: list[GroupResult]
    moved: list[dict[str, Any]]
    """Features that the drift's attack moved most."""
    drift_attack: str | None
    defences: list[DefenceResult]
    seconds: float
    """That this run took; what an earlier one had finished is not in it."""
    shown: dict[str, Any] = field(default_factory=dict, repr=False)
    """Pictures for the report: not in the JSON."""

    @property
    def reliable(self) -> bool:
        """Whether all checks passed."""
        return all_passed(self.checks)

    def record(self) -> dict[str, Any]:
        """As JSON holds it."""
        kept = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        kept.pop("shown")
        plain = _plain({"schema": SCHEMA, "reliable": self.reliable, **kept})
        plain["accuracy"] = {
            attack: [{"eps": eps, **_plain(e)} for eps, e in sorted(curve.items())]
            for attack, curve in self.accuracy.items()
        }
        return plain


def evaluate(
    model: nn.Module,
    task: Task,
    out: str | Path,
    config: EvaluationConfig | None = None,
    *,
    space: FeatureSpace | None = None,
    surrogate: nn.Module | None = None,
    encoder: str = "",
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate a model; killed, the same call goes on where it stopped.

    Args:
        model: pixels in [0, 1] -> logits.
        out: folder for parts and results.
        space: of a `ZeroShot` model's encoder, for feature groups and defences.
        surrogate: another model of the same task, for transfer.
        encoder: what to call the model.

    Raises:
        UserError: the folder holds another evaluation, an attack cannot be run, or a defence needs
            a FeatureSpace.
    """
    config = config or EvaluationConfig()
    require_offered(list(config.attacks), len(task.classes), config.attack.norm)
    defences = [Defence.parse(spec) for spec in config.defences]
    if defences and (space is None or not isinstance(model, ZeroShot)):
        raise UserError("defences act on a FeatureSpace; give one and a zero-shot model")
    out = Path(out)
    _claim(out, model, task, config, surrogate)
    start = time.perf_counter()
    run = _Run(model, task, out, config, space, surrogate, progress)
    right = correct(model, task.pixels, task.labels).cpu()
    by_attack = {
        name: {eps: run.part(name, eps) for eps in sorted(config.eps)} for name in config.attacks
    }
    if surrogate is not None:
        by_attack[TRANSFER] = {config.middle: run.transfer()}
    withstood = {
        name: {eps: part.withstood for eps, part in parts.items()}
        for name, parts in by_attack.items()
    }
    worst = worst_case(withstood, right)
    accuracy = {
        name: {eps: Estimate.of(mask, config.attack.seed) for eps, mask in masks.items()}
        for name, masks in {**withstood, WORST: worst}.items()
    }
    curves = {name: {eps: e.value for eps, e in c.items()} for name, c in accuracy.items()}
    minimal = run.minimal(worst, right)
    found = run.checks(curves, by_attack, worst)
    groups: list[GroupResult] = []
    moved: list[dict[str, Any]] = []
    drift_attack = next((n for n in ("pgd", *config.attacks) if _drifts(n, by_attack)), None)
    if space is not None and isinstance(model, ZeroShot) and drift_attack is not None:
        attacked = by_attack[drift_attack][config.middle].embedding
        groups, drawn, energies = run.groups(attacked)
        moved = most_moved(space, run.clean_embedding, attacked.to(space.device))
        found.append(checks.against_controls(energies, [c.described for c in drawn]))
    results = run.defences(defences, right)
    if results:
        found.append(
            checks.attacked_through(
                {d.defence: d.adaptive.value for d in results},
                {d.defence: d.nonadaptive.value for d in results},
            )
        )
    evaluation = Evaluation(
        task=task.label,
        pairs=task.pairs,
        encoder=encoder,
        classes=list(task.classes),
        images=len(task),
        config=config,
        clean=Estimate.of(right, config.attack.seed),
        accuracy=accuracy,
        minimal=minimal.tolist(),
        checks=found,
        groups=groups,
        moved=moved,
        drift_attack=drift_attack,
        defences=results,
        seconds=time.perf_counter() - start,
        shown=run.pictures(by_attack, worst, right),
    )
    write_json(out / RESULT, evaluation.record())
    return evaluation


def worst_case(
    withstood: Mapping[str, Mapping[float, Tensor]], right: Tensor
) -> dict[float, Tensor]:
    """Whether each image withstands every attack at an eps, by eps: `[n]` bool.

    Args:
        withstood: by attack and eps, `[n]` bool.
        right: whether each clean image is classified right, `[n]` bool.
    """
    every = sorted({eps for masks in withstood.values() for eps in masks})
    return {
        eps: torch.stack([right, *(m[eps] for m in withstood.values() if eps in m)]).all(0)
        for eps in every
    }


class _Run:
    """The steps of one evaluation, each kept as a part."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        out: Path,
        config: EvaluationConfig,
        space: FeatureSpace | None,
        surrogate: nn.Module | None,
        progress: Progress | None,
    ) -> None:
        self.model, self.task, self.config = model, task, config
        self.space, self.surrogate = space, surrogate
        self.folder = out / "parts"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.tell = progress or (lambda share, what: None)
        extra = 3 + (surrogate is not None) + 2 * len(config.defences)
        self.steps = len(config.attacks) * len(config.eps) + extra
        self.done = 0

    @property
    def clean_embedding(self) -> Tensor:
        """Of the clean images, before any edit: `[n, dim]`."""
        assert isinstance(self.model, ZeroShot)
        return batched(self.model.plain, self.task.pixels)

    def part(self, name: str, eps: float) -> Part:
        """One attack at one eps."""
        return self._part(f"{name}-{eps:.6f}", name, self.model, name, eps)

    def transfer(self) -> Part:
        """PGD on the other model, at the middle eps, tried on this one."""
        assert self.surrogate is not None
        return self._part(TRANSFER, TRANSFER, self.surrogate, "pgd", self.config.middle)

    def minimal(self, worst: dict[float, Tensor], right: Tensor) -> Tensor:
        """The smallest adversarial eps of each image, `[n]`."""
        path = self.folder / "minimal.safetensors"
        if not path.is_file():
            low, high = torch.zeros(len(right)), torch.full((len(right),), torch.inf)
            for eps, withstood in sorted(worst.items(), reverse=True):
                high[~withstood] = eps
            for eps, withstood in sorted(worst.items()):
                low[withstood] = torch.where(eps < high[withstood], eps, low[withstood])
            device = self.task.pixels.device
            found = minimal_eps(
                self.model,
                self.task.pixels,
                self.task.labels,
                low=low.to(device),
                high=high.to(device),
                norm=self.config.attack.norm,
                steps=self.config.attack.pgd_steps // 2 or 1,
                halvings=3,
                batch_size=self.config.attack.batch_size,
                progress=self._within("nearest adversarial"),
            )
            _save({"minimal": torch.where(right, torch.minimum(found.cpu(), high), 0.0)}, path)
        self._finished()
        return load_file(path)["minimal"]

    def checks(
        self,
        curves: dict[str, dict[float, float]],
        by_attack: dict[str, dict[float, Part]],
        worst: dict[float, Tensor],
    ) -> list[Check]:
        """All checks that every model gets."""
        path = self.folder / "checks.json"
        if path.is_file():
            ran = [Check(**record) for record in json.loads(path.read_text(encoding="utf-8"))]
        else:
            self.tell(self.done / self.steps, "checks")
            ran = self._attack_checks()
            write_json(path, [dataclasses.asdict(check) for check in ran])
        self._finished()
        parts = [part for curve in by_attack.values() for part in curve.values()]
        largest = max(worst)
        rounded = worst_case(
            {n: {e: p.rounded for e, p in parts.items()} for n, parts in by_attack.items()},
            correct(self.model, self.task.pixels, self.task.labels).cpu(),
        )
        masks = {n: {e: p.withstood for e, p in c.items()} for n, c in by_attack.items()}
        found = [
            checks.inside_bounds(max(part.excess for part in parts)),
            *ran,
            checks.never_rises(curves),
            checks.ordering(curves),
            checks.best_kept(sum(p.lost for p in parts), sum(len(p.withstood) for p in parts)),
            checks.per_sample_worst(worst, masks),
            checks.survives_rounding(
                float(worst[largest].float().mean()), float(rounded[largest].float().mean())
            ),
        ]
        if "pgd" in by_attack:
            found.append(checks.flattened(by_attack["pgd"][self.config.middle].history))
        seeing = any(n in ATTACKS and ATTACKS[n].gradients for n in by_attack)
        if "square" in by_attack and seeing:
            found.append(checks.square_not_stronger(curves))
        if TRANSFER in by_attack and seeing:
            found.append(checks.transfer_not_stronger(curves))
        return found

    def _attack_checks(self) -> list[Check]:
        """Those that run the model."""
        few = self.task.first(self.config.check_images)
        pixels, labels = self.task.pixels, self.task.labels
        attack = self.config.attack
        return [
            checks.repeatable(self.model, few.pixels),
            checks.gives_logits(self.model, pixels),
            checks.gradients(self.model, pixels, labels, "cross-entropy"),
            checks.gradients(self.model, pixels, labels, "margin"),
            checks.huge_eps(self.model, few.pixels, few.labels, attack, self.task.chance),
            checks.more_work(self.model, few.pixels, few.labels, self.config.middle, attack),
            checks.analytic(attack.norm, attack.seed),
        ]

    def groups(self, attacked: Tensor) -> tuple[list[GroupResult], list[Control], dict[str, float]]:
        """Each group beside its controls; those controls; the groups' energies.

        Args:
            attacked: embeddings of attacked images, `[n, dim]`.
        """
        space, model, seed = self.space, self.model, self.config.attack.seed
        assert space is not None and isinstance(model, ZeroShot)
        self.tell(self.done / self.steps, "feature groups")
        clean, attacked = self.clean_embedding, attacked.to(space.device)
        change = attacked - clean
        activations = space.encode_images(clean)
        moved = space.encode_images(attacked) - activations
        energies = energy(activations).cpu()
        by_group = shares(space, clean, attacked)
        results, drawn = [], []
        for group in GROUPS:
            own = space.select(group)
            if len(own) == 0:
                continue
            accuracy: dict[str, list[float]] = {kind: [] for kind in checks.CONTROL_KINDS}
            drift: dict[str, list[float]] = {kind: [] for kind in checks.CONTROL_KINDS}
            for control in controls(space, group, clean, seeds=self.config.control_seeds):
                drawn.append(control)
                kind = control.described.kind
                accuracy[kind].append(float(self._restricted(control.edit(space), clean).mean()))
                drift[kind].append(float(control.share(moved, change).nanmean()))
            share = by_group[group]
            results.append(
                GroupResult(
                    group=group,
                    features=len(own),
                    energy_share=float(energies[own].sum() / energies.sum()),
                    accuracy=Estimate.of(self._restricted(keep_only(space, own), clean), seed),
                    control_accuracy=accuracy,
                    drift=Estimate.of(share[~share.isnan()], seed),
                    control_drift=drift,
                )
            )
        self._finished()
        return (
            results,
            drawn,
            {g.group: float(energies[space.select(g.group)].sum()) for g in results},
        )

    def defences(self, defences: list[Defence], right: Tensor) -> list[DefenceResult]:
        """Each defence clean, under images made without it, and attacked through it."""
        if not defences:
            return []
        assert self.space is not None and isinstance(self.model, ZeroShot)
        eps, attack = self.config.middle, self.config.attack
        names = [n for n in self.config.attacks if n in ATTACKS and ATTACKS[n].gradients]
        names = [n for n in names if ATTACKS[n].iterated] or ["pgd"]
        images = [
            run_attack(
                self.model, self.task.pixels, self.task.labels, name, eps, attack,
                progress=self._within(f"{name} without the defences"),
            ).images
            for name in names
        ]  # fmt: skip
        undefended = right.clone()
        for attacked in images:
            undefended &= self._right(self.model, attacked)
        results = []
        for defence in defences:
            path = self.folder / f"defence-{_slug(defence.spec)}.safetensors"
            if not path.is_file():
                _save(self._defended(defence, images, names, eps), path)
            masks = {name: mask.bool() for name, mask in load_file(path).items()}
            self._finished()
            results.append(
                DefenceResult(
                    defence.spec,
                    **{key: Estimate.of(mask, attack.seed) for key, mask in masks.items()},
                    undefended=Estimate.of(undefended, attack.seed),
                )
            )
        return results

    def _defended(
        self, defence: Defence, images: list[Tensor], names: list[str], eps: float
    ) -> dict[str, Tensor]:
        """Whether each image is classified right, by "clean", "nonadaptive" and "adaptive"."""
        assert self.space is not None and isinstance(self.model, ZeroShot)
        edit = defence.edit(self.space)
        as_used, as_attacked = (
            self.model.with_defence(edit, defence.before(straight_through=passes))
            for passes in (False, True)
        )
        clean = self._right(as_used, self.task.pixels)
        nonadaptive, adaptive = clean.clone(), clean.clone()
        for attacked in images:
            nonadaptive &= self._right(as_used, attacked)
        for name in names:
            found = run_attack(
                as_attacked,
                self.task.pixels,
                self.task.labels,
                name,
                eps,
                self.config.attack,
                progress=self._within(f"{name} through {defence.spec}"),
            )
            adaptive &= self._right(as_used, found.images)
        return {"clean": clean, "nonadaptive": nonadaptive, "adaptive": adaptive}

    def pictures(
        self, by_attack: dict[str, dict[float, Part]], worst: dict[float, Tensor], right: Tensor
    ) -> dict[str, Any]:
        """Images that were right and could be fooled, clean and adversarial: at the smallest eps
        that fools as many as are shown, or at the one that fools most."""
        seeing = [n for n in by_attack if n in ATTACKS and ATTACKS[n].gradients]
        best: tuple[str, float, Tensor] | None = None
        for eps in sorted(worst):
            for name in reversed(seeing):
                part = by_attack[name][eps]
                count = len(part.shown)
                chosen = (right[:count] & ~part.withstood[:count]).nonzero().squeeze(1)
                if best is None or len(chosen) > len(best[2]) < self.config.examples:
                    best = (name, eps, chosen)
        if best is None or len(best[2]) == 0:
            return {}
        name, eps, chosen = best
        chosen = chosen[: self.config.examples]
        shown = by_attack[name][eps].shown[chosen]
        predicted = batched(self.model, shown.to(self.task.pixels.device)).argmax(1)
        return {
            "attack": name,
            "eps": eps,
            "clean": self.task.pixels.cpu()[chosen],
            "adversarial": shown,
            "labels": [self.task.classes[i] for i in self.task.labels[chosen].tolist()],
            "predicted": [self.task.classes[i] for i in predicted.tolist()],
            "captions": [self.task.captions[i] for i in chosen.tolist()],
        }

    def _part(self, key: str, what: str, attacked_model: nn.Module, name: str, eps: float) -> Part:
        path = self.folder / f"{_slug(key)}.safetensors"
        if not path.is_file():
            found = run_attack(
                attacked_model,
                self.task.pixels,
                self.task.labels,
                name,
                eps,
                self.config.attack,
                progress=self._within(f"{what} at {readable_eps(eps)}"),
            )
            self._measured(found.images, found.fooled, found.history, eps, attacked_model).save(
                path
            )
        self._finished()
        return Part.load(path)

    def _measured(
        self,
        images: Tensor,
        fooled: Tensor,
        history: list[float],
        eps: float,
        attacked_model: nn.Module,
    ) -> Part:
        clean, norm = self.task.pixels, self.config.attack.norm
        withstood = self._right(self.model, images)
        lost = fooled.cpu() & withstood if attacked_model is self.model else torch.zeros(1)
        embedding = torch.zeros(0)
        if isinstance(self.model, ZeroShot):
            embedding = batched(self.model.plain, images)
        return Part(
            withstood=withstood,
            rounded=self._right(self.model, (images * 255).round() / 255),
            excess=checks.bounds_excess(clean, images, eps, norm),
            lost=int(lost.sum()),
            history=history,
            shown=images[: 4 * self.config.examples],
            embedding=embedding,
        )

    def _right(self, model: nn.Module, images: Tensor) -> Tensor:
        return correct(model, images, self.task.labels).cpu()

    def _restricted(self, edit: nn.Module, embedding: Tensor) -> Tensor:
        """Whether predictions from edited embeddings are right: `[n]` float."""
        assert isinstance(self.model, ZeroShot)
        with torch.no_grad():
            logits = edit(embedding) @ self.model.vectors.T
        return (logits.argmax(1) == self.task.labels).float().cpu()

    def _within(self, what: str) -> Callable[[float], None]:
        return lambda share: self.tell(min(1.0, (self.done + share) / self.steps), what)

    def _finished(self) -> None:
        self.done += 1


def _drifts(name: str, by_attack: Mapping[str, Any]) -> bool:
    return name in by_attack and name in ATTACKS and ATTACKS[name].gradients


def _claim(
    out: Path, model: nn.Module, task: Task, config: EvaluationConfig, surrogate: nn.Module | None
) -> None:
    """Write what is evaluated, or raise UserError where the folder holds another evaluation."""
    settings = {
        "schema": SCHEMA,
        "model": _fingerprint(model),
        "surrogate": None if surrogate is None else _fingerprint(surrogate),
        "task": task.fingerprint(),
        "config": _plain(config),
    }
    if (out / RUN).is_file():
        earlier = json.loads((out / RUN).read_text(encoding="utf-8"))
        changed = [name for name, value in settings.items() if earlier.get(name) != value]
        if changed:
            raise UserError(
                f"{out}: holds another evaluation ({', '.join(changed)} differ); name another "
                "folder or remove this one"
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / RUN, settings)


def _fingerprint(model: nn.Module) -> str:
    """sha256 over a model's class and state."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    with replacing(path) as temporary:
        save_file(
            {k: (v.to(torch.uint8) if v.dtype == torch.bool else v) for k, v in tensors.items()},
            temporary,
        )


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-." else "_" for c in text)


def _plain(value: Any) -> Any:
    """What JSON can hold; what is not finite becomes None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
