"""What an encoder is known by: two with the same fingerprint give the same embeddings.

A fingerprint is `<weights>-<behaviour>`, two sha256. The first is over the model's state, the
second over what decides what is made of it: the modules and their settings (an activation that
has no weights, the number of heads ...), the image transform and the tokenizer. Neither depends on
the process, the device, or where files lie.

Version 0.1.0 wrote the first part alone.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterable
from enum import Enum
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

SEPARATOR = "-"
SHA256 = re.compile("[0-9a-f]{64}")
COLOURS = ((0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 128, 255))
"""Of the plain pictures that a transform is tried on: no resampling changes them."""
PICTURE = (96, 64)
TEXTS = (
    "",
    "a",
    "A photo of a DOG, two cats; and 3,141 birds!",
    "caf\u00e9 na\u00efve \u65e5\u672c\u8a9e \U0001f600 don't re-read",
    "  spaces\tand\nlines  &amp; <b>marks</b> _under_score_ ",
    "red green blue yellow man woman girl boy sun moon house tree car happy",
    " ".join(f"word{n} of {n}" for n in range(300)),
)
"""That a tokenizer is tried on: letters, digits, signs, scripts, and more than any context."""
WORD = re.compile(r"[^\W\d_]{2,}")
WORDS = 32
"""Of its vocabulary that a tokenizer is tried on."""
MODES = frozenset({"training", "batch_first", "grad_checkpointing", "gradient_checkpointing"})
"""Settings of modules that change how they compute, but not what."""
ENVIRONMENT = frozenset({"output_dict", "inplace", "fused_attn", "name_or_path"})
"""Settings that follow the machine, the caller or the library's version."""
CONVERSIONS = frozenset(
    {
        "_convert_image_to_rgb",
        "_convert_to_rgb",
        "ConvertImageDtype",
        "MaybeConvertMode",
        "MaybePILToTensor",
        "MaybeToTensor",
        "PILToTensor",
        "ToDtype",
        "ToImage",
        "ToTensor",
    }
)
"""Steps of transforms that libraries name in several ways; plain pictures show what they do."""
LIBRARIES = frozenset({"features", "open_clip", "timm", "torchvision"})
"""Whose steps are known by their settings."""
OWN = "own step"


def encoder_fingerprint(
    model: nn.Module,
    transform: Callable[[Image.Image], Tensor],
    tokenizer: Callable[[list[str]], Tensor],
) -> str:
    """The fingerprint of an encoder: two sha256 in hexadecimal, joined by "-".

    Args:
        transform: RGB image -> `[3, height, width]`.
        tokenizer: texts -> `[n, length]`.
    """
    behaviour = {
        "model": _architecture(model),
        "transform": _preprocessing(transform),
        "tokenizer": _tokenization(tokenizer),
    }
    content = json.dumps(behaviour, sort_keys=True)
    return f"{_weights(model)}{SEPARATOR}{hashlib.sha256(content.encode()).hexdigest()}"


def same_encoder(one: str, other: str) -> bool:
    """Whether two fingerprints are of one encoder.

    Where one of them was written by 0.1.0, equal weights suffice, with a warning.
    """
    if one == other:
        return True
    weights, _, behaviour = one.partition(SEPARATOR)
    other_weights, _, other_behaviour = other.partition(SEPARATOR)
    if not SHA256.fullmatch(weights) or weights != other_weights:
        return False
    if behaviour and other_behaviour:
        return False
    warnings.warn(
        "an artifact of version 0.1.0 is known by its encoder's weights alone: it is taken as made "
        "with the same preprocessing and tokenizer; make it again to be sure",
        stacklevel=2,
    )
    return True


def _weights(model: nn.Module) -> str:
    """sha256 over the names, types, shapes and values of a model's state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _architecture(model: nn.Module) -> list[Any]:
    """Each module's name, class and settings, and the masks and tables that are not saved."""
    modules = [
        [name, type(module).__qualname__, _settings(module)]
        for name, module in model.named_modules()
    ]
    state = model.state_dict()
    for name, buffer in sorted(model.named_buffers()):
        if name not in state:
            finite = buffer[torch.isfinite(buffer)].double().cpu()
            masked = buffer.numel() - len(finite)
            modules.append([name, list(buffer.shape), masked, f"{float(finite.sum()):.3g}"])
    return modules


def _settings(thing: object) -> dict[str, Any]:
    """The public settings of an object. None and False are left out, so that switches which a
    library adds later change nothing."""
    found = {}
    for name, value in getattr(thing, "__dict__", {}).items():
        if name.startswith("_") or name in MODES | ENVIRONMENT:
            continue
        plain = _plain(value)
        if plain is not None and plain is not False:
            found[name] = plain
    return found


def _plain(value: Any) -> Any:
    """A setting as JSON holds it; None for what is none (modules, paths, devices ...)."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and value.numel() <= 4:
        value = value.tolist()
    if isinstance(value, float):
        return round(value, 9)
    if isinstance(value, str):
        return None if "/" in value or "\\" in value else value
    if isinstance(value, int):
        return value
    if isinstance(value, FunctionType | BuiltinFunctionType):
        return value.__name__
    if isinstance(value, list | tuple):
        found = [_plain(inner) for inner in value]
        return found if any(inner is not None for inner in found) else None
    return None


def _steps(transform: Any) -> list[Any]:
    """The steps of a transform with their settings, those within steps too.

    Steps of libraries are known by their settings, whatever version computes them. What somebody
    wrote is known by what it makes of a picture.
    """
    inner = getattr(transform, "transforms", None)
    if isinstance(inner, Iterable):
        return [step for each in inner for step in _steps(each)]
    name = getattr(transform, "__qualname__", type(transform).__qualname__)
    if name in CONVERSIONS:
        return []
    given = getattr(transform, "__dict__", {}).values()
    known = type(transform).__module__.partition(".")[0] in LIBRARIES
    if not known or any(isinstance(value, FunctionType) for value in given):
        return [OWN]
    return [[name, _settings(transform)]]


def _preprocessing(transform: Callable[[Image.Image], Tensor]) -> list[Any]:
    """The steps of a transform, and what it makes of plain pictures: shapes and channel means."""
    found = _steps(transform)
    for colour in COLOURS:
        pixels = torch.as_tensor(transform(Image.new("RGB", PICTURE, colour)))  # [3, h, w]
        means = pixels.double().flatten(1).mean(1)  # [3]
        found.append([list(pixels.shape), [round(mean, 2) + 0.0 for mean in means.tolist()]])
    if OWN in found:
        width, height = PICTURE
        noise = np.arange(width * height * 3, dtype=np.int64) ** 2 % 251
        picture = Image.fromarray(noise.astype(np.uint8).reshape(height, width, 3))
        made = torch.as_tensor(transform(picture)).float().contiguous().numpy()
        found.append(hashlib.sha256(made.tobytes()).hexdigest())
    return found


def _tokenization(tokenizer: Any) -> dict[str, Any]:
    """The vocabulary, merges and context of an open_clip or transformers tokenizer, and what it
    makes of texts; what others do is only seen by trying them."""
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    found: dict[str, Any] = {"context": getattr(tokenizer, "context_length", None)}
    vocabulary: dict[str, int] = {}
    if hasattr(inner, "get_vocab"):
        vocabulary = inner.get_vocab()
    elif isinstance(getattr(inner, "encoder", None), dict):
        vocabulary = inner.encoder
        found["merges"] = [" ".join(pair) for pair in getattr(inner, "bpe_ranks", ())]
    backend = getattr(inner, "backend_tokenizer", None)
    if backend is not None:
        model = json.loads(backend.to_str())["model"]
        merges = model.get("merges") or ()
        found["merges"] = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
        if isinstance(model.get("vocab"), list):  # Unigram: each with its score
            found["scores"] = model["vocab"]
    found["vocabulary"] = vocabulary
    texts = [*TEXTS, *_written_otherwise(vocabulary)]
    found["ids"] = torch.as_tensor(tokenizer(texts)).tolist()
    return found


def _written_otherwise(vocabulary: Iterable[str]) -> list[str]:
    """Some words of a vocabulary as they are, in capitals, accented, and beside signs."""
    words = sorted({word for token in vocabulary for word in WORD.findall(token)})
    chosen = words[:: max(1, len(words) // WORDS)]
    marked = [f"{word[0]}\u0301{word[1:]}" for word in chosen]
    signs = [f"{word}, {word}-{word}! {word}{word}" for word in chosen]
    return [*chosen, *(word.upper() for word in chosen), *marked, *signs]
