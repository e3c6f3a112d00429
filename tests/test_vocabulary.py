"""Tokenizers without words, which libraries make up where files are missing, are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from features.encoders.load import load_encoder
from features.encoders.locked_model import build_locked_model
from features.encoders.two_models import Tokenize, load_two_models
from features.encoders.vocabulary import require_words
from features.errors import UserError
from tests.test_locked_tuning import save_image_tower, save_text_tower
from tests.tiny_transformers import save_tiny, tokenizer

MADE_UP = [
    "CLIPTokenizer",
    "BertTokenizer",
    "GemmaTokenizer",
    "XLMRobertaTokenizer",
    "T5Tokenizer",
    "MBartTokenizer",
    "Qwen2Tokenizer",
]
"""Classes that a tokenizer_config.json may name."""
SAME = "its tokenizer gives all texts the same tokens"


def without_its_words(folder: Path, kind: str = "BertTokenizer") -> Path:
    """The folder with the tokenizer's config alone, as a copy in part leaves it."""
    (folder / "tokenizer.json").unlink()
    config = {"tokenizer_class": kind, "model_max_length": 8, "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("kind", MADE_UP)
def test_open_clip_folders_without_words_are_refused(
    clip_folder: Path, tmp_path: Path, kind: str
) -> None:
    folder = without_its_words(shutil.copytree(clip_folder, tmp_path / "copy"), kind)
    with pytest.raises(UserError, match=f"local-dir:copy: {SAME}; .*tokenizer.json"):
        load_encoder(f"local-dir:{folder}", "cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return {name: save_tiny(root / name, name) for name in ("clip", "siglip")}


@pytest.mark.parametrize("model", ["clip", "siglip"])
@pytest.mark.parametrize("kind", MADE_UP)
def test_transformers_folders_without_words_are_refused(
    tiny: dict[str, Path], tmp_path: Path, model: str, kind: str
) -> None:
    folder = without_its_words(shutil.copytree(tiny[model], tmp_path / "copy"), kind)
    with pytest.raises(UserError, match=f"^transformers:.*copy: {SAME}"):
        load_encoder(f"transformers:{folder}", "cpu")


def test_text_models_without_words_are_refused(tmp_path: Path) -> None:
    image = save_image_tower(tmp_path / "image")
    text = without_its_words(save_text_tower(tmp_path / "text"))
    with pytest.raises(UserError, match=f"text: {SAME}"):
        build_locked_model(str(image), str(text), 4, 10, torch.device("cpu"))
    with pytest.raises(UserError, match=f"text: {SAME}"):
        load_two_models(f"timm:local-dir:{image}+text:{text}")


def of_words(*words: str) -> Callable[[list[str]], torch.Tensor]:
    """A tokenizer that knows whole words alone."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(["<unk>", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return Tokenize(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"))


def of_bytes(kind: str) -> Callable[[list[str]], torch.Tensor]:
    import transformers

    return Tokenize(getattr(transformers, kind)())


def of_open_clip(texts: list[str]) -> torch.Tensor:
    import open_clip

    return open_clip.SimpleTokenizer(context_length=8)(texts)


@pytest.mark.parametrize(
    "tokenize",
    [
        of_open_clip,
        of_bytes("ByT5Tokenizer"),
        of_bytes("CanineTokenizer"),
        Tokenize(tokenizer()),
        of_words("the", "lesion"),
        of_words("的", "猫"),
        of_words("dog", "chien"),
        of_words("C", "N", "O"),
    ],
)
def test_tokenizers_of_words_letters_and_bytes_are_taken(tokenize: Callable) -> None:
    require_words(tokenize, "model")


def test_how_many_unknown_words_a_text_has_says_nothing() -> None:
    with pytest.raises(UserError, match=f"model: {SAME}"):
        require_words(of_words("unheard-of"), "model")
