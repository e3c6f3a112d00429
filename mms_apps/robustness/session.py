"""One picture attacked at a time, as a page needs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from features.embedded.world import EmbeddedPairs
from features.errors import UserError
from features.pairs.drawn import DrawnPairs
from features.space.space import FeatureSpace
from mms_apps.robustness.attacks.base import AttackConfig, Attacked
from mms_apps.robustness.attacks.registry import offered, parts, require_offered
from mms_apps.robustness.attacks.run import run_attack
from mms_apps.robustness.checks import linear_case, of_curves, of_model
from mms_apps.robustness.checks.base import Check, all_passed
from mms_apps.robustness.distances import Norm, read_eps
from mms_apps.robustness.groups import GROUPS, controls, most_moved, shares
from mms_apps.robustness.models import Progress, ZeroShot, pixels_of
from mms_apps.robustness.moved import moved_features, moved_html
from mms_apps.robustness.pictures import change_drawn, picture
from mms_apps.robustness.tasks import TEMPLATES

SIDE = 256
LARGEST = 512
"""Pixels of the longer side of a picture to choose from."""
GALLERY = 24
FEATURES = 10


@dataclass(frozen=True)
class PictureAttacked:
    """One picture before and after an attack."""

    clean: Image.Image
    adversarial: Image.Image
    change: Image.Image
    """What changed, magnified (`pictures.change_drawn`)."""
    largest: float
    """Change of a pixel's channel."""
    before: dict[str, float]
    """Probability by label."""
    after: dict[str, float]
    rounded: str
    """The label after the picture is saved with 8 bits."""
    moved: list[dict[str, object]]
    """Features that moved most (`groups.most_moved`)."""
    moved_html: str
    """What the first of them rest on, before and after."""
    drift: dict[str, float]
    """Share of the change by class; NaN where nothing moved."""
    control: dict[str, tuple[float, float]]
    """Range of the same share over random features of the same activation energy."""
    checks: list[Check]

    @property
    def fooled(self) -> bool:
        """Whether the prediction changed."""
        return max(self.before, key=self.before.__getitem__) != max(
            self.after, key=self.after.__getitem__
        )

    @property
    def reliable(self) -> bool:
        """Whether all checks passed."""
        return all_passed(self.checks)


class Session:
    """A FeatureSpace with pictures to attack.

    Args:
        pictures: to choose from, with words for each; by their features' energy the controls go.
    """

    def __init__(self, space: FeatureSpace, pictures: Sequence[tuple[Image.Image, str]]) -> None:
        self.space = space
        self.pictures = list(pictures)

    @classmethod
    def load(
        cls, space: FeatureSpace | str | Path = "embedded", *, device: str = "auto", seed: int = 0
    ) -> Session:
        """A FeatureSpace with held-out pictures of the embedded world.

        Args:
            space: the FeatureSpace, or where it is.

        Raises:
            UserError: the FeatureSpace cannot be loaded.
        """
        if isinstance(space, str | Path):
            space = FeatureSpace.load(space, device=device)
        source = EmbeddedPairs("heldout")
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(source.total(), generator=generator)[:GALLERY].tolist()
        pairs = [source.pair(number) for number in chosen]
        pictures = [
            (pair.image, source.rows[n]["text"]) for pair, n in zip(pairs, chosen, strict=True)
        ]
        return cls(space, pictures)

    @classmethod
    def of_pairs(cls, space: FeatureSpace, pairs: DrawnPairs) -> Session:
        """A FeatureSpace with the first of the pairs whose pictures can be read.

        Raises:
            UserError: none of them can.
        """
        some = {one.location: one for one in pairs.described[: 2 * GALLERY]}
        pictures = [
            (_shown(image), some[location].captions[0] if some[location].captions else "")
            for location, image in islice(pairs.images(some), GALLERY)
        ]
        if not pictures:
            raise UserError(f"{pairs.name}: no picture could be read; check the pairs")
        return cls(space, pictures)

    def attacks(self, labels: str, norm: Norm) -> list[str]:
        """The attacks that work for so many labels."""
        return offered(len(read_labels(labels)), norm)

    def attack(
        self,
        image: Image.Image,
        labels: str,
        attack: str,
        eps: float | str,
        norm: Norm = "Linf",
        *,
        config: AttackConfig | None = None,
        progress: Progress | None = None,
    ) -> PictureAttacked:
        """Attack what the model takes a picture for.

        Args:
            labels: to tell apart, by commas.
            attack: of `attacks`.
            eps: in pixel values of [0, 1]; also as text, such as 4/255.

        Raises:
            UserError: there are fewer than two labels, the attack cannot be run on so many, or eps
                is none.
        """
        names = read_labels(labels)
        require_offered([attack], len(names), norm)
        config = config or AttackConfig(norm=norm)
        eps = read_eps(eps, config.norm)
        encoder = self.space.encoder
        prompts = [encoder.encode_texts([t.format(name) for t in TEMPLATES]) for name in names]
        vectors = torch.stack([texts.mean(0) for texts in prompts])
        model = ZeroShot(encoder, torch.nn.functional.normalize(vectors, dim=1))
        pixels = pixels_of(encoder, [image])
        with torch.no_grad():
            before = model(pixels)
        found = run_attack(model, pixels, before.argmax(1), attack, eps, config, progress=progress)
        with torch.no_grad():
            after = model(found.images)
            rounded = model((found.images * 255).round() / 255)
            clean, attacked = model.plain(pixels), model.plain(found.images)
        change, largest = change_drawn(pixels, found.images)
        active_before, active_after = map(self.space.encode_images, (clean, attacked))
        moved = active_after - active_before
        drift = shares(self.space, moved)
        return PictureAttacked(
            clean=picture(pixels[0], SIDE),
            adversarial=picture(found.images[0], SIDE),
            change=picture(change[0], SIDE),
            largest=largest,
            before=_probabilities(names, before),
            after=_probabilities(names, after),
            rounded=names[int(rounded.argmax())],
            moved=most_moved(self.space, active_before, active_after, FEATURES),
            moved_html=moved_html(
                moved_features(model, self.space, pixels, found.images)[0],
                pixels[0],
                found.images[0],
            ),
            drift={group: float(share) for group, share in drift.items()},
            control=self._control(moved),
            checks=[
                *self._checks(model, pixels, found, eps, config),
                *_of_attack(attack, config.norm, len(names)),
            ],
        )

    @cached_property
    def _controls(self) -> dict[str, list[Tensor]]:
        """By class, random features of the same energy on the pictures."""
        encoder = self.space.encoder
        embeddings = encoder.encode_images([image for image, _ in self.pictures]).clone()
        return {
            group: [
                control.features
                for control in controls(self.space, group, embeddings)
                if control.described.kind == "energy" and control.features is not None
            ]
            for group in GROUPS
            if len(self.space.select(group))
        }

    def _control(self, moved: Tensor) -> dict[str, tuple[float, float]]:
        """By class, the range of the shares of `_controls`; `moved` is `[1, features]`."""
        whole = float(moved.square().sum())
        found = {}
        for group, drawn in self._controls.items():
            values = [float(moved[:, f].square().sum()) / whole for f in drawn if whole > 0]
            found[group] = (min(values), max(values)) if values else (float("nan"),) * 2
        return found

    def _checks(
        self, model: ZeroShot, pixels: Tensor, found: Attacked, eps: float, config: AttackConfig
    ) -> list[Check]:
        """Those that one picture allows."""
        with torch.no_grad():
            labels = model(pixels).argmax(1)
            changed = bool(model(found.images).argmax(1) != labels)
        return [
            of_curves.inside_bounds(
                of_curves.bounds_excess(pixels, found.images, eps, config.norm)
            ),
            of_model.repeatable(model, torch.cat([pixels, found.images])),
            of_model.gives_logits(model, pixels),
            of_model.gradients(model, pixels, labels, "cross-entropy"),
            of_model.gradients(model, pixels, labels, "margin"),
            of_curves.best_kept(int(bool(found.fooled) and not changed), 1),
        ]


def _shown(image: Image.Image) -> Image.Image:
    """A picture no larger than an encoder looks at: whole photographs would fill the memory."""
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return image


@cache
def _of_attack(attack: str, norm: Norm, classes: int) -> list[Check]:
    """The checks that hang on no picture, once."""
    names = parts(attack, classes)
    return [linear_case.analytic(norm), *linear_case.of_attacks(names, norm, classes, seed=0)]


def read_labels(text: str) -> list[str]:
    """Labels as a user writes them, by commas.

    Raises:
        UserError: there are fewer than two.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if len(names) < 2:
        raise UserError(f"labels {text!r}: give at least two, by commas, such as man, woman")
    return names


def _probabilities(names: list[str], logits: Tensor) -> dict[str, float]:
    return dict(zip(names, logits.softmax(1)[0].tolist(), strict=True))
