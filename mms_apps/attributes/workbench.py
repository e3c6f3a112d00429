"""Models of several attributes over one FeatureSpace; what the demo shows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from features.analysis.search import exemplars
from features.errors import UserError
from features.pairs.base import PairSource
from features.pairs.open import open_pairs
from features.space.space import FeatureSpace
from features.store.credits import credits_of
from features.store.extract import extract
from mms_apps.attributes.audit import UNSPECIFIED, Audit, audit, require_groups
from mms_apps.attributes.correction.correcting import Correction, GroupCorrection, correct
from mms_apps.attributes.correction.files import MadeFrom, write_accepted
from mms_apps.attributes.correction.report import Mistake, mistakes_of
from mms_apps.attributes.explain import Explanation, explain, probabilities_without
from mms_apps.attributes.labels import Samples, classes_of, crossed_name, read_samples
from mms_apps.attributes.measures import MIN_GROUP
from mms_apps.attributes.model import AttributeModel, Method, embed, fit_model

if TYPE_CHECKING:
    from PIL import Image

    from features.store.store import ActivationStore

GALLERY = 24


@dataclass(frozen=True)
class Picture:
    """An image to show, its caption, and whose it is ("" where the pairs tell nothing)."""

    image: Image.Image
    caption: str
    credit: str


@dataclass(frozen=True)
class Answer:
    """A prediction with its reasons.

    before, after: probabilities by class, with all features and without those switched off.
    explanation: of the class that is predicted with all features.
    """

    before: dict[str, float]
    after: dict[str, float]
    explanation: Explanation


class Workbench:
    """Predicts, explains and audits attributes of images. Pairs are embedded and models fitted when
    they are first needed.

    Args:
        train: labelled pairs to fit on, or what `open_pairs` takes.
        test: pairs to show and to audit on, likewise.
        attributes: of both.
        groups: attributes by which to audit, each alone and all together.
        work: folder for the embeddings.
        role: attribute by which to list how unspecified samples are predicted.
        image_column, caption_column: of the pairs, which need no captions; None looks for the usual
            names.

    Raises:
        UserError: there are no such pairs; later, where they lack an attribute.
    """

    def __init__(
        self,
        space: FeatureSpace,
        train: str | Path | PairSource,
        test: str | Path | PairSource,
        attributes: Sequence[str],
        groups: Sequence[str],
        work: Path,
        *,
        role: str | None = None,
        image_column: str | None = None,
        caption_column: str | None = None,
        seed: int = 0,
    ) -> None:
        self.space = space
        self.attributes = tuple(attributes)
        self.groups = tuple(groups)
        crossed = [self.groups] if len(self.groups) > 1 else []
        self.groupings = {crossed_name(g): g for g in (*((g,) for g in self.groups), *crossed)}
        self.role = role
        self.seed = seed
        self._train, self._test = (
            pairs
            if isinstance(pairs, PairSource)
            else open_pairs(
                pairs,
                image_column=image_column,
                caption_column=caption_column,
                captions_needed=False,
            )
            for pairs in (train, test)
        )
        self._work = work
        self._models: dict[tuple[str, Method], AttributeModel] = {}
        self._corrections: dict[tuple[str, Method, str], Correction] = {}

    @cached_property
    def pictures(self) -> list[Picture]:
        """Images of pairs to show, spread evenly."""
        rows = np.unique(np.linspace(0, len(self._test_store) - 1, GALLERY).astype(int)).tolist()
        table = self._test_store.sample_rows(rows, ["location", "caption"]).to_pylist()
        images = dict(self._test.images([row["location"] for row in table]))
        return [
            Picture(images[row["location"]], row["caption"] or "", credit)
            for row, credit in zip(table, credits_of(self._test_store, rows), strict=True)
            if row["location"] in images
        ]

    @cached_property
    def _test_store(self) -> ActivationStore:
        return extract(self._test, self.space.encoder, self._work / "test", progress=False)

    @cached_property
    def _test_samples(self) -> Samples:
        return read_samples(self._test_store, self._columns)

    @cached_property
    def _train_samples(self) -> Samples:
        store = extract(self._train, self.space.encoder, self._work / "train", progress=False)
        return read_samples(store, self._columns)

    @property
    def _columns(self) -> list[str]:
        role = [self.role] if self.role else []
        return list(dict.fromkeys([*self.attributes, *self.groups, *role]))

    def classes(self, attribute: str) -> list[str]:
        """The values that are common in the training pairs and occur in the test pairs."""
        shown = set(self._test_samples.columns[attribute])
        common = classes_of(self._train_samples, attribute, least=MIN_GROUP)
        found = [name for name in common if name in shown and name != UNSPECIFIED]
        if len(found) < 2:
            raise UserError(f"{attribute}: fewer than two values occur in both sets of pairs")
        return found

    def model(self, attribute: str, method: Method) -> AttributeModel:
        """The model of an attribute, made at the first call."""
        if (attribute, method) not in self._models:
            self._models[attribute, method] = fit_model(
                self.space,
                self._train_samples,
                attribute,
                self.classes(attribute),
                method,
                seed=self.seed,
            )
        return self._models[attribute, method]

    def answer(
        self, image: Image.Image, attribute: str, method: Method, off: Collection[str]
    ) -> Answer:
        """Predict an attribute of an image, with reasons.

        Args:
            off: modality classes whose features are switched off.
        """
        model = self.model(attribute, method)
        embedding = embed(self.space, [image], "image")
        after = probabilities_without(model, embedding, off)[0]
        before = model.predict_proba(embedding)[0]
        return Answer(
            before=dict(zip(model.classes, before.tolist(), strict=True)),
            after=dict(zip(model.classes, after.tolist(), strict=True)),
            explanation=explain(model, embedding)[0],
        )

    def exemplars(self, explanation: Explanation, features: int, count: int) -> list[dict]:
        """The images that activate each of the first features most, with the feature's name."""
        chosen = explanation.contributions[:features]
        found = exemplars(self.space, [c.feature for c in chosen], count)
        return [row | {"contribution": c} for c in chosen for row in found[c.feature]]

    def audit(self, attribute: str, method: Method, grouping: str) -> Audit:
        """Audit a model on the test pairs; how it leans on the unspecified samples of both.

        Args:
            grouping: one of `groupings`.
        """
        model, groups = self.model(attribute, method), self.groupings[grouping]
        samples = self._audited(attribute, groups)
        return audit(model, samples, groups, role=self.role, seed=self.seed)

    def correct(self, attribute: str, method: Method, group: str) -> Correction:
        """Group the wrong predictions on one half of the test pairs by what made them wrong, and
        check an edit for each group on the other half.

        Args:
            group: one of `groups`, to protect.
        """
        key = (attribute, method, group)
        if key not in self._corrections:
            model = self.model(attribute, method)
            self._corrections[key] = correct(model, self._test_samples, group=group, seed=self.seed)
        return self._corrections[key]

    def write_accepted(self, found: Correction, path: Path) -> list[str | None]:
        """Write the accepted edits as a zip file of what `mms attributes correct` saves; where each
        group's lies within, None where it does not."""
        config = self._test_store.config
        return write_accepted(found, MadeFrom(config.pairs, config.pairs_fingerprint), path)

    def mistakes(self, found: Correction, group: GroupCorrection, count: int) -> list[Mistake]:
        """Wrong predictions of a group that `correct` found, to show."""
        return mistakes_of(found, group, self._test, self._test_store, count)

    def _audited(self, attribute: str, groups: Sequence[str]) -> Samples:
        """The test samples, and those training samples on which no model was fitted since their
        attribute is unspecified."""
        train, test = self._train_samples, self._test_samples
        require_groups(test, groups)
        extra = train.take(train.columns[attribute].astype(str) == UNSPECIFIED)
        return Samples(
            torch.cat([test.embeddings, extra.embeddings]),
            np.array([*(f"test {i}" for i in test.ids), *(f"train {i}" for i in extra.ids)]),
            {
                name: np.concatenate([test.columns[name], extra.columns[name]])
                for name in test.columns
            },
        )
