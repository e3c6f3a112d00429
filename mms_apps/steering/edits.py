"""Edits of features, and what they do to an embedding.

With unit embedding u, activation a_i, decoder row d_i and mu_i the feature's mean activation where
it is active, edits are done one after another, each on the activations that those before it left:

    add     a_i becomes a_i + s mu_i,
    set     a_i goes a share of the way to s mu_i, the whole of it unless another is given,
    remove  a_i goes a share of the way to 0.

No edit takes a feature below absent, 0. A blend of a class takes its features alpha of the way to
the activations of a prompt (Yan et al. 2025, arXiv 2502.14888, their case study). A score set
takes a linear score of the embedding to a value, by a few features (`mms_apps.steering.finding`).
What all of this changes in the activations moves u along the decoder's rows; the dictionary's
error stays as it is, the embedding keeps its length, and the move is scaled down where it would
turn it by more than the drift that is allowed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from features.arrays import tensor_of
from features.dictionary import Modality
from features.encoders.encoder import pictures_of
from features.errors import UserError
from features.files import write_json
from features.modality import CLASSES, RULES, Rule
from features.space.space import FeatureSpace
from mms_apps.steering.adapters.base import Adapter, Call
from mms_apps.steering.adapters.choose import adapter_for
from mms_apps.steering.moves import until, within
from mms_apps.steering.saved import Source, check_record, filled, read_record, steering_record
from mms_apps.steering.values import number, numbers, plain, several

Mode = Literal["add", "set", "remove"]
MODES = ("add", "set", "remove")
MAX_DRIFT = 60.0
"""Degrees, for FeatureSpaces that don't say how far apart their samples lie."""


@dataclass(frozen=True)
class Edit:
    """A change of one feature.

    Args:
        feature: its number.
        strength: in units of its mean activation where it is active; without meaning for remove.
        mode: add, set or remove.
        share: of the way that set and remove go, at least 0; without meaning for add.

    Raises:
        UserError: a value is none, or out of its range.
    """

    feature: int
    strength: float = 1.0
    mode: Mode = "add"
    share: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "feature", _feature(self.feature))
        object.__setattr__(self, "strength", number("strength", self.strength))
        object.__setattr__(self, "share", _share(self.share))
        if self.mode not in MODES:
            raise UserError(f"{self.mode}: unknown mode of an edit; use {', '.join(MODES)}")


@dataclass(frozen=True)
class Blend:
    """A move of all features of one class towards a prompt's.

    Args:
        modality_class: ImgD, TextD or CrossD.
        alpha: 0 leaves the features as they are, 1 takes the prompt's.
        rule: of the classes, "relative" or "fixed".

    Raises:
        UserError: a value is none.
    """

    modality_class: str
    alpha: float = 1.0
    rule: Rule = "relative"

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", number("alpha", self.alpha))
        if self.modality_class not in CLASSES:
            raise UserError(f"{self.modality_class}: unknown class; use {', '.join(CLASSES)}")
        if self.rule not in RULES:
            raise UserError(f"{self.rule}: unknown rule for the classes; use {' or '.join(RULES)}")


@dataclass(frozen=True)
class ScoreSet:
    """A linear score of the embedding that is set to a value.

    Args:
        weight: of the score, `[dim]`.
        value: that the score is taken to.
        features: that carry the change.
        per_unit: by how much each one's activation changes for a score that is 1 too low.
        share: of the way that is gone, at least 0.

    Raises:
        UserError: a value is none, or out of its range.
    """

    weight: tuple[float, ...]
    value: float
    features: tuple[int, ...]
    per_unit: tuple[float, ...]
    share: float = 1.0

    def __post_init__(self) -> None:
        for name in ("weight", "per_unit"):
            object.__setattr__(self, name, numbers(name, getattr(self, name)))
        object.__setattr__(self, "value", number("value", self.value))
        if not isinstance(self.features, Iterable):
            raise UserError(f"features {self.features!r}: give a tuple of their numbers")
        object.__setattr__(self, "features", tuple(map(_feature, self.features)))
        object.__setattr__(self, "share", _share(self.share))


@dataclass(frozen=True)
class Probe:
    """A logistic probe of unit embeddings: each is moved no further than to where it is this sure.

    Args:
        weight: `[dim]`.
        bias: of the log-odds.
        probability: in (0, 1).

    Raises:
        UserError: a value is none, or out of its range.
    """

    weight: tuple[float, ...]
    bias: float
    probability: float = 0.95

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", numbers("weight", self.weight))
        object.__setattr__(self, "bias", number("bias", self.bias))
        object.__setattr__(self, "probability", probability_of(self.probability))


@dataclass(frozen=True)
class Steered:
    """Edited embeddings.

    embedding: of the same length as before, `[n, dim]`.
    drift: the angle to the embedding before, in degrees, `[n]`.
    scale: what the moves were scaled by to keep the drift in its bound, in (0, 1], `[n]`.
    """

    embedding: Tensor
    drift: Tensor
    scale: Tensor


@dataclass(frozen=True)
class Steering:
    """Edits and blends to apply together, over a part of the denoising steps.

    Args:
        edits: of single features; whatever can be gone through becomes a tuple.
        blends: of classes, towards `prompt`; likewise.
        prompt: what blends go towards.
        begin, end: shares of the denoising steps between which the edited embedding conditions, in
            [0, 1].
        max_drift: degrees by which an embedding may be turned; None for the space's own bound
            (`SpaceConfig.angles`): an edited sample stays nearer to itself than all but a twentieth
            of the space's pairs of samples are to one another.
        score_sets: of scores of the embedding; likewise.
        stop: where each embedding's move ends; None moves them all the whole way.

    Raises:
        UserError: a value is none, or out of its range, or blends lack a prompt.
    """

    edits: tuple[Edit, ...] = ()
    blends: tuple[Blend, ...] = ()
    prompt: str | None = None
    begin: float = 0.0
    end: float = 1.0
    max_drift: float | None = None
    score_sets: tuple[ScoreSet, ...] = ()
    stop: Probe | None = None

    def __post_init__(self) -> None:
        for name, kind, written in (
            ("edits", Edit, "Edit(feature, strength)"),
            ("blends", Blend, "Blend(modality_class, alpha)"),
            ("score_sets", ScoreSet, "ScoreSet(weight, value, features, per_unit)"),
        ):
            object.__setattr__(self, name, several(name, getattr(self, name), kind, written))
        if not (self.stop is None or isinstance(self.stop, Probe)):
            raise UserError(f"stop {self.stop!r}: give a Probe, as sure_of finds it, or None")
        if not (self.prompt is None or isinstance(self.prompt, str)):
            raise UserError(f"prompt {self.prompt!r}: give one text, or None")
        if self.blends and not self.prompt:
            raise UserError("a blend needs a prompt to blend towards")
        for name in ("begin", "end", *(["max_drift"] if self.max_drift is not None else [])):
            object.__setattr__(self, name, number(name, getattr(self, name)))
        if not 0 <= self.begin < self.end <= 1:
            raise UserError(
                f"steps {self.begin} to {self.end}: begin must lie before end, both in 0 to 1"
            )
        if self.max_drift is not None and not 0 < self.max_drift <= 180:
            raise UserError(f"max_drift {self.max_drift}: must be in 0 to 180 degrees")

    @property
    def begin_and_end(self) -> tuple[float, float]:
        """The schedule."""
        return self.begin, self.end

    def bound(self, space: FeatureSpace, modality: Modality = "image") -> float:
        """Degrees by which an embedding may be turned."""
        if self.max_drift is not None:
            return self.max_drift
        return space.config.angles.get(modality, MAX_DRIFT)

    def apply(
        self, space: FeatureSpace, embedding: Tensor, modality: Modality = "image"
    ) -> Steered:
        """Edit embeddings.

        Args:
            space: whose features are meant.
            embedding: raw or unit, `[n, dim]`.
            modality: of the embeddings.

        Raises:
            UserError: a feature's number is beyond the space, the dimension is another, an
                embedding is not finite, or the edits are so large that what they do is not.
        """
        embedding = space.embeddings_of(embedding)
        with torch.autocast(space.device.type, enabled=False):
            return self._applied(space, embedding, modality)

    def _applied(self, space: FeatureSpace, embedding: Tensor, modality: Modality) -> Steered:
        """What `apply` gives, in full precision."""
        length = embedding.float().norm(dim=1, keepdim=True)  # [n, 1]
        unit = embedding.float().to(space.device) / length.to(space.device).clamp(min=1e-12)
        move = self.change(space, unit, modality) @ space.dictionary.directions  # [n, dim]
        if not move.isfinite().all():
            raise UserError(
                "the edits are too large to be computed; give smaller strengths, shares or alphas"
            )
        if self.stop is not None:
            weight = torch.tensor(self.stop.weight, device=unit.device)
            move = until(unit, move, weight, self.stop.bias, self.stop.probability)
        turned, scale = within(unit, move, self.bound(space, modality))
        cosine = (turned * unit).sum(1).clamp(-1, 1)
        return Steered(
            (turned * length.to(space.device)).to(embedding),
            cosine.arccos().rad2deg().to(embedding.device),
            scale.to(embedding.device),
        )

    def change(self, space: FeatureSpace, unit: Tensor, modality: Modality) -> Tensor:
        """By how much each feature's activation changes: `[n, features]`.

        Args:
            unit: unit embeddings `[n, dim]`.
        """
        before = space.dictionary.encode(unit, modality)  # [n, features]
        now = before.clone()
        means = space.mean_active(modality).to(now)  # [features]

        def put(features: Tensor | int, wanted: Tensor) -> None:
            now[:, features] = torch.maximum(wanted, before[:, features].clamp(max=0))

        for edit in self.edits:
            _check_features(space, (edit.feature,))
            current = now[:, edit.feature]
            wanted = edit.strength * means[edit.feature]
            if edit.mode == "add":
                put(edit.feature, current + wanted)
            else:
                end = wanted if edit.mode == "set" else torch.zeros_like(wanted)
                put(edit.feature, current + edit.share * (end - current))
        if self.blends:
            towards = space.encode_texts([self.prompt or ""])  # [1, features]
            for blend in self.blends:
                chosen = space.select(blend.modality_class, rule=blend.rule).to(unit.device)
                current = now[:, chosen]
                put(chosen, current + blend.alpha * (towards[:, chosen] - current))
        for score in self.score_sets:
            _check_features(space, score.features)
            missing = score.value - unit @ torch.tensor(score.weight, device=unit.device)  # [n]
            chosen = torch.tensor(score.features, device=unit.device)
            step = torch.tensor(score.per_unit, device=unit.device) * missing[:, None]
            put(chosen, now[:, chosen] + score.share * step)
        return now - before

    def inputs(
        self,
        space: FeatureSpace,
        pipe: Any,
        *,
        image: Image.Image | Sequence[Image.Image] | None = None,
        embedding: Tensor | None = None,
        prompt: str | list[str] = "",
        negative_prompt: str | list[str] | None = None,
        negative_embedding: Tensor | None = None,
        guided: bool = True,
    ) -> dict[str, Any]:
        """The arguments with which a diffusers pipeline generates from edited embeddings:
        `pipe(**steering.inputs(space, pipe, image=photo))`.

        Args:
            space: of the encoder to which the pipeline's embeddings belong.
            pipe: see `mms_apps.steering.adapters`.
            image: whose embedding is edited, whatever `features.pairs.images.rgb` takes; several
                make a picture each.
            embedding: to edit instead, raw, `[n, dim]`; each makes a picture of its own.
            prompt: for the pipeline, one or one for each embedding; where it takes texts alone,
                what is edited.
            negative_prompt: likewise; None leaves the pipeline's own.
            negative_embedding: what the pictures are guided away from, raw, `[1, dim]` or
                `[n, dim]`; None takes what the pipeline takes where nobody gives one.
            guided: whether the call uses classifier-free guidance; an IP-Adapter's pictures are
                the same either way.

        Raises:
            UserError: the pipeline takes no such embedding, or the space is for another encoder.
        """
        adapter = adapter_for(pipe, space)
        plain = _source(adapter, image, embedding, prompt)
        steered = self.apply(space, plain, adapter.modality).embedding
        call = Call(prompt, negative_prompt, negative_embedding, guided)
        return adapter.inputs(steered, plain, call)

    @contextmanager
    def scheduled(
        self,
        space: FeatureSpace,
        pipe: Any,
        *,
        image: Image.Image | Sequence[Image.Image] | None = None,
        embedding: Tensor | None = None,
        prompt: str | list[str] = "",
    ) -> Iterator[None]:
        """Within this context the edits hold in the denoising steps from `begin` to `end` alone,
        shares of the steps that run, for calls with what `inputs` gave for the same arguments;
        afterwards the pipeline is as it was.

        Raises:
            UserError: as `inputs`; at the end, where the pipeline was called with something else.
        """
        adapter = adapter_for(pipe, space)
        plain = _source(adapter, image, embedding, prompt)
        steered = self.apply(space, plain, adapter.modality).embedding
        with adapter.during(steered, plain, Call(prompt), self.begin, self.end):
            yield

    def save(self, path: str | Path, space: FeatureSpace, source: Source | None = None) -> None:
        """Write the steering as JSON, with the fingerprint of the space's dictionary.

        Args:
            source: what it was drawn from, so that the picture can be drawn again.

        Raises:
            UserError: there is no such folder, or a folder has that name.
        """
        if not Path(path).parent.is_dir():
            raise UserError(f"{path}: there is no folder {Path(path).parent}; make it first")
        write_json(Path(path), steering_record(self, space, source))

    @classmethod
    def load(cls, path: str | Path, space: FeatureSpace) -> Steering:
        """Read what `save` wrote.

        Raises:
            UserError: the file cannot be read, or was made for another space.
        """
        return cls.from_record(read_record(Path(path)), space, str(path))

    @classmethod
    def from_record(cls, record: Any, space: FeatureSpace, where: str) -> Steering:
        """A steering from JSON.

        Args:
            where: what an error names as its source.

        Raises:
            UserError: it is none, or was made for another space.
        """
        check_record(record, space, where)
        try:
            stop = record.get("stop")
            parts: dict[str, Any] = {
                "edits": tuple(filled(Edit, edit) for edit in record["edits"]),
                "blends": tuple(filled(Blend, blend) for blend in record["blends"]),
                "score_sets": tuple(filled(ScoreSet, one) for one in record.get("score_sets", ())),
                "stop": stop and filled(Probe, stop),
            }
            rest = {name: record[name] for name in ("prompt", "begin", "end", "max_drift")}
            found = filled(cls, rest | dict.fromkeys(parts, ()) | {"stop": None})
            found = replace(found, **parts)
            found.check(space)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{where}: not saved edits ({error}); save them again") from None
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        return found

    def check(self, space: FeatureSpace) -> None:
        """Raise a UserError where features or vectors are not those of the space."""
        _check_features(space, [edit.feature for edit in self.edits])
        for score in self.score_sets:
            _check_features(space, score.features)
            if len(score.features) != len(score.per_unit):
                raise UserError(
                    f"a score set has {len(score.features)} features and {len(score.per_unit)} "
                    "changes per unit; give one for each"
                )
        vectors = [score.weight for score in self.score_sets]
        vectors += [self.stop.weight] if self.stop else []
        for vector in vectors:
            if len(vector) != space.dictionary.config.dim:
                raise UserError(
                    f"a weight of {len(vector)} numbers; the space takes "
                    f"{space.dictionary.config.dim}"
                )


def probability_of(value: float) -> float:
    """The probability of a probe.

    Raises:
        UserError: it is none in (0, 1).
    """
    found = number("probability", value)
    if not 0 < found < 1:
        raise UserError(f"probability {value}: must lie between 0 and 1, such as 0.95")
    return found


def _share(value: float) -> float:
    found = number("share", value)
    if found < 0:
        raise UserError(f"share {value}: must be at least 0")
    return found


def _feature(value: int) -> int:
    found = plain(value)
    if not isinstance(found, Integral) or isinstance(found, bool):
        raise UserError(
            f"feature {value!r}: give its number; choose(space, words) finds those of words"
        )
    return int(found)


def _check_features(space: FeatureSpace, features: Sequence[int]) -> None:
    for feature in features:
        if not 0 <= feature < len(space):
            raise UserError(f"feature {feature}: the space has features 0 to {len(space) - 1}")


def _source(
    adapter: Adapter,
    image: Image.Image | Sequence[Image.Image] | None,
    embedding: Tensor | None,
    prompt: str | list[str],
) -> Tensor:
    """The embeddings to edit, `[n, dim]`."""
    if embedding is not None:
        given = tensor_of(embedding, "embeddings")
        return given if given is embedding else given.float()
    if image is not None:
        embeddings = [adapter.embed_image(one) for one in pictures_of(image)]
        if not embeddings:
            raise UserError("no image to edit; give at least one")
        return torch.cat(embeddings)
    return adapter.embed_prompt(prompt)
