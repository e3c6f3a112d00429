"""Dictionaries from other libraries' sparse autoencoders, and for them.

Whatever the library, an autoencoder that is linear but for its activation is the same few matrices
(`Autoencoder`); `features.dictionary.foreign` reads them from each library's files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from features.dictionary.base import Dictionary, DictionaryConfig, dictionary_class
from features.dictionary.batchtopk import BatchTopKDictionary
from features.dictionary.linear import JumpReluDictionary, ReluDictionary, SignedTopKDictionary
from features.dictionary.topk import TopKDictionary
from features.errors import UserError
from features.files import write_json, write_tensors
from features.modality import MODALITIES, Modality

SAELENS_WEIGHTS = "sae_weights.safetensors"
SAELENS_CONFIG = "cfg.json"
SAELENS_VERSION = "6.0.0"
"""Since when its configs look as they are written here."""


@dataclass(frozen=True)
class Autoencoder:
    """A sparse autoencoder of another library, as one formula:

        reconstruction = activation((x - input_bias) @ encoder.T + encoder_bias) @ decoder + bias

    The activation keeps the positive values, of these the k largest (`k`) or those above their
    threshold (`threshold`) where it has such; with `signed`, the k largest whatever their sign.
    """

    library: str
    encoder: Tensor
    """`[features, dim]`"""
    encoder_bias: Tensor
    """`[features]`"""
    decoder: Tensor
    """`[features, dim]`"""
    bias: Tensor
    """`[dim]`"""
    input_bias: Tensor
    """`[dim]`"""
    k: int | None = None
    threshold: Tensor | None = None
    """`[features]`"""
    signed: bool = False

    def of_inputs(self, mean: Tensor | float, scale: float) -> Autoencoder:
        """The autoencoder of x where this one is of (x - mean) * scale, its reconstruction mapped
        back; mean is `[dim]`."""
        return Autoencoder(
            self.library,
            self.encoder * scale,
            self.encoder_bias,
            self.decoder / scale,
            self.bias / scale + mean,
            self.input_bias / scale + mean,
            self.k,
            self.threshold,
            self.signed,
        )

    @property
    def kind(self) -> str:
        """Of the dictionary that computes the same."""
        if self.threshold is not None:
            return JumpReluDictionary.kind
        if self.k is None:
            return ReluDictionary.kind
        return SignedTopKDictionary.kind if self.signed else TopKDictionary.kind

    def dictionary(self, encoder: str = "", encoder_fingerprint: str = "") -> Dictionary:
        """The dictionary that computes the same, images and texts alike.

        Args:
            encoder: whose embeddings it reads; "" where that is not known.
            encoder_fingerprint: that encoder's.

        Raises:
            UserError: the matrices don't fit together, or a number is not finite.
        """
        self._require_fit()
        features, dim = self.encoder.shape
        config = DictionaryConfig(
            kind=self.kind,
            dim=dim,
            features=features,
            k=features if self.k is None else self.k,
            modality_bias=False,
            encoder=encoder,
            encoder_fingerprint=encoder_fingerprint,
            training={"library": self.library},
        )
        shift = self.bias.double() - self.input_bias.double()  # [dim]
        state = {
            "means": self.bias.expand(2, -1),
            "encoder": self.encoder,
            "encoder_bias": self.encoder_bias.double() + self.encoder.double() @ shift,
            "decoder": self.decoder,
        }
        if self.threshold is not None:
            state["threshold"] = self.threshold
        dictionary = dictionary_class(self.kind)(config)
        dictionary.load_state_dict({name: value.float() for name, value in state.items()})
        return dictionary.eval().requires_grad_(False)

    def _require_fit(self) -> None:
        if self.encoder.ndim != 2:
            raise UserError(
                f"{self.library}: encoder is {list(self.encoder.shape)}, no matrix; the file is "
                "damaged or of another kind"
            )
        features, dim = self.encoder.shape
        shapes = {
            "encoder_bias": (features,),
            "decoder": (features, dim),
            "bias": (dim,),
            "input_bias": (dim,),
            "threshold": (features,),
        }
        tensors = {name: getattr(self, name) for name in ("encoder", *shapes)}
        for name, tensor in tensors.items():
            if tensor is None:
                continue
            if tuple(tensor.shape) != shapes.get(name, (features, dim)):
                raise UserError(
                    f"{self.library}: {name} is {list(tensor.shape)} beside an encoder of "
                    f"{[features, dim]}; the file is damaged or of another kind"
                )
            if not torch.isfinite(tensor).all():
                raise UserError(f"{self.library}: {name} holds NaN or infinity")
        if self.k is not None and not 1 <= self.k <= features:
            raise UserError(f"k {self.k}: must be at least 1 and at most the {features} features")


def write_saelens(dictionary: Dictionary, folder: str | Path, modality: Modality) -> None:
    """Write a dictionary as SAELens does: `cfg.json` and `sae_weights.safetensors`.

    SAELens then computes the same activations and reconstructions of this modality's embeddings.

    Args:
        modality: whose mean is subtracted, where images and texts have means of their own.

    Raises:
        UserError: SAELens has no architecture for this kind.
    """
    architecture, more = _saelens_architecture(dictionary)
    state: dict[str, Any] = dictionary.state_dict()
    weights = {
        "W_enc": state["encoder"].T,
        "b_enc": state["encoder_bias"],
        "W_dec": state["decoder"],
        "b_dec": dictionary.mean(modality),
    }
    settings: dict[str, Any] = {}
    for name, value in more.items():
        (weights if isinstance(value, Tensor) else settings)[name] = value
    config = dictionary.config
    record = {
        "architecture": architecture,
        "d_in": config.dim,
        "d_sae": config.features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        **settings,
        "metadata": {
            "sae_lens_version": SAELENS_VERSION,
            "model_name": config.encoder,
            "hook_name": f"{modality} embedding, unit length",
        },
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / SAELENS_WEIGHTS, {n: t.float() for n, t in weights.items()})
    write_json(folder / SAELENS_CONFIG, record)


def _saelens_architecture(dictionary: Dictionary) -> tuple[str, dict[str, Any]]:
    """The name of SAELens's architecture that computes the same, and what it needs beside the
    matrices: settings and tensors."""
    if isinstance(dictionary, JumpReluDictionary):
        return "jumprelu", {"threshold": dictionary.threshold}
    if isinstance(dictionary, ReluDictionary):
        return "standard", {}
    if isinstance(dictionary, BatchTopKDictionary):
        # jumprelu wants more than its threshold, batchtopk no less
        below = torch.nextafter(dictionary.threshold, torch.tensor(-math.inf))
        return "jumprelu", {"threshold": below.expand(dictionary.config.features)}
    if isinstance(dictionary, TopKDictionary) and not isinstance(dictionary, SignedTopKDictionary):
        return "topk", {"k": dictionary.config.k, "rescale_acts_by_decoder_norm": False}
    raise UserError(
        f"{dictionary.kind}: SAELens has no architecture that computes the same; it has those of "
        "topk, batchtopk, matryoshka, group, relu and jumprelu"
    )


def same_means(dictionary: Dictionary) -> bool:
    """Whether images and texts are centred by one mean."""
    image, text = (dictionary.mean(modality) for modality in MODALITIES)
    return torch.equal(image, text)
