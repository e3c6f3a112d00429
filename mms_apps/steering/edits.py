"""Edits of features, and what they do to an embedding.

With unit embedding u, activation a_i, decoder row d_i and mu_i the feature's mean activation where
it is active, an edit of strength s

    add     moves u by s mu_i d_i,
    set     moves it by (s mu_i - a_i) d_i,
    remove  moves it by -a_i d_i.

A blend of a class moves u by alpha sum_i (b_i - a_i) d_i over the features of the class, b_i being
the activations of a prompt (Yan et al. 2025, arXiv 2502.14888, their case study). The dictionary's
error stays as it is, the embedding keeps its length, and all moves together are scaled down where
they would turn it by more than the drift that is allowed.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from features.dictionary import Modality
from features.errors import UserError
from features.files import write_json
from features.modality import CLASSES, Rule
from features.space.space import FeatureSpace
from mms_apps.steering.adapters.base import Adapter, Call
from mms_apps.steering.adapters.choose import adapter_for

SCHEMA = 1
MAX_DRIFT = 60.0
"""Degrees."""
HALVINGS = 20
Mode = Literal["add", "set", "remove"]
MODES = ("add", "set", "remove")


@dataclass(frozen=True)
class Edit:
    """A change of one feature.

    Args:
        feature: its number.
        strength: in units of its mean activation where it is active; without meaning for remove.
        mode: add, set or remove.
    """

    feature: int
    strength: float = 1.0
    mode: Mode = "add"


@dataclass(frozen=True)
class Blend:
    """A move of all features of one class towards a prompt's.

    Args:
        modality_class: ImgD, TextD or CrossD.
        alpha: 0 leaves the features as they are, 1 takes the prompt's.
        rule: of the classes, "relative" or "fixed".
    """

    modality_class: str
    alpha: float = 1.0
    rule: Rule = "relative"


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
        edits: of single features.
        blends: of classes, towards `prompt`.
        prompt: what blends go towards.
        begin, end: shares of the denoising steps between which the edited embedding conditions, in
            [0, 1].
        max_drift: degrees by which an embedding may be turned.

    Raises:
        UserError: a value is out of its range, or blends lack a prompt.
    """

    edits: tuple[Edit, ...] = ()
    blends: tuple[Blend, ...] = ()
    prompt: str | None = None
    begin: float = 0.0
    end: float = 1.0
    max_drift: float = MAX_DRIFT

    def __post_init__(self) -> None:
        for edit in self.edits:
            if edit.mode not in MODES:
                raise UserError(f"{edit.mode}: unknown mode of an edit; use {', '.join(MODES)}")
            if not math.isfinite(edit.strength):
                raise UserError(f"strength {edit.strength}: must be a finite number")
        for blend in self.blends:
            if blend.modality_class not in CLASSES:
                raise UserError(f"{blend.modality_class}: unknown class; use {', '.join(CLASSES)}")
        if self.blends and not self.prompt:
            raise UserError("a blend needs a prompt to blend towards")
        if not 0 <= self.begin < self.end <= 1:
            raise UserError(
                f"steps {self.begin} to {self.end}: begin must lie before end, both in 0 to 1"
            )
        if not 0 < self.max_drift <= 180:
            raise UserError(f"max_drift {self.max_drift}: must be in 0 to 180 degrees")

    @property
    def begin_and_end(self) -> tuple[float, float]:
        """The schedule."""
        return self.begin, self.end

    def apply(
        self, space: FeatureSpace, embedding: Tensor, modality: Modality = "image"
    ) -> Steered:
        """Edit embeddings.

        Args:
            space: whose features are meant.
            embedding: raw or unit, `[n, dim]`.
            modality: of the embeddings.

        Raises:
            UserError: a feature's number is beyond the space, or the dimension is another.
        """
        if embedding.ndim != 2 or embedding.shape[1] != space.dictionary.config.dim:
            raise UserError(
                f"embeddings of shape {tuple(embedding.shape)}: the space takes "
                f"[n, {space.dictionary.config.dim}]"
            )
        length = embedding.float().norm(dim=1, keepdim=True)  # [n, 1]
        unit = embedding.float().to(space.device) / length.to(space.device).clamp(min=1e-12)
        move = self.change(space, unit, modality) @ space.dictionary.directions  # [n, dim]
        turned, scale = _within(unit, move, self.max_drift)
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
        activations = space.dictionary.encode(unit, modality)  # [n, features]
        change = torch.zeros_like(activations)
        means = mean_active(space, modality).to(activations)  # [features]
        for edit in self.edits:
            if not 0 <= edit.feature < len(space):
                raise UserError(
                    f"feature {edit.feature}: the space has features 0 to {len(space) - 1}"
                )
            now = activations[:, edit.feature]
            if edit.mode == "remove":
                change[:, edit.feature] -= now
            else:
                wanted = edit.strength * means[edit.feature]
                change[:, edit.feature] += wanted if edit.mode == "add" else wanted - now
        if self.blends:
            towards = space.encode_texts([self.prompt or ""])  # [1, features]
            for blend in self.blends:
                chosen = space.select(blend.modality_class, rule=blend.rule).to(unit.device)
                step = towards[:, chosen] - activations[:, chosen]
                change[:, chosen] += blend.alpha * step
        return change

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
            image: whose embedding is edited; several make a picture each.
            embedding: to edit instead, raw, `[n, dim]`; each makes a picture of its own.
            prompt: for the pipeline, one or one for each embedding; where it takes texts alone,
                what is edited.
            negative_prompt: likewise; None leaves the pipeline's own.
            negative_embedding: what the pictures are guided away from, raw, `[1, dim]` or
                `[n, dim]`; None takes what the pipeline takes where nobody gives one.
            guided: whether the call uses classifier-free guidance.

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

    def save(self, path: str | Path, space: FeatureSpace) -> None:
        """Write the steering as JSON, with the fingerprint of the space's dictionary."""
        record = {
            "schema": SCHEMA,
            "space": space.config.dictionary_fingerprint,
            "encoder": space.config.encoder,
            **dataclasses.asdict(self),
        }
        write_json(Path(path), record)

    @classmethod
    def load(cls, path: str | Path, space: FeatureSpace) -> Steering:
        """Read what `save` wrote.

        Raises:
            UserError: the file cannot be read, or was made for another space.
        """
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read as saved edits ({error})") from None
        return cls.from_record(record, space, str(path))

    @classmethod
    def from_record(cls, record: Any, space: FeatureSpace, where: str) -> Steering:
        """A steering from JSON.

        Args:
            where: what an error names as its source.

        Raises:
            UserError: it is none, or was made for another space.
        """
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            raise UserError(f"{where}: no saved edits of schema {SCHEMA}; save them again")
        if record.get("space") != space.config.dictionary_fingerprint:
            raise UserError(
                f"{where}: made for another FeatureSpace (of {record.get('encoder')}); its feature "
                "numbers mean something else here"
            )
        try:
            return cls(
                edits=tuple(Edit(**edit) for edit in record["edits"]),
                blends=tuple(Blend(**blend) for blend in record["blends"]),
                prompt=record["prompt"],
                begin=record["begin"],
                end=record["end"],
                max_drift=record["max_drift"],
            )
        except (KeyError, TypeError) as error:
            raise UserError(f"{where}: not saved edits ({error}); save them again") from None


def _source(
    adapter: Adapter,
    image: Image.Image | Sequence[Image.Image] | None,
    embedding: Tensor | None,
    prompt: str | list[str],
) -> Tensor:
    """The embeddings to edit, `[n, dim]`."""
    if embedding is not None:
        return embedding
    if image is not None:
        images = [image] if isinstance(image, Image.Image) else image
        return torch.cat([adapter.embed_image(one) for one in images])
    return adapter.embed_prompt(prompt)


def mean_active(space: FeatureSpace, modality: Modality) -> Tensor:
    """Each feature's mean activation where it is active, in the modality, or where it never is, in
    the other: `[features]`; 0 for a feature that is never active."""
    first, second = ("image", "text") if modality == "image" else ("text", "image")
    own, other = (
        np.nan_to_num(space.features[f"{m}_mean_active"].to_numpy()) for m in (first, second)
    )
    return torch.from_numpy(np.where(own > 0, own, other)).float()


def _within(unit: Tensor, move: Tensor, degrees: float) -> tuple[Tensor, Tensor]:
    """Unit vectors moved, by less where they would turn by more than so many degrees.

    Args:
        unit: `[n, dim]`.
        move: `[n, dim]`.

    Returns:
        The turned unit vectors `[n, dim]`, and what each move was scaled by `[n]`.
    """
    least = math.cos(math.radians(degrees))

    def turned(scale: Tensor) -> Tensor:
        return F.normalize(unit + scale[:, None] * move, dim=1)

    whole = torch.ones(len(unit), device=unit.device)
    low, high = torch.zeros_like(whole), whole.clone()
    for _ in range(HALVINGS):  # the angle grows with the scale
        middle = (low + high) / 2
        inside = (turned(middle) * unit).sum(1) >= least
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    fits = (turned(whole) * unit).sum(1) >= least
    scale = torch.where(fits, whole, low)
    return turned(scale), scale
