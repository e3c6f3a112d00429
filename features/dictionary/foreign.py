"""Sparse autoencoders of other libraries, read from the files that these libraries write.

| library | files |
|---|---|
| SAELens | a folder with cfg.json and sae_weights.safetensors |
| sparsify | a folder with cfg.json and sae.safetensors |
| dictionary_learning, sae-for-vlm | ae.pt, with config.json beside it |
| overcomplete | the state_dict in a .pt file |
| MSAE | 8192_768_TopKReLU_64_False_False_0.0_....pt: its settings are in its name |
| saev | sae.pt: a line of JSON, then the state_dict |

A .pt file may be a training's checkpoint that holds the state_dict beside other things, and weights
of dictionary_learning and overcomplete may be a .safetensors file.

Weights alone are read: a file that holds pickled code is refused.
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from features.dictionary.convert import SAELENS_CONFIG, SAELENS_WEIGHTS, Autoencoder
from features.errors import UserError, first_line
from features.files import read_json, read_tensors

SPARSIFY_WEIGHTS = "sae.safetensors"
SAFETENSORS = ".safetensors"
DICTIONARY_LEARNING = "ae.pt"
OF_A_FOLDER = (SAELENS_CONFIG, SAELENS_WEIGHTS, SPARSIFY_WEIGHTS)
"""Files that are read with those beside them."""
WITHIN = ("state_dict", "model_state_dict", "model", "sae", "autoencoder", "weights")
"""Under which a checkpoint of a training holds the state_dict."""
WRAPPERS = ("module.", "_orig_mod.", "model.", "sae.", "autoencoder.")
"""What DistributedDataParallel, torch.compile and Lightning put before all names."""
UNIT_TOLERANCE = 0.05
"""How far from 1 rows may be that a library gives unit length when it loads them."""

NORMALISED_ALREADY = ("none", "expected_average_only_in", True)
"""SAELens's settings of inputs that are as they are when it runs: it puts the mean norm into the
weights after training, which older files call True."""

State = dict[str, Tensor]


def read_autoencoder(
    source: str | Path, *, k: int | None = None, threshold: float | None = None
) -> Autoencoder:
    """Read a sparse autoencoder of another library.

    Args:
        source: a file or a folder, as the library wrote it.
        k: features active for one sample, where the file does not say (overcomplete's TopKSAE,
            dictionary_learning's without its config.json).
        threshold: of all features, where the file does not hold it (overcomplete's BatchTopKSAE).

    Raises:
        UserError: nothing is there; it is no autoencoder that is known; it computes what no
            dictionary here computes; it has no such k or threshold; or it holds more than weights.
    """
    path = Path(source)
    if path.name in OF_A_FOLDER:
        path = path.parent
    try:
        found = _read(path, k, threshold)
    except UserError:
        raise
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{source}: its config or weights are not as the library writes them "
            f"({type(error).__name__}: {first_line(error)}); copy it again"
        ) from None
    for name, given, own in (("k", k, found.k), ("threshold", threshold, found.threshold)):
        if given is not None and own is None:
            raise UserError(f"{source}: {found.library}'s file has no {name}; leave --{name} out")
    return found


def _read(path: Path, k: int | None, threshold: float | None) -> Autoencoder:
    if path.is_dir():
        if (path / SAELENS_WEIGHTS).is_file():
            return _saelens(_config(path), _tensors(path / SAELENS_WEIGHTS), k)
        if (path / SPARSIFY_WEIGHTS).is_file():
            return _sparsify(_config(path), _tensors(path / SPARSIFY_WEIGHTS), k)
        if not (path / DICTIONARY_LEARNING).is_file():
            raise UserError(
                f"{path}: no autoencoder that is known; give a folder with {SAELENS_WEIGHTS}, "
                f"{SPARSIFY_WEIGHTS} or {DICTIONARY_LEARNING}, or a .pt file"
            )
        path = path / DICTIONARY_LEARNING
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder")
    if path.suffix == SAFETENSORS:
        return _of_state(path, _tensors(path), k, threshold)
    header, content = _header(path)
    state = _weights(path, content)
    if header is not None:
        return _saev(header, _named(state, path))
    if "mean_center" in state:
        return _msae(path, state)
    return _of_state(path, _named(state, path), k, threshold)


def _of_state(path: Path, state: State, k: int | None, threshold: float | None) -> Autoencoder:
    """Of the two libraries that are told by the names of their weights."""
    if "dictionary._weights" in state:
        return _overcomplete(state, k, threshold)
    return _dictionary_learning(path, state, k)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / SAELENS_CONFIG
    if not path.is_file():
        raise UserError(f"{path}: no such file; copy it too, it says how the weights are meant")
    return read_json(path)


def _active(library: str, k: int | None, own: Any) -> int:
    """Features active for one sample: what the user says, or else the config."""
    if k is None and own is None:
        raise UserError(
            f"{library}: the config does not say how many features are active; give --k"
        )
    return int(own if k is None else k)


def _tensors(path: Path) -> State:
    return {name: tensor.float() for name, tensor in read_tensors(path).items()}


def _header(path: Path) -> tuple[dict[str, Any] | None, bytes]:
    """A first line of JSON, where there is one, and what follows it."""
    content = path.read_bytes()
    line, _, rest = content.partition(b"\n")
    if not line.startswith(b"{"):
        return None, content
    try:
        return json.loads(line), rest
    except ValueError:
        return None, content


def _weights(path: Path, content: bytes) -> dict[str, Any]:
    """What a file of torch's holds, nothing being run.

    Raises:
        UserError: it is no such file, or holds more than weights.
    """
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle and zipfile each raise their own
        raise UserError(
            f"{path}: cannot be read as weights alone ({first_line(error)}); save the model's "
            "state_dict with torch.save"
        ) from None
    if not isinstance(state, dict):
        raise UserError(f"{path}: holds a {type(state).__name__}, no state_dict")
    return state


def _named(state: dict[str, Any], path: Path) -> State:
    """The weights by name, out of a training's checkpoint too."""
    while within := [state[name] for name in WITHIN if isinstance(state.get(name), dict)]:
        state = within[0]
    for wrapper in WRAPPERS:
        if state and all(name.startswith(wrapper) for name in state):
            state = {name.removeprefix(wrapper): value for name, value in state.items()}
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path}: holds no weights; give a model's state_dict")
    return {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}


def _needed(library: str, state: State, *names: str) -> list[Tensor]:
    missing = [name for name in names if name not in state]
    if missing:
        raise UserError(
            f"{library}: no {missing[0]} among {', '.join(state)}; not an autoencoder of this kind"
        )
    return [state[name] for name in names]


def _refuse(library: str, what: str) -> UserError:
    return UserError(f"{library}: {what}, which no dictionary here computes")


def _saelens(config: dict[str, Any], state: State, given: int | None) -> Autoencoder:
    library = "SAELens"
    activation = config.get("activation_fn_str") or config.get("activation_fn") or "relu"
    architecture = "topk" if activation == "topk" else config.get("architecture", "standard")
    if activation not in ("relu", architecture):
        raise _refuse(library, f"the activation is {activation}")
    encoder, decoder, bias = _needed(library, state, "W_enc", "W_dec", "b_dec")
    encoder = encoder.mT  # [features, dim]
    if config.get("finetuning_scaling_factor") or "scaling_factor" in state:
        raise _refuse(library, "activations are scaled after the encoder (finetuning)")
    input_bias = bias if config.get("apply_b_dec_to_input", True) else torch.zeros_like(bias)
    if architecture == "gated":
        parts = _needed(library, state, "b_gate", "b_mag", "r_mag")
        encoder, encoder_bias, level = _ungated(encoder, *parts)
        found = Autoencoder(
            library, encoder, encoder_bias, decoder, bias, input_bias, threshold=level
        )
        return _saelens_inputs(config, found)
    (encoder_bias,) = _needed(library, state, "b_enc")
    k: int | None = None
    threshold: Tensor | None = None
    if architecture == "topk":
        own = config.get("k", (config.get("activation_fn_kwargs") or {}).get("k"))
        k = _active(library, given, own)
        if config.get("rescale_acts_by_decoder_norm"):
            norms = decoder.norm(dim=1)  # [features]
            encoder, encoder_bias = encoder * norms[:, None], encoder_bias * norms
            decoder = decoder / norms[:, None]
    elif architecture == "jumprelu":
        (threshold,) = _needed(library, state, "threshold")
    elif architecture != "standard":
        raise _refuse(library, f"the architecture is {architecture}")
    found = Autoencoder(library, encoder, encoder_bias, decoder, bias, input_bias, k, threshold)
    return _saelens_inputs(config, found)


def _saelens_inputs(config: dict[str, Any], found: Autoencoder) -> Autoencoder:
    """What SAELens does to inputs when it runs; embeddings here have unit length."""
    normalisation = config.get("normalize_activations") or "none"
    if normalisation == "constant_norm_rescale":
        return found.of_inputs(0.0, math.sqrt(found.encoder.shape[1]))
    if normalisation == "layer_norm":
        raise _refuse(found.library, "each input is normalised by its own mean and deviation")
    if normalisation not in NORMALISED_ALREADY:
        raise _refuse(found.library, f"inputs are normalised by {normalisation}")
    return found


def _ungated(
    encoder: Tensor, gate_bias: Tensor, magnitude_bias: Tensor, log_ratio: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """A gated encoder as one with thresholds: (encoder, its bias, thresholds).

    The gate is open where encoder @ x > -gate_bias, so where the magnitude, exp(log_ratio) times
    that plus its bias, exceeds magnitude_bias - exp(log_ratio) * gate_bias.
    """
    ratio = log_ratio.exp()  # [features]
    return encoder * ratio[:, None], magnitude_bias, magnitude_bias - ratio * gate_bias


def _sparsify(config: dict[str, Any], state: State, given: int | None) -> Autoencoder:
    library = "sparsify"
    if config.get("transcode"):
        raise _refuse(library, "a transcoder predicts another vector than its input")
    if config.get("skip_connection") or "W_skip" in state:
        raise _refuse(library, "a skip connection adds the input itself")
    if config.get("activation", "topk") != "topk" or config.get("signed"):
        raise _refuse(library, f"the activation is {config.get('activation', 'signed topk')}")
    names = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")
    encoder, encoder_bias, decoder, bias = _needed(library, state, *names)
    k = _active(library, given, config.get("k"))
    return Autoencoder(library, encoder, encoder_bias, decoder, bias, bias, k)


def _dictionary_learning(path: Path, state: State, k: int | None) -> Autoencoder:
    """dictionary_learning's classes: its config.json names them, most are told by their weights."""
    library = "dictionary_learning"
    config = _config_beside(path)
    named = config.get("trainer", {}).get("dict_class", "")
    if "W_enc" in state:
        if "threshold" not in state:
            raise UserError(
                f"{path}: W_enc without thresholds may be of several kinds; save the weights as "
                f"{SAELENS_WEIGHTS} beside SAELens's {SAELENS_CONFIG}, which says which"
            )
        encoder, encoder_bias, decoder, bias = _needed(
            library, state, "W_enc", "b_enc", "W_dec", "b_dec"
        )
        (threshold,) = _needed(library, state, "threshold")
        nested = threshold.ndim == 0  # Matryoshka BatchTopK; else JumpReLU, without input bias
        return Autoencoder(
            library,
            encoder.T,
            encoder_bias,
            decoder,
            bias,
            bias if nested else torch.zeros_like(bias),
            threshold=threshold.expand(encoder.shape[1]),
        )
    encoder, decoder = _needed(library, state, "encoder.weight", "decoder.weight")
    decoder = decoder.T  # [features, dim]
    if "r_mag" in state:
        names = ("gate_bias", "mag_bias", "r_mag", "decoder_bias")
        gate_bias, magnitude_bias, log_ratio, bias = _needed(library, state, *names)
        encoder, encoder_bias, threshold = _ungated(encoder, gate_bias, magnitude_bias, log_ratio)
        return Autoencoder(library, encoder, encoder_bias, decoder, bias, bias, threshold=threshold)
    (encoder_bias,) = _needed(library, state, "encoder.bias")
    if "b_dec" in state:
        bias = state["b_dec"]
        if named == "BatchTopKSAE" and k is None:
            (threshold,) = _needed(library, state, "threshold")
            return Autoencoder(
                library,
                encoder,
                encoder_bias,
                decoder,
                bias,
                bias,
                threshold=threshold.expand(len(encoder)),
            )
        if named != "AutoEncoderTopK" and k is None:
            raise UserError(
                f"{path}: its weights may be of AutoEncoderTopK or of BatchTopKSAE; put its "
                "config.json beside it, or give --k for the first"
            )
        most = int(state["k"]) if "k" in state and k is None else k
        return Autoencoder(library, encoder, encoder_bias, decoder, bias, bias, most)
    if "decoder.bias" in state:
        bias = state["decoder.bias"]
        return Autoencoder(library, encoder, encoder_bias, decoder, bias, torch.zeros_like(bias))
    (bias,) = _needed(library, state, "bias")
    norms = decoder.norm(dim=1)  # [features]; its loader moves them into the encoder
    return Autoencoder(
        library,
        encoder * norms[:, None],
        encoder_bias * norms,
        decoder / norms[:, None],
        bias,
        bias,
    )


def _config_beside(path: Path) -> dict[str, Any]:
    """dictionary_learning's config.json, beside a file or beside the folder of its checkpoints."""
    for folder in (path.parent, path.parent.parent):
        if (folder / "config.json").is_file():
            return read_json(folder / "config.json")
    return {}


def _overcomplete(state: State, k: int | None, threshold: float | None) -> Autoencoder:
    library = "overcomplete"
    (rows,) = _needed(library, state, "dictionary._weights")
    norms = rows.norm(dim=1, keepdim=True)
    if (norms - 1).abs().max() < UNIT_TOLERANCE:
        rows = rows / (norms + 1e-8)  # as it does when it loads them
    decoder = rows * state.get("dictionary.multiplier", torch.zeros(())).exp()
    linear = ("encoder.final_block.", "encoder.weight", "encoder.bias", "encoder.tied_to.")
    if any(name.startswith("encoder.") and not name.startswith(linear) for name in state):
        raise _refuse(library, "the encoder has hidden layers")
    if "encoder.final_block.0.weight" in state:
        names = ("encoder.final_block.0.weight", "encoder.final_block.0.bias")
        encoder, bias = _needed(library, state, *names)
        encoder, bias = _batch_norm_folded(encoder, bias, state)
    else:
        encoder = state.get("encoder.weight", decoder)  # tied: the dictionary itself
        bias = state.get("encoder.bias", torch.zeros(len(encoder)))
    none = torch.zeros(encoder.shape[1])
    thresholds = None
    if "thresholds" in state:
        thresholds = state["thresholds"].exp()
    elif threshold is not None:
        thresholds = torch.full((len(encoder),), threshold)
    elif k is None:
        raise UserError(
            f"{library}: the file does not say how many features are active; give --k for a "
            "TopKSAE (its top_k), or --threshold for a BatchTopKSAE (its running_threshold)"
        )
    return Autoencoder(library, encoder, bias, decoder, none, none, k, thresholds)


def _batch_norm_folded(encoder: Tensor, bias: Tensor, state: State) -> tuple[Tensor, Tensor]:
    """A linear layer with the batch norm after it, in evaluation: one linear layer."""
    end = "encoder.final_block.1."
    if not any(name.startswith(end) for name in state):
        return encoder, bias
    if f"{end}running_mean" not in state:
        raise _refuse("overcomplete", "the encoder normalises each sample by itself")
    names = [f"{end}{name}" for name in ("weight", "bias", "running_mean", "running_var")]
    scale, shift, mean, variance = _needed("overcomplete", state, *names)
    scale = scale / (variance + 1e-5).sqrt()  # [features]
    return encoder * scale[:, None], (bias - mean) * scale + shift


def _msae(path: Path, state: dict[str, Any]) -> Autoencoder:
    library = "MSAE"
    pieces = path.name.split(".pt")[0].split("_")
    flags = [place for place, piece in enumerate(pieces) if piece in ("True", "False")]
    if len(pieces) < 4 or len(flags) < 2:
        raise UserError(
            f"{path}: the name of an MSAE file says what it computes (8192_768_TopKReLU_64_False_"
            "False_0.0_...); give the file its name back"
        )
    activation = pieces[2]
    k = int(pieces[3]) if "TopK" in activation and pieces[3].isdigit() else None
    if pieces[flags[1]] == "True":
        raise _refuse(library, "each input is normalised by its own mean and deviation")
    if float(pieces[flags[1] + 1]) > 0:
        raise _refuse(library, "activations are bent by a soft cap")
    if activation not in ("ReLU", "JumpReLU", "TopK", "TopKReLU"):
        raise _refuse(library, f"the activation is {activation}")
    weights = _named(state["model"], path)
    encoder, encoder_bias, bias = _needed(library, weights, "encoder", "latent_bias", "pre_bias")
    encoder = encoder.mT  # [features, dim]
    threshold = None
    if activation == "JumpReLU":
        (logarithm,) = _needed(library, weights, "activation.log_threshold")
        threshold = logarithm.exp()
    found = Autoencoder(
        library,
        encoder,
        encoder_bias,
        weights.get("decoder", encoder),
        bias,
        bias,
        k,
        threshold,
        signed=activation == "TopK",
    )
    mean = torch.as_tensor(state["mean_center"], dtype=torch.float32)
    return found.of_inputs(mean.expand(len(bias)), float(state["scaling_factor"]))


def _saev(header: dict[str, Any], state: State) -> Autoencoder:
    library = "saev"
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    encoder, encoder_bias, decoder, bias = _needed(library, state, *names)
    if "schema" not in header:  # its first version, which subtracts the bias from the input
        return Autoencoder(library, encoder.T, encoder_bias, decoder, bias, bias)
    config = header.get("cfg", {})
    activation = config.get("activation")
    if activation is None:  # an older form of schema 1
        older = header.get("cls", "")
        name = "Relu" if older.endswith("Config") else older
        activation = {"cls": name, "params": {"top_k": config.get("top_k", 32)}}
    name = activation["cls"]
    if name not in ("Relu", "TopK", "BatchTopK"):
        raise _refuse(library, f"the activation is {name}")
    most = None if name == "Relu" else int(activation["params"]["top_k"])
    none = torch.zeros_like(bias)
    return Autoencoder(
        library, encoder.T, encoder_bias, decoder, bias, none, most, signed=most is not None
    )
