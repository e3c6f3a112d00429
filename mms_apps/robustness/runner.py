"""The steps of an evaluation, each kept as a file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from features.bootstrap import Estimate
from features.files import read_tensors, write_json
from features.space.space import FeatureSpace
from features.store.credits import credit_line
from mms_apps.robustness.attacks.base import Attacked
from mms_apps.robustness.attacks.registry import ATTACKS, single_attacks
from mms_apps.robustness.attacks.run import run_attack
from mms_apps.robustness.checks import linear_case, of_controls, of_curves, of_model
from mms_apps.robustness.checks.base import Check
from mms_apps.robustness.distances import readable_eps
from mms_apps.robustness.groups import GROUPS, Control, Defence, controls, energy, keep_only, shares
from mms_apps.robustness.models import ZeroShot, batched, correct, right_class
from mms_apps.robustness.moved import MovedFeature, moved_features
from mms_apps.robustness.nearest_adversarial import minimal_eps
from mms_apps.robustness.parts import Part, save_tensors, slug
from mms_apps.robustness.results import (
    TRANSFER,
    DefenceResult,
    EvaluationConfig,
    GroupResult,
    image_estimate,
    worst_case,
)
from mms_apps.robustness.tasks import Task

Progress = Callable[[float, str], None]
"""Called with the share that is done, in [0, 1], and what is being done."""


class Runner:
    """The steps of one evaluation; what a file holds is not run again."""

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

    @cached_property
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

    def surrogate_clean(self) -> Estimate:
        """The other model's accuracy on the clean images."""
        assert self.surrogate is not None
        return image_estimate(
            self._right(self.surrogate, self.task.pixels), self.config.attack.seed
        )

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
            save_tensors(
                {"minimal": torch.where(right, torch.minimum(found.cpu(), high), 0.0)}, path
            )
        self._finished()
        return read_tensors(path)["minimal"]

    def checks(
        self,
        curves: dict[str, dict[float, float]],
        by_attack: dict[str, dict[float, Part]],
        worst: dict[float, Tensor],
        right: Tensor,
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
            {n: {e: p.rounded for e, p in parts.items()} for n, parts in by_attack.items()}, right
        )
        found = [
            of_curves.inside_bounds(max(part.excess for part in parts)),
            *ran,
            of_curves.never_rises(curves),
            of_curves.ordering(curves),
            of_curves.best_kept(sum(p.lost for p in parts), sum(len(p.withstood) for p in parts)),
            of_curves.per_sample_worst(worst, self._shown_withstood(by_attack)),
            of_curves.survives_rounding(
                float(worst[largest].float().mean()), float(rounded[largest].float().mean())
            ),
        ]
        if "pgd" in by_attack:
            found.append(of_curves.flattened(by_attack["pgd"][self.config.middle].history))
        seeing = any(n in ATTACKS and ATTACKS[n].gradients for n in by_attack)
        if "square" in by_attack and seeing:
            found.append(of_curves.square_not_stronger(curves))
        if TRANSFER in by_attack and seeing:
            found.append(of_curves.transfer_not_stronger(curves))
        return found

    def _shown_withstood(
        self, by_attack: dict[str, dict[float, Part]]
    ) -> dict[float, list[Tensor]]:
        """By eps, what the model now says of the clean images and of the adversarial ones that
        every part keeps: whether it is right, `[kept]` bool each."""
        kept = min(len(part.shown) for parts in by_attack.values() for part in parts.values())
        labels, device = self.task.labels[:kept], self.task.pixels.device
        clean = correct(self.model, self.task.pixels[:kept], labels).cpu()
        found: dict[float, list[Tensor]] = {eps: [clean] for eps in self.config.eps}
        for parts in by_attack.values():
            for eps, part in parts.items():
                images = part.shown[:kept].to(device)
                found[eps].append(correct(self.model, images, labels).cpu())
        return found

    def _attack_checks(self) -> list[Check]:
        """Those that run the model."""
        few = self.task.first(self.config.check_images)
        pixels, labels = self.task.pixels, self.task.labels
        attack, classes = self.config.attack, len(self.task.classes)
        return [
            of_model.repeatable(self.model, few.pixels),
            of_model.gives_logits(self.model, pixels),
            of_model.gradients(self.model, pixels, labels, "cross-entropy"),
            of_model.gradients(self.model, pixels, labels, "margin"),
            of_model.huge_eps(self.model, few.pixels, few.labels, attack, self.task.chance),
            of_model.more_work(self.model, few.pixels, few.labels, self.config.middle, attack),
            linear_case.analytic(attack.norm, attack.seed),
            *linear_case.of_attacks(
                single_attacks(self.config.attacks, classes), attack.norm, classes, attack.seed
            ),
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
        by_group = shares(space, moved)
        results, drawn = [], []
        for group in GROUPS:
            own = space.select(group)
            if len(own) == 0:
                continue
            accuracy: dict[str, list[float]] = {kind: [] for kind in of_controls.CONTROL_KINDS}
            drift: dict[str, list[float]] = {kind: [] for kind in of_controls.CONTROL_KINDS}
            for control in controls(space, group, clean, seeds=self.config.control_seeds):
                drawn.append(control)
                kind = control.described.kind
                right = self._restricted(control.edit(space), clean)
                accuracy[kind].append(float(right.float().mean()))
                drift[kind].append(float(control.share(moved, change).nanmean()))
            share = by_group[group][~by_group[group].isnan()]
            results.append(
                GroupResult(
                    group=group,
                    features=len(own),
                    energy_share=float(energies[own].sum() / energies.sum()),
                    accuracy=image_estimate(self._restricted(keep_only(space, own), clean), seed),
                    control_accuracy=accuracy,
                    drift=image_estimate(share, seed),
                    moved=len(share),
                    control_drift=drift,
                )
            )
        self._finished()
        return (
            results,
            drawn,
            {g.group: float(energies[space.select(g.group)].sum()) for g in results},
        )

    def defences(
        self, defences: list[Defence], by_attack: dict[str, dict[float, Part]], right: Tensor
    ) -> list[DefenceResult]:
        """Each defence clean, under images made without it, attacked through it, by Square, and
        image by image under all of these."""
        if not defences:
            return []
        eps, seed = self.config.middle, self.config.attack.seed
        iterated = [n for n in by_attack if n in ATTACKS and ATTACKS[n].iterated]
        seeing = [n for n in iterated if ATTACKS[n].gradients] or ["pgd"]
        undefended = right.clone()
        for name in dict.fromkeys((*seeing, "square")):
            part = by_attack[name][eps] if name in by_attack else self.part(name, eps)
            undefended &= part.withstood
        paths = [self.folder / f"defence-{slug(d.spec)}.safetensors" for d in defences]
        images = []
        if not all(path.is_file() for path in paths):
            images = [
                self._attacked(self.model, name, eps, f"{name} without the defences")
                for name in seeing
            ]
        results = []
        for defence, path in zip(defences, paths, strict=True):
            if not path.is_file():
                save_tensors(self._defended(defence, images, seeing, eps), path)
            masks = {name: mask.bool() for name, mask in read_tensors(path).items()}
            self._finished()
            results.append(
                DefenceResult(
                    defence.spec,
                    **{key: image_estimate(mask, seed) for key, mask in masks.items()},
                    worst=image_estimate(torch.stack(list(masks.values())).all(0), seed),
                    undefended=image_estimate(undefended, seed),
                )
            )
        return results

    def _defended(
        self, defence: Defence, images: list[Attacked], seeing: list[str], eps: float
    ) -> dict[str, Tensor]:
        """Whether each image is classified right, by "clean", "nonadaptive", "adaptive" and
        "square".

        Args:
            images: made against the undefended model.
            seeing: attacks by gradients, run through the defence.
        """
        assert isinstance(self.model, ZeroShot)
        edit = None if self.space is None else defence.edit(self.space)
        as_used, as_attacked = (
            self.model.with_defence(edit, defence.before(straight_through=passes))
            for passes in (False, True)
        )
        clean = self._right(as_used, self.task.pixels)
        nonadaptive, adaptive = clean.clone(), clean.clone()
        for attacked in images:
            nonadaptive &= self._right(as_used, attacked.images)
        for name in seeing:
            attacked = self._attacked(as_attacked, name, eps, f"{name} through {defence.spec}")
            adaptive &= self._right(as_used, attacked.images)
        blind = self._attacked(as_used, "square", eps, f"square on {defence.spec}")
        square = clean & self._right(as_used, blind.images)
        return {"clean": clean, "nonadaptive": nonadaptive, "adaptive": adaptive, "square": square}

    def pictures(
        self, by_attack: dict[str, dict[float, Part]], worst: dict[float, Tensor], right: Tensor
    ) -> dict[str, Any]:
        """Images that were right and could be fooled, clean and adversarial: at the smallest eps
        that fools as many as are shown, or at the one that fools most; with a FeatureSpace, those
        first whose features moved most, and what moved in each."""
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
        part = by_attack[name][eps]
        if self.space is not None and isinstance(self.model, ZeroShot):
            chosen = chosen[self._moved(part.embedding)[chosen].argsort(descending=True)]
        chosen = chosen[: self.config.examples]
        clean, shown = self.task.pixels.cpu()[chosen], part.shown[chosen]
        predicted = batched(self.model, shown.to(self.task.pixels.device)).argmax(1)
        return {
            "attack": name,
            "eps": eps,
            "clean": clean,
            "adversarial": shown,
            "labels": [self.task.classes[i] for i in self.task.labels[chosen].tolist()],
            "predicted": [self.task.classes[i] for i in predicted.tolist()],
            "captions": [self.task.captions[i] for i in chosen.tolist()],
            "credits": [credit_line(self.task.attributes[i]) for i in chosen.tolist()],
            "moved": self._features_moved(clean, shown),
        }

    def _moved(self, attacked: Tensor) -> Tensor:
        """How far the features of each image moved, `[n]`, as embeddings `[n, dim]` of the attacked
        ones say."""
        assert self.space is not None
        before, after = (
            self.space.encode_images(e.to(self.space.device))
            for e in (self.clean_embedding, attacked)
        )
        return (after - before).norm(dim=1).cpu()

    def _features_moved(self, clean: Tensor, attacked: Tensor) -> list[list[MovedFeature]]:
        """Of each picture that is shown; empty without a FeatureSpace."""
        if self.space is None or not isinstance(self.model, ZeroShot):
            return []
        self.tell(1.0, "what moved")
        return moved_features(self.model, self.space, clean, attacked)

    def _part(self, key: str, what: str, attacked_model: nn.Module, name: str, eps: float) -> Part:
        path = self.folder / f"{slug(key)}.safetensors"
        if not path.is_file():
            found = self._attacked(attacked_model, name, eps, f"{what} at {readable_eps(eps)}")
            self._measured(found, eps, attacked_model).save(path)
        self._finished()
        return Part.load(path)

    def _attacked(self, model: nn.Module, name: str, eps: float, what: str) -> Attacked:
        return run_attack(
            model,
            self.task.pixels,
            self.task.labels,
            name,
            eps,
            self.config.attack,
            progress=self._within(what),
        )

    def _measured(self, found: Attacked, eps: float, attacked_model: nn.Module) -> Part:
        images, clean, norm = found.images, self.task.pixels, self.config.attack.norm
        withstood = self._right(self.model, images)
        lost = found.fooled.cpu() & withstood if attacked_model is self.model else torch.zeros(1)
        embedding = torch.zeros(0)
        if isinstance(self.model, ZeroShot):
            embedding = batched(self.model.plain, images)
        return Part(
            withstood=withstood,
            rounded=self._right(self.model, (images * 255).round() / 255),
            excess=of_curves.bounds_excess(clean, images, eps, norm),
            lost=int(lost.sum()),
            history=found.history,
            shown=images[: 4 * self.config.examples],
            embedding=embedding,
        )

    def _right(self, model: nn.Module, images: Tensor) -> Tensor:
        return correct(model, images, self.task.labels).cpu()

    def _restricted(self, edit: nn.Module, embedding: Tensor) -> Tensor:
        """Whether predictions from edited embeddings are right: `[n]` bool."""
        assert isinstance(self.model, ZeroShot)
        with torch.no_grad():
            logits = self.model.logits(edit(embedding))
        return right_class(self.model, logits, self.task.labels).cpu()

    def _within(self, what: str) -> Callable[[float], None]:
        return lambda share: self.tell(min(1.0, (self.done + share) / self.steps), what)

    def _finished(self) -> None:
        self.done += 1
