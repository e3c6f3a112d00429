"""The text tower of a small open_clip model as the text encoder of a diffusers pipeline."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def clip_text_model(model: torch.nn.Module, text_cfg: dict[str, Any]) -> CLIPTextModel:
    """The transformers twin of an open_clip `CLIP`'s text tower: equal last hidden states.

    Args:
        model: of the plain CLIP architecture, with GELU.
        text_cfg: as open_clip_config.json has it.
    """
    config = CLIPTextConfig(
        vocab_size=text_cfg["vocab_size"],
        hidden_size=text_cfg["width"],
        intermediate_size=4 * text_cfg["width"],
        num_hidden_layers=text_cfg["layers"],
        num_attention_heads=text_cfg["heads"],
        max_position_embeddings=text_cfg["context_length"],
        hidden_act="gelu",
        eos_token_id=text_cfg["vocab_size"] - 1,
        bos_token_id=text_cfg["vocab_size"] - 2,
        pad_token_id=text_cfg["vocab_size"] - 1,
        layer_norm_eps=1e-5,
    )
    twin = CLIPTextModel(config)
    source = {key: value.float() for key, value in model.state_dict().items()}
    expected = twin.state_dict()
    found = _converted(source, text_cfg["layers"])
    prefix = "text_model." if any(key.startswith("text_model.") for key in expected) else ""
    twin.load_state_dict({prefix + key: value for key, value in found.items()}, strict=False)
    missing = (
        expected.keys() - {prefix + key for key in found} - {f"{prefix}embeddings.position_ids"}
    )
    if missing:
        raise ValueError(f"no weights for {', '.join(sorted(missing))}")
    return twin.eval()


def _converted(source: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    found = {
        "embeddings.token_embedding.weight": source["token_embedding.weight"],
        "embeddings.position_embedding.weight": source["positional_embedding"],
        "final_layer_norm.weight": source["ln_final.weight"],
        "final_layer_norm.bias": source["ln_final.bias"],
    }
    for layer in range(layers):
        ours, theirs = f"transformer.resblocks.{layer}.", f"encoder.layers.{layer}."
        for end in ("weight", "bias"):
            for name, other in BLOCK.items():
                found[f"{theirs}{other}.{end}"] = source[f"{ours}{name}.{end}"]
            joined = source[f"{ours}attn.in_proj_{end}"].chunk(3)
            for name, part in zip(("q_proj", "k_proj", "v_proj"), joined, strict=True):
                found[f"{theirs}self_attn.{name}.{end}"] = part
    return found
