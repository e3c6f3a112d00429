"""The attacks of torchattacks (Kim 2020, arXiv 2010.01950), with its traps put right.

- AutoAttack and its parts run 100 steps, as the reference does, not 10; with few classes it takes
  the parts that work for so many.
- PGD returns its last iterate; here the best one of each image is kept.
- CW fixes the constant c; here several are tried, and the nearest success is kept.
- Nothing global changes: the random state, the model's mode, what its parameters require.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from features.errors import UserError
from mms_apps.robustness.ascent import STEP
from mms_apps.robustness.distances import Norm, distances, read_norm, within
from mms_apps.robustness.losses import cross_entropy, margin
from mms_apps.robustness.models import (
    BATCH,
    Progress,
    batched,
    correct,
    require_float32,
    undisturbed,
)

BATCH_STEP = 16
CW_CONSTANTS = (1.0, 10.0, 100.0)
MAX_TARGETS = 10
"""Classes that targeted attacks go for, the likeliest first, as in AutoAttack."""


@dataclass(frozen=True)
class AttackConfig:
    """How long attacks run."""

    norm: Norm = "Linf"
    pgd_steps: int = 40
    steps: int = 100
    """Of APGD, FAB and CW."""
    queries: int = 500
    """Of Square; the reference's AutoAttack takes 5,000."""
    restarts: int = 1
    batch_size: int = BATCH
    seed: int = 0

    def __post_init__(self) -> None:
        read_norm(self.norm)
        for name in ("queries", "restarts", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)}: must be at least 1")
        for name in ("pgd_steps", "steps"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} {getattr(self, name)}: must not be negative")


class Attacked(NamedTuple):
    """What an attack found."""

    images: Tensor
    """`[n, 3, height, width]`; the clean image where the prediction was wrong from the start."""
    history: list[float]
    """Mean cross-entropy at each pass over the first batch; empty for attacks without gradients."""
    fooled: Tensor
    """Whether any image that the attack tried fooled the model: `[n]` bool."""


class _Attempts(nn.Module):
    """Stands between an attack and a model, and keeps the best of what the attack tries.

    Attributes:
        best: within eps, of each image's highest margin.
        fooled: whether an image within eps fooled the model.
        history: mean cross-entropy of each pass with gradients over at least one image.
    """

    def __init__(
        self,
        model: nn.Module,
        clean: Tensor,
        labels: Tensor,
        eps: float,
        norm: Norm,
        passed: Callable[[int], None],
    ) -> None:
        """
        Args:
            passed: called after each pass with their number.
        """
        super().__init__()
        self.model = model
        self.passed = passed
        self.passes = 0
        self.clean, self.labels, self.eps, self.norm = clean, labels, eps, norm
        self.best = clean.clone()
        self.margin = torch.full((len(clean),), -torch.inf, device=clean.device)
        self.history: list[float] = []
        self.eval()  # torchattacks puts the model back into the mode of what it attacks

    @property
    def fooled(self) -> Tensor:
        return self.margin > 0

    def forward(self, images: Tensor) -> Tensor:
        logits = self._logits(images)
        self.passes += 1
        self.passed(self.passes)
        if len(images) == len(self.clean):  # all of them, in their order
            self.note(images.detach(), logits.detach())
            if torch.is_grad_enabled():
                self.history.append(float(cross_entropy(logits.detach(), self.labels).mean()))
        return logits

    def _logits(self, images: Tensor) -> Tensor:
        """Logits `[n, classes]`, of a few batch sizes only: oneDNN keeps a kernel and its memory
        for every size, and Square's and FAB's batches shrink image by image."""
        missing = -len(images) % BATCH_STEP if len(images) != len(self.clean) else 0
        if not missing:
            return self.model(images)
        filled = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)])
        return self.model(filled)[: len(images)]

    def note(self, images: Tensor, logits: Tensor) -> None:
        """Keep images that are better than the best so far, and within eps and [0, 1]."""
        values = margin(logits, self.labels)
        better = (values > self.margin).nonzero().squeeze(1)
        candidates = images[better]
        valid = within(self.clean[better], candidates, self.eps, self.norm)
        flat = candidates.flatten(1)
        valid &= (flat >= 0).all(1) & (flat <= 1).all(1)
        better = better[valid]
        self.best[better], self.margin[better] = images[better], values[better]


Run = Callable[[nn.Module, Tensor, Tensor, float, AttackConfig], Tensor]


@dataclass(frozen=True)
class AttackKind:
    """One attack: how it runs and what it needs."""

    run: Run
    passes: Callable[[AttackConfig], int]
    """About how many passes over the images it takes, for the progress."""
    norms: tuple[Norm, ...] = ("Linf", "L2")
    min_classes: int = 2
    gradients: bool = True
    iterated: bool = True
    keeps_last: bool = False
    """Whether it returns its last iterate, so that the best must be kept for it."""
    nearest: bool = False
    """Whether it looks for the nearest adversarial whatever eps is."""


def _noise(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, config: AttackConfig
) -> Tensor:
    """A random corner of the L-inf ball, or a random point on the L2 sphere."""
    noise = torch.randn_like(images)
    if config.norm == "Linf":
        return (images + eps * noise.sign()).clamp(0, 1)
    return (images + eps * noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(0, 1)


def _fgsm(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, config: AttackConfig
) -> Tensor:
    import torchattacks

    if config.norm == "Linf":
        return torchattacks.FGSM(model, eps=eps)(images, labels)
    one = torchattacks.PGDL2(model, eps=eps, alpha=eps, steps=1, random_start=False)
    return one(images, labels)


def _pgd(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, config: AttackConfig
) -> Tensor:
    import torchattacks

    kind = torchattacks.PGD if config.norm == "Linf" else torchattacks.PGDL2
    alpha = STEP * eps / max(config.pgd_steps, 1)
    last = images
    for restart in range(config.restarts):
        attack = kind(model, eps=eps, alpha=alpha, steps=config.pgd_steps, random_start=restart > 0)
        last = attack(images, labels)
    return last


def _apgd(loss: str) -> Run:
    def run(
        model: nn.Module, images: Tensor, labels: Tensor, eps: float, config: AttackConfig
    ) -> Tensor:
        import torchattacks

        return torchattacks.APGD(
            model,
            **_adaptive_settings(eps, config),
            loss=loss,
        )(images, labels)

    return run


def _adaptive_settings(eps: float, config: AttackConfig) -> dict[str, Any]:
    """What APGD, its targeted form and FAB all take."""
    return {
        "norm": config.norm,
        "eps": eps,
        "steps": config.steps,
        "n_restarts": config.restarts,
        "seed": config.seed,
    }


def _apgd_t(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, config: AttackConfig
) -> Tensor:
    import torchattacks

    return torchattacks.APGDT(
        model,
        **_adaptive_settings(eps, config),
        n_classes=_targets(model, images),
    )(images, labels)


def _fab(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, config: AttackConfig
) -> Tensor:
    import torchattacks

    return torchattacks.FAB(
        model,
        **_adaptive_settings(eps, config),
        multi_targeted=True,
        n_classes=_targets(model, images),
    )(images, labels)


def _square(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, config: AttackConfig
) -> Tensor:
    import torchattacks

    return torchattacks.Square(
        model,
        norm=config.norm,
        eps=eps,
        n_queries=config.queries,
        n_restarts=config.restarts,
        seed=config.seed,
    )(images, labels)


def _cw(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, config: AttackConfig
) -> Tensor:
    import torchattacks

    nearest = images.clone()
    shortest = torch.full((len(images),), torch.inf, device=images.device)
    for constant in CW_CONSTANTS:
        found = torchattacks.CW(model, c=constant, steps=config.steps)(images, labels)
        length = distances(images, found, config.norm)
        better = ~correct(model, found, labels) & (length < shortest)
        nearest[better], shortest[better] = found[better], length[better]
    return nearest


def _adaptive(config: AttackConfig) -> int:
    return config.steps * config.restarts


ATTACKS: dict[str, AttackKind] = {
    "noise": AttackKind(_noise, lambda c: 1, gradients=False, iterated=False),
    "fgsm": AttackKind(_fgsm, lambda c: 1, iterated=False),
    "pgd": AttackKind(_pgd, lambda c: c.pgd_steps * c.restarts, keeps_last=True),
    "apgd": AttackKind(_apgd("ce"), _adaptive),
    "apgd-dlr": AttackKind(_apgd("dlr"), _adaptive, min_classes=3),
    "apgd-t": AttackKind(_apgd_t, _adaptive, min_classes=4),
    "fab": AttackKind(_fab, lambda c: 2 * c.steps * c.restarts, nearest=True),
    "cw": AttackKind(_cw, lambda c: len(CW_CONSTANTS) * c.steps, norms=("L2",), nearest=True),
    "square": AttackKind(_square, lambda c: c.queries * c.restarts, gradients=False),
}
"""Every single attack by its name."""
AUTOATTACK = "autoattack"
AUTOATTACK_QUERIES = 5000


def offered(classes: int, norm: Norm) -> list[str]:
    """The attacks that work for so many classes and a norm."""
    single = [n for n, a in ATTACKS.items() if classes >= a.min_classes and norm in a.norms]
    return [*single, AUTOATTACK]


def parts(name: str, classes: int) -> list[str]:
    """The single attacks of which an attack consists. AutoAttack: APGD, targeted APGD (DLR with
    three classes, none with two), FAB and Square (Croce and Hein 2020, arXiv 2003.01690)."""
    if name != AUTOATTACK:
        return [name]
    second = ["apgd-t"] if classes >= 4 else ["apgd-dlr"] if classes == 3 else []
    return ["apgd", *second, "fab", "square"]


def require_offered(names: list[str], classes: int, norm: Norm) -> None:
    """Raise UserError for an attack that is unknown or cannot be run."""
    possible = offered(classes, norm)
    for name in names:
        if name not in ATTACKS and name != AUTOATTACK:
            known = ", ".join([*ATTACKS, AUTOATTACK])
            raise UserError(f"{name}: unknown attack; use {known}")
        if name not in possible:
            raise UserError(
                f"{name}: cannot be run on {classes} classes with norm {norm}; use "
                f"{', '.join(possible)}"
            )


def run_attack(
    model: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    name: str,
    eps: float,
    config: AttackConfig,
    *,
    progress: Progress | None = None,
) -> Attacked:
    """Attack every image that is classified right.

    Args:
        model: pixels in [0, 1] -> logits `[n, classes]`.
        pixels: float32, `[n, 3, height, width]`.
        labels: `[n]` int64.
        name: of ATTACKS, or autoattack.
        eps: the radius, in pixel values of [0, 1].

    Raises:
        UserError: the attack cannot be run on so many classes, eps is not positive, or something
            is not float32.
    """
    if not 0 < eps < float("inf"):
        raise UserError(f"eps {eps}: must be a positive number")
    require_float32(model, pixels)
    found = pixels.detach().clone()
    fooled = torch.zeros(len(pixels), dtype=torch.bool, device=pixels.device)
    history: list[float] = []
    with undisturbed(model, config.seed):
        classes = batched(model, pixels[:1]).shape[1]
        require_offered([name], classes, config.norm)
        starts = range(0, len(pixels), config.batch_size)
        steps = [(start, part) for start in starts for part in parts(name, classes)]
        for number, (start, part) in enumerate(steps):
            rows = slice(start, start + config.batch_size)
            right = correct(model, found[rows], labels[rows])
            todo = start + right.nonzero().squeeze(1)  # [still right]
            if len(todo):
                own = config
                if name == AUTOATTACK:
                    queries = max(config.queries, AUTOATTACK_QUERIES)
                    own = dataclasses.replace(config, queries=queries)
                expected = ATTACKS[part].passes(own)

                def passed(passes: int, number: int = number, expected: int = expected) -> None:
                    if progress is not None:
                        progress((number + min(1.0, passes / max(expected, 1))) / len(steps))

                one = _run_one(model, pixels[todo], labels[todo], part, eps, own, passed)
                found[todo], fooled[todo] = one.images, one.fooled
                if start == 0:
                    history += one.history
            if progress is not None:
                progress((number + 1) / len(steps))
    return Attacked(found, history, fooled)


def _run_one(
    model: nn.Module,
    clean: Tensor,
    labels: Tensor,
    part: str,
    eps: float,
    config: AttackConfig,
    passed: Callable[[int], None],
) -> Attacked:
    """One single attack on one batch."""
    kind = ATTACKS[part]
    attempts = _Attempts(model, clean, labels, eps, config.norm, passed)
    with contextlib.redirect_stdout(io.StringIO()):  # torchattacks prints
        images = kind.run(attempts, clean, labels, eps, config).detach()
    with torch.no_grad():
        logits = model(images)
    attempts.note(images, logits)
    if kind.keeps_last:
        images = attempts.best
    elif kind.nearest:
        near = within(clean, images, eps, config.norm)
        images = torch.where(near.view(-1, 1, 1, 1), images, clean)
    history = attempts.history if kind.gradients else []
    return Attacked(images, history, attempts.fooled)


def _targets(model: nn.Module, images: Tensor) -> int:
    """Classes that a targeted attack goes for, the right one counted."""
    return min(batched(model, images[:1]).shape[1], MAX_TARGETS)
