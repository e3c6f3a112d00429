"""What every dictionary offers, and how it is kept on disk."""

from __future__ import annotations

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from features.errors import UserError, first_line
from features.files import part_within, read_json, write_json, write_tensors
from features.modality import Modality, place_of

SCHEMA = 1
WEIGHTS = "dictionary.safetensors"


@dataclass(frozen=True)
class DictionaryConfig:
    """What a dictionary is and how it was made."""

    kind: str
    dim: int
    """Dimensions of an embedding."""
    features: int
    k: int
    """The most features that are active for one sample."""
    modality_bias: bool
    """Whether images and texts are centred by a mean of their own."""
    seed: int = 0
    encoder: str = ""
    encoder_fingerprint: str = ""
    training: dict[str, Any] | None = None
    """The settings of the training and the fingerprint of its store."""
    held_out: dict[str, dict[str, float | None]] | None = None
    """Figures on the held-out pairs, as `reconstruction_figures` gives them."""
    schema: int = SCHEMA


class SparseCode(NamedTuple):
    """The k largest activations of each sample; an inactive place has value 0."""

    values: Tensor
    """`[n, k]`"""
    indices: Tensor
    """`[n, k]` int64"""


class TrainingStep(NamedTuple):
    """What one batch gives to the trainer."""

    loss: Tensor
    fvu: Tensor
    """Fraction of variance unexplained on the batch, detached."""
    active: Tensor
    """Which features were active on the batch: `[features]` bool."""


class Dictionary(nn.Module, ABC):
    """Directions in the embedding space, and a way to write an embedding as few of them.

    A subclass sets `kind` and `default_modality_bias`, and is put in `DICTIONARIES` by `register`.
    """

    kind: ClassVar[str]
    default_modality_bias: ClassVar[bool]
    trained_here: ClassVar[bool] = True
    """Whether `fit_dictionary` makes one; others are converted."""
    selects_by_bf16: ClassVar[bool] = False
    """Whether training can choose candidates by bf16 products (`features.dictionary.selection`)."""
    codes_are_sparse: ClassVar[bool] = True
    """Whether `encode` is made from `encode_sparse`, and not the other way round."""
    exact_selection: bool = True
    """Whether training does without."""
    means: Tensor

    def __init__(self, config: DictionaryConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("means", torch.zeros(2, config.dim))  # [image and text, dim]

    @property
    def sparsity(self) -> str:
        """How many features are active for one sample, in words."""
        return f"at most {self.config.k} active for one sample"

    @property
    @abstractmethod
    def directions(self) -> Tensor:
        """What one unit of each feature adds to an embedding: `[features, dim]`; unit rows in the
        kinds that are trained here."""

    @abstractmethod
    def encode_sparse(self, x: Tensor, modality: Modality) -> SparseCode:
        """Activations of unit embeddings `[n, dim]`, k a sample."""

    @abstractmethod
    def decode_sparse(self, code: SparseCode, modality: Modality) -> Tensor:
        """Reconstructions `[n, dim]`, not normalised."""

    def encode(self, x: Tensor, modality: Modality) -> Tensor:
        """Activations of unit embeddings `[n, dim]`: dense `[n, features]`."""
        values, indices = self.encode_sparse(x, modality)
        dense = values.new_zeros(len(x), self.config.features)
        return dense.scatter(1, indices, values)  # [n, features]

    def pre_activations(self, x: Tensor, modality: Modality) -> Tensor:
        """What is known of every feature before the code is made sparse, of unit embeddings
        `[n, dim]`: `[n, features]`. A kind that makes nothing sparse gives its activations."""
        return self.encode(x, modality)

    def decode(self, z: Tensor, modality: Modality) -> Tensor:
        """Reconstructions of dense activations `[n, features]`: `[n, dim]`, not normalised."""
        return z @ self.directions + self.mean(modality)

    def reweighted(
        self,
        x: Tensor,
        activations: Tensor,
        weights: Tensor,
        modality: Modality,
        *,
        keep_error: bool,
    ) -> Tensor:
        """Embeddings with their features' activations re-weighted: `[n, dim]`, not normalised.

        Args:
            x: `[n, dim]`.
            activations: of x, dense `[n, features]`.
            weights: `[features]`; 1 leaves a feature as it is, 0 removes it.
            keep_error: add what the dictionary leaves out of x again.
        """
        edited = self.decode(weights * activations, modality)
        return x - (self.decode(activations, modality) - edited) if keep_error else edited

    def mean(self, modality: Modality) -> Tensor:
        """What is subtracted before encoding and added after decoding: `[dim]`."""
        return self.means[place_of(modality)]

    def set_means(self, image: Tensor, text: Tensor) -> None:
        """Take the means `[dim]` of a training set: by modality, or their average for both."""
        if not self.config.modality_bias:
            image = text = (image + text) / 2
        self.means.copy_(torch.stack([image, text]))

    def forward(self, image: Tensor, text: Tensor, dead: Tensor) -> TrainingStep:
        """The training step on a batch of pairs.

        Args:
            image: `[n, dim]`.
            text: `[n, dim]`.
            dead: which features have long been inactive: `[features]` bool.
        """
        raise NotImplementedError(f"{self.kind} dictionaries are not trained")

    def project_gradients(self) -> None:
        """Called before each optimiser step, to take out what `constrain` would undo."""

    def constrain(self) -> None:
        """Called after each optimiser step, to put parameters back where they must be."""

    def fingerprint(self) -> str:
        """sha256 over the weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write `dictionary.safetensors` and then config.json into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.save_weights(folder / WEIGHTS)
        record = dataclasses.asdict(self.config) | {"fingerprint": self.fingerprint()}
        write_json(folder / "config.json", record)

    def save_weights(self, path: Path) -> None:
        """Write the weights under a temporary name, then rename them."""
        write_tensors(path, {key: value.clone() for key, value in self.state_dict().items()})

    def load_weights(self, path: Path, fingerprint: str = "") -> None:
        """Read weights.

        Args:
            fingerprint: what they must have; "" where none was recorded.

        Raises:
            UserError: there are none, they are of another shape, or other weights.
        """
        if not path.is_file():
            raise UserError(f"{path}: missing; fit the dictionary again")
        try:
            self.load_state_dict(load_file(path))
        except Exception as error:  # safetensors and torch each raise their own
            raise UserError(
                f"{path}: does not match its config.json ({first_line(error)}); fit again"
            ) from error
        if fingerprint and self.fingerprint() != fingerprint:
            raise UserError(
                f"{path}: damaged or another dictionary's: not the weights whose fingerprint its "
                "config.json holds; copy its folder again, or fit again"
            )


DICTIONARIES: dict[str, type[Dictionary]] = {}
"""Every kind of dictionary by its name."""


def register(cls: type[Dictionary]) -> type[Dictionary]:
    """Class decorator that adds a kind to `DICTIONARIES`.

    Raises:
        ValueError: the name is taken.
    """
    if cls.kind in DICTIONARIES:
        raise ValueError(f"dictionary kind {cls.kind!r} is taken by {DICTIONARIES[cls.kind]}")
    DICTIONARIES[cls.kind] = cls
    return cls


def dictionary_class(kind: str) -> type[Dictionary]:
    """The class of a kind.

    Raises:
        UserError: there is no such kind.
    """
    if kind not in DICTIONARIES:
        raise UserError(f"{kind}: unknown kind of dictionary; known are {', '.join(DICTIONARIES)}")
    return DICTIONARIES[kind]


def trained_kinds() -> list[str]:
    """The kinds that are trained here."""
    return [name for name, cls in DICTIONARIES.items() if cls.trained_here]


def load_dictionary(folder: str | Path) -> Dictionary:
    """Load what `Dictionary.save` wrote, or the dictionary of a FeatureSpace's folder.

    Raises:
        UserError: there is none, it is of an unknown kind or schema, or its weights are not those
            that were saved.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: no dictionary here (no config.json); "
            + part_within(folder, "dictionary", "fit one first")
        )
    record = read_json(folder / "config.json")
    own = record.get("dictionary", record)
    if own.get("schema") != SCHEMA or "kind" not in own:
        raise UserError(f"{folder}/config.json: not a dictionary of schema {SCHEMA}; fit it again")
    fingerprint = record.get("dictionary_fingerprint") or own.get("fingerprint", "")
    return dictionary_from_record(own, folder / WEIGHTS, fingerprint)


def dictionary_from_record(
    record: dict[str, Any], weights: Path, fingerprint: str = ""
) -> Dictionary:
    """A dictionary from its config as JSON holds it, and its weights.

    Args:
        fingerprint: of the weights; "" where it wasn't recorded (0.1.0).

    Raises:
        UserError: the config is none of a known kind, or the weights are damaged.
    """
    known = {field.name for field in dataclasses.fields(DictionaryConfig)}
    try:
        config = DictionaryConfig(**{key: value for key, value in record.items() if key in known})
        dictionary = dictionary_class(config.kind)(config)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{weights.parent}/config.json: no dictionary is like this ({first_line(error)}); fit "
            "it or copy its folder again"
        ) from None
    dictionary.load_weights(weights, fingerprint)
    return dictionary.eval().requires_grad_(False)
