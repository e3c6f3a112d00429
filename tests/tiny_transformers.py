"""Small random models of transformers' classes with their processors, saved as folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

WORDS = ["<pad>", "<unk>", "<start>", "a", "red", "green", "blue", "yellow", "purple"]
WORDS += ["circle", "square", "line", "drawing", "of", "<end>"]
TEXT = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 8,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": len(WORDS) - 1,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def tokenizer(**settings: Any) -> Any:
    """A word-level tokenizer with 8 places."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(WORDS)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", len(WORDS) - 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        model_max_length=8,
        **settings,
    )


def clip() -> tuple[Any, Any]:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    config = CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return CLIPModel(config), CLIPProcessor(images, tokenizer())


def siglip() -> tuple[Any, Any]:
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel, SiglipProcessor

    config = SiglipConfig(text_config=TEXT, vision_config=VISION)
    images = SiglipImageProcessor(size={"height": 32, "width": 32})
    return SiglipModel(config), SiglipProcessor(images, tokenizer(model_input_names=["input_ids"]))


def siglip2() -> tuple[Any, Any]:
    from transformers import Siglip2Config, Siglip2ImageProcessor, Siglip2Model, Siglip2Processor

    vision = {key: value for key, value in VISION.items() if key != "image_size"}
    config = Siglip2Config(text_config=TEXT, vision_config=vision | {"num_patches": 16})
    images = Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    return Siglip2Model(config), Siglip2Processor(images, tokenizer())


def align() -> tuple[Any, Any]:
    from transformers import AlignConfig, AlignModel, AlignProcessor, EfficientNetImageProcessor

    vision = {
        "image_size": 32,
        "kernel_sizes": [3, 3],
        "in_channels": [32, 16],
        "out_channels": [16, 16],
        "strides": [1, 2],
        "num_block_repeats": [1, 1],
        "expand_ratios": [1, 2],
        "depthwise_padding": [],
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
        "hidden_dim": 16,
    }
    config = AlignConfig(
        text_config=TEXT, vision_config=vision, projection_dim=16, temperature_init_value=0.1
    )
    images = EfficientNetImageProcessor(
        size={"height": 36, "width": 36},
        do_center_crop=True,
        crop_size={"height": 32, "width": 32},
        include_top=True,
    )
    return AlignModel(config), AlignProcessor(images, tokenizer())


CLASSES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "clip": clip,
    "siglip": siglip,
    "siglip2": siglip2,
    "align": align,
}


def save_tiny(folder: Path, name: str) -> Path:
    """Save a random model of a class, and its processor."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, processor = CLASSES[name]()
    for parameter in model.parameters():  # else texts hardly differ
        if parameter.ndim == 2:
            parameter.data.mul_(4)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
