"""Two pretrained towers as one open_clip model, with a linear head on each.

open_clip builds such a model from a timm name and a transformers config (`CustomTextCLIP`), so the
folder written here is an open_clip `local-dir:` folder like any other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from features.encoders.encoder import Preprocessing
from features.encoders.towers import (
    architecture,
    class_names,
    load_image_tower,
    timm_id,
    unloadable_text_tower,
)
from features.encoders.vocabulary import require_words
from features.errors import UserError
from features.files import write_json, write_tensors

if TYPE_CHECKING:
    from open_clip.tokenizer import HFTokenizer

TEXT_CONFIG = "config.json"
"""The text tower's own config, under the name by which transformers finds it."""
POOLERS = {
    "pooling_mode_mean_tokens": "mean_pooler",
    "pooling_mode_cls_token": "cls_last_hidden_state_pooler",
}
"""sentence-transformers' names for what happens to a text's hidden states, and open_clip's."""


@dataclass(frozen=True)
class LockedModel:
    """Two frozen towers and what belongs to them.

    `model` is open_clip's `CustomTextCLIP`; only its heads are to be trained:
    `visual.head.proj` `[dim, image width]` with its bias, `text.proj` `[dim, text width]`, and
    `logit_scale`.
    """

    model: nn.Module
    config: dict[str, Any]
    """Of `open_clip_config.json`; the text tower is named as the user named it."""
    preprocessing: Preprocessing
    tokenizer: HFTokenizer
    classifier: nn.Linear | None
    """The image tower's own head; None where it has none, or where its classes have no names."""
    class_names: list[str]
    device: torch.device

    @torch.inference_mode()
    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        """What the image tower gives: `[n, image width]` float32."""
        pixels = self.preprocessing.pixels(images).to(self.device)
        visual: Any = self.model.visual
        return visual.trunk(self.preprocessing.normalise(pixels)).float()

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """What the text tower gives, pooled: `[n, text width]` float32."""
        text: Any = self.model.text
        tokens = self.tokenizer(list(texts)).to(self.device)  # [n, context]
        mask = tokens != text.config.pad_token_id
        longest = int(mask.sum(1).max())
        tokens, mask = tokens[:, :longest], mask[:, :longest].long()
        states = text.transformer(input_ids=tokens, attention_mask=mask)
        return text.pooler(states, mask).float()


def build_locked_model(
    image_tower: str, text_tower: str, dim: int, context_length: int, device: torch.device
) -> LockedModel:
    """Put two towers with their weights under new heads.

    Args:
        image_tower: `timm:NAME`, or a folder with timm's config.json and weights.
        text_tower: a folder or a hub id of a transformers model.
        dim: of the space that the heads map to.
        context_length: tokens of a text, or fewer where the tower takes fewer; longer texts are
            cut.

    Raises:
        UserError: a tower cannot be loaded, its tokenizer has no words, or open_clip has no place
            for it.
    """
    import open_clip
    from open_clip.hf_configs import arch_dict
    from open_clip.tokenizer import HFTokenizer
    from transformers import AutoConfig

    image_id = timm_id(image_tower)
    full = load_image_tower(image_id)
    try:
        text_config = AutoConfig.from_pretrained(text_tower)
    except Exception as error:  # transformers and huggingface_hub each raise their own
        raise unloadable_text_tower(text_tower, error) from error
    if text_config.model_type not in arch_dict:
        raise UserError(
            f"{text_tower}: open_clip takes no text tower of the type {text_config.model_type}; "
            f"give one of {', '.join(arch_dict)}"
        )
    try:
        tokenizer = HFTokenizer(text_tower)
        tokenizer.context_length = min(
            context_length,
            tokenizer.tokenizer.model_max_length,
            getattr(text_config, "max_position_embeddings", context_length),
        )
        require_words(tokenizer, text_tower)
        config = _config(
            full, architecture(image_id), text_tower, dim, tokenizer.context_length, text_config
        )
        model = open_clip.CustomTextCLIP(**config["model_cfg"])
    except UserError:
        raise
    except Exception as error:  # transformers and huggingface_hub each raise their own
        raise unloadable_text_tower(text_tower, error) from error
    if tokenizer.tokenizer.pad_token_id != text_config.pad_token_id:
        raise UserError(
            f"{text_tower}: its tokenizer fills up texts with {tokenizer.tokenizer.pad_token_id}, "
            f"its config says {text_config.pad_token_id}; set pad_token_id in its config.json"
        )
    trunk: Any = model.visual.trunk
    weights = full.state_dict()
    trunk.load_state_dict({name: weights[name] for name in trunk.state_dict()})
    model = model.eval().requires_grad_(False).to(device)
    size, preprocess = model.visual.image_size, config["preprocess_cfg"]
    with torch.inference_mode():
        width = trunk(torch.zeros(1, 3, *size, device=device)).shape[-1]
    if width != trunk.num_features:
        raise UserError(
            f"{image_tower}: gives {width} features where timm says {trunk.num_features}, which "
            "open_clip's head cannot take; take another tower"
        )
    transform: Callable[[Image.Image], Tensor] = open_clip.transform.image_transform(
        size,
        is_train=False,
        mean=preprocess["mean"],
        std=preprocess["std"],
        interpolation=preprocess["interpolation"],
        resize_mode=preprocess["resize_mode"],
    )
    names = class_names(full)
    head = full.get_classifier()  # type: ignore[operator]
    fits = isinstance(head, nn.Linear) and head.in_features == width and names
    return LockedModel(
        model=model,
        config=config,
        preprocessing=Preprocessing.of(transform),
        tokenizer=tokenizer,
        classifier=head.requires_grad_(False).to(device) if fits else None,
        class_names=names if fits else [],
        device=device,
    )


def save_locked_model(locked: LockedModel, folder: Path, record: dict[str, Any]) -> None:
    """Write an open_clip `local-dir:` folder: configs, half-precision weights, tokenizer, record.

    Statistics (buffers) keep their precision, and so does a weight that halving would make
    infinite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads(json.dumps(locked.config))
    config["model_cfg"]["text_cfg"] |= {
        "hf_model_name": folder.as_posix(),
        "hf_model_pretrained": False,
    }
    text: Any = locked.model.text
    text.config.save_pretrained(folder)
    locked.tokenizer.save_pretrained(folder)
    parameters = {name for name, _ in locked.model.named_parameters()}
    weights = {}
    for name, tensor in locked.model.state_dict().items():
        half = tensor.detach().cpu()
        if name in parameters and bool(half.half().isfinite().all()):
            half = half.half()
        weights[name] = half
    write_json(folder / "training.json", record)
    write_json(folder / "open_clip_config.json", config)
    write_tensors(folder / "open_clip_model.safetensors", weights)


def _config(
    image_tower: nn.Module,
    image_name: str,
    text_tower: str,
    dim: int,
    context_length: int,
    text_config: Any,
) -> dict[str, Any]:
    """The content of `open_clip_config.json`, with which the towers' weights are loaded."""
    settings: dict[str, Any] = image_tower.pretrained_cfg  # type: ignore[assignment]
    return {
        "model_cfg": {
            "embed_dim": dim,
            "vision_cfg": {
                "timm_model_name": image_name,
                "timm_model_pretrained": False,
                "timm_pool": "",
                "timm_proj": "linear",
                "timm_proj_bias": True,
                "image_size": list(settings["input_size"][1:]),
            },
            "text_cfg": {
                "hf_model_name": text_tower,
                "hf_model_pretrained": True,
                "hf_tokenizer_name": "tokenizer",
                "hf_pooler_type": _pooler(text_tower),
                "hf_proj_type": "linear",
                "context_length": context_length,
                "vocab_size": text_config.vocab_size,
            },
        },
        "preprocess_cfg": {
            "mean": list(settings["mean"]),
            "std": list(settings["std"]),
            "interpolation": settings["interpolation"],
            "resize_mode": "shortest",
        },
    }


def _pooler(text_tower: str) -> str:
    """open_clip's pooler for a text tower: what sentence-transformers wrote beside it, or the
    mean over a text's tokens.

    Raises:
        UserError: it was trained with another one than the mean or the first token.
    """
    from transformers.utils import cached_file

    path = cached_file(
        text_tower,
        "1_Pooling/config.json",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return "mean_pooler"
    modes = json.loads(Path(path).read_text(encoding="utf-8"))
    wanted = [name for name, on in modes.items() if name.startswith("pooling_mode_") and on is True]
    if len(wanted) == 1 and wanted[0] in POOLERS:
        return POOLERS[wanted[0]]
    raise UserError(
        f"{text_tower}: pools by {' and '.join(wanted) or 'nothing'}; open_clip has "
        f"{' and '.join(POOLERS)}"
    )
