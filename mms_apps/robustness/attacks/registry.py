"""Every attack by its name, and which can be run."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from features.errors import UserError
from mms_apps.robustness.attacks.adaptive import adaptive_passes
from mms_apps.robustness.attacks.apgd import apgd, apgd_targeted
from mms_apps.robustness.attacks.base import AttackKind
from mms_apps.robustness.attacks.cw import ROUNDS, cw
from mms_apps.robustness.attacks.fab import fab
from mms_apps.robustness.attacks.fgsm import fgsm
from mms_apps.robustness.attacks.noise import noise
from mms_apps.robustness.attacks.pgd import pgd
from mms_apps.robustness.attacks.square import square
from mms_apps.robustness.distances import Norm, read_norm

ATTACKS: dict[str, AttackKind] = {
    "noise": AttackKind(noise, lambda c: 1, gradients=False, iterated=False),
    "fgsm": AttackKind(fgsm, lambda c: 1, iterated=False),
    "pgd": AttackKind(pgd, lambda c: c.pgd_steps * c.restarts, keeps_last=True),
    "apgd": AttackKind(apgd("ce"), adaptive_passes),
    "apgd-dlr": AttackKind(apgd("dlr"), adaptive_passes, min_classes=3),
    "apgd-t": AttackKind(apgd_targeted, adaptive_passes, min_classes=4),
    "fab": AttackKind(fab, lambda c: 2 * c.steps * c.restarts, nearest=True),
    "cw": AttackKind(cw, lambda c: ROUNDS * c.steps, norms=("L2",), nearest=True),
    "square": AttackKind(square, lambda c: c.queries * c.restarts, gradients=False),
}
"""Every single attack by its name."""
SQUARE_SIDE = 5
"""Of the smallest images that Square takes in L2."""
AUTOATTACK = "autoattack"
AUTOATTACK_QUERIES = 5000


def offered(classes: int, norm: Norm) -> list[str]:
    """The attacks that work for so many classes and a norm."""
    norm = read_norm(norm)
    single = [n for n, a in ATTACKS.items() if classes >= a.min_classes and norm in a.norms]
    return [*single, AUTOATTACK]


def single_attacks(names: Sequence[str], classes: int) -> list[str]:
    """The single attacks of which several consist, each once."""
    return list(dict.fromkeys(part for name in names for part in parts(name, classes)))


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
        if not isinstance(name, str):
            raise UserError(f"attack {name!r}: give a name, such as pgd")
        if name not in ATTACKS and name != AUTOATTACK:
            known = ", ".join([*ATTACKS, AUTOATTACK])
            raise UserError(f"{name}: unknown attack; use {known}")
        if name not in possible:
            raise UserError(
                f"{name}: cannot be run on {classes} classes with norm {norm}; use "
                f"{', '.join(possible)}"
            )


def require_size(names: Sequence[str], norm: Norm, pixels: Tensor) -> None:
    """Raise UserError where single attacks by name don't take the size of images
    `[n, channels, height, width]`: Square's windows in L2 are made for square ones."""
    height, width = pixels.shape[2:]
    if "square" in names and norm == "L2" and not height == width >= SQUARE_SIDE:
        raise UserError(
            f"square: in L2 it takes square images of {SQUARE_SIDE} pixels a side or more, these "
            f"have {height} x {width}; leave it out, and autoattack and defences, which run it"
        )
