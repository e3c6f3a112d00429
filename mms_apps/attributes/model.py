"""An estimator with what it needs to predict an attribute from embeddings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from features.arrays import tensor_of
from features.encoders.fingerprint import same_encoder
from features.errors import UserError, first_line
from features.files import part_within, read_json, read_tensors, write_json, write_tensors
from features.modality import Modality
from mms_apps.attributes.edits import EmbeddingEdit
from mms_apps.attributes.estimators import (
    Activations,
    LinearClassifier,
    LinearProbe,
    SparseProbe,
    ZeroShot,
    default_prompts,
    zero_shot,
)
from mms_apps.attributes.labels import Samples

if TYPE_CHECKING:
    from collections.abc import Mapping

    from features.space.space import FeatureSpace

SCHEMA = 1
WEIGHTS = "attribute.safetensors"
Method = Literal["zero_shot", "linear_probe", "sparse_probe"]
METHODS: tuple[Method, ...] = ("zero_shot", "linear_probe", "sparse_probe")


@dataclass(frozen=True)
class ModelConfig:
    """What an attribute's model is and how it was made."""

    attribute: str
    classes: tuple[str, ...]
    method: Method
    modality: Modality
    encoder: str
    encoder_fingerprint: str
    dictionary_fingerprint: str
    samples: int
    """It was fitted on; 0 for zero-shot."""
    prompts: dict[str, list[str]] | None
    """By class, for zero-shot."""
    strength: float | None
    """Inverse strength of the probe's L2 penalty."""
    seed: int = 0
    schema: int = SCHEMA


class AttributeModel:
    """Predicts an attribute of one modality's embeddings."""

    def __init__(
        self, config: ModelConfig, estimator: LinearClassifier, space: FeatureSpace
    ) -> None:
        self.config = config
        self.estimator = estimator
        self.space = space

    @property
    def classes(self) -> tuple[str, ...]:
        return self.config.classes

    def activations(self, embeddings: Tensor) -> np.ndarray:
        """Activations `[n, features]` of embeddings `[n, dim]`."""
        return Activations(self.space, self.config.modality).transform(embeddings.cpu().numpy())

    def read(self, embeddings: Tensor | np.ndarray, edit: EmbeddingEdit | None = None) -> Tensor:
        """Embeddings `[n, dim]` of any length as the model reads them: of unit length, float32,
        then edited.

        Raises:
            UserError: they are no numbers, of another size, or not finite.
        """
        unit = F.normalize(self.space.embeddings_of(embeddings).detach().float(), dim=1)
        return unit if edit is None else edit.apply(unit)

    def inputs(self, read: Tensor) -> np.ndarray:
        """What the estimator takes, of embeddings `[n, dim]` as `read` gives them.

        Raises:
            UserError: they are of another size, or not finite.
        """
        read = self.space.embeddings_of(read)
        if self.estimator.inputs == "activations":
            return self.activations(read)
        return read.cpu().numpy()

    def predict_proba(
        self, embeddings: Tensor | np.ndarray, edit: EmbeddingEdit | None = None
    ) -> np.ndarray:
        """`[n, classes]`, of embeddings `[n, dim]` of any length.

        Args:
            edit: of the embeddings of unit length, before the model sees them.

        Raises:
            UserError: as `read`.
        """
        return self.probabilities(self.read(embeddings, edit))

    def probabilities(self, read: Tensor) -> np.ndarray:
        """`[n, classes]`, of embeddings `[n, dim]` as `read` gives them."""
        if len(read) == 0:
            return np.zeros((0, len(self.classes)))
        return self.estimator.predict_proba(self.inputs(read))

    def predict(
        self, embeddings: Tensor | np.ndarray, edit: EmbeddingEdit | None = None
    ) -> np.ndarray:
        """Classes `[n]`, of embeddings `[n, dim]` of any length.

        Args:
            edit: as `predict_proba` takes it.

        Raises:
            UserError: as `read`.
        """
        return self.predictions(self.read(embeddings, edit))

    def predictions(self, read: Tensor) -> np.ndarray:
        """Classes `[n]`, of embeddings `[n, dim]` as `read` gives them."""
        return np.array(self.classes)[self.probabilities(read).argmax(axis=1)]

    def save(self, folder: str | Path) -> Path:
        """Write attribute.safetensors and then config.json into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {
            "coef": tensor_of(self.estimator.coef_, "weights"),
            "intercept": tensor_of(self.estimator.intercept_, "weights"),
        }
        write_tensors(folder / WEIGHTS, weights)
        write_json(folder / "config.json", asdict(self.config))
        return folder


def model_fingerprint(model: AttributeModel) -> str:
    """sha256 over what a model predicts by: its classes, modality and weights."""
    digest = hashlib.sha256(repr((model.classes, model.config.modality)).encode())
    for weights in (model.estimator.coef_, model.estimator.intercept_):
        digest.update(np.ascontiguousarray(weights, dtype="<f8").tobytes())
    return digest.hexdigest()


def fit_model(
    space: FeatureSpace,
    samples: Samples | None,
    attribute: str,
    classes: Sequence[str],
    method: Method,
    *,
    modality: Modality = "image",
    prompts: Mapping[str, Sequence[str]] | None = None,
    max_features: int = 20,
    seed: int = 0,
) -> AttributeModel:
    """Make a model of an attribute.

    Args:
        samples: to fit a probe on, by the space's encoder; those without one of the classes are
            left out. None for zero-shot.
        prompts: by class, for zero-shot; None takes `default_prompts`.
        max_features: of a sparse probe.
        seed: of the cross-validation's folds.

    Raises:
        UserError: an unknown method, a probe without samples, or prompts for other classes.
    """
    if method not in METHODS:
        raise UserError(f"{method}: unknown method; use {', '.join(METHODS)}")
    used, texts, strength = 0, None, None
    estimator: LinearClassifier
    if method == "zero_shot":
        texts = {name: list(t) for name, t in (prompts or default_prompts(classes)).items()}
        missing = [name for name in classes if not texts.get(name)]
        if missing:
            raise UserError(f"{', '.join(missing)}: no prompt; give at least one for each class")
        texts = {name: texts[name] for name in classes}
        estimator = zero_shot(space.encoder, texts)
    else:
        if samples is None:
            raise UserError(f"{method}: needs labelled pairs to fit on; give some, or zero_shot")
        labelled = samples.having(attribute, classes)
        probe = (
            LinearProbe(random_state=seed)
            if method == "linear_probe"
            else SparseProbe(max_features=max_features, random_state=seed)
        )
        inputs = labelled.embeddings.numpy()
        if probe.inputs == "activations":
            inputs = Activations(space, modality).transform(inputs)
        try:
            estimator = probe.fit(inputs, labelled.columns[attribute].astype(str))
        except ValueError as error:
            raise UserError(f"{attribute}: {method} cannot be fitted ({first_line(error)})") from (
                error
            )
        used, strength = len(labelled), probe.strength_
    config = ModelConfig(
        attribute=attribute,
        classes=tuple(str(name) for name in estimator.classes_),
        method=method,
        modality=modality,
        encoder=space.config.encoder,
        encoder_fingerprint=space.config.encoder_fingerprint,
        dictionary_fingerprint=space.config.dictionary_fingerprint,
        samples=used,
        prompts=texts,
        strength=strength,
        seed=seed,
    )
    return AttributeModel(config, estimator, space)


def load_model(folder: str | Path, space: FeatureSpace) -> AttributeModel:
    """Load what `AttributeModel.save` wrote.

    Raises:
        UserError: there is none, it is damaged, or it belongs to another FeatureSpace.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file() or not (folder / WEIGHTS).is_file():
        make = "make one with mms attributes predict"
        raise UserError(f"{folder}: no attribute model here; {part_within(folder, 'model', make)}")
    record = read_json(folder / "config.json")
    if record.get("schema") != SCHEMA or record.get("method") not in METHODS:
        raise UserError(f"{folder}/config.json: not an attribute model of schema {SCHEMA}")
    try:
        config = ModelConfig(**record | {"classes": tuple(record["classes"])})
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{folder}/config.json: damaged ({first_line(error)}); make the model again"
        ) from None
    other = ""
    if not same_encoder(config.encoder_fingerprint, space.config.encoder_fingerprint):
        other = "encoder"
    elif config.method == "sparse_probe" and (
        config.dictionary_fingerprint != space.config.dictionary_fingerprint
    ):
        other = "dictionary"
    if other:
        raise UserError(
            f"{folder}: made over another {other} than the space's; give its own space or make "
            "the model again"
        )
    weights = {name: held.numpy() for name, held in read_tensors(folder / WEIGHTS).items()}
    inputs = len(space) if config.method == "sparse_probe" else space.dictionary.config.dim
    shapes = {"coef": (len(config.classes), inputs), "intercept": (len(config.classes),)}
    if {name: held.shape for name, held in weights.items()} != shapes:
        raise UserError(
            f"{folder}/{WEIGHTS}: not the weights of {len(config.classes)} classes on {inputs} "
            "numbers that its config.json names; make or copy the model again"
        )
    order = np.argsort(config.classes)  # zero-shot models of 0.1.0 have the prompts' order
    config = replace(config, classes=tuple(config.classes[place] for place in order))
    coef, intercept = weights["coef"][order], weights["intercept"][order]
    return AttributeModel(config, restored(config, coef, intercept), space)


def restored(config: ModelConfig, coef: np.ndarray, intercept: np.ndarray) -> LinearClassifier:
    """A fitted estimator from its weights."""
    estimator: LinearClassifier
    if config.method == "zero_shot":
        estimator = ZeroShot(list(config.classes), coef, 1.0)
    elif config.method == "linear_probe":
        estimator = LinearProbe(strength=config.strength, random_state=config.seed)
    else:
        estimator = SparseProbe(strength=config.strength, random_state=config.seed)
        estimator.features_ = np.flatnonzero(coef.any(axis=0))
    estimator.classes_ = np.array(config.classes)
    estimator.coef_, estimator.intercept_ = coef, intercept
    estimator.n_features_in_ = coef.shape[1]
    return estimator


def embed(space: FeatureSpace, samples: Sequence, modality: Modality) -> Tensor:
    """Unit embeddings `[n, dim]` of images or texts, as an ordinary tensor on the CPU."""
    encoder = space.encoder
    encode = encoder.encode_images if modality == "image" else encoder.encode_texts
    return torch.clone(encode(samples)).cpu()
