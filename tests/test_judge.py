"""A judge of two models: a timm image model and a transformers text model, from local folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from features.encoders.load import load_encoder
from features.errors import UserError
from features.pairs.open import open_pairs
from features.space.score import score
from features.store.extract import extract
from features.store.store import ActivationStore
from tests.test_space import axes, make_store


@pytest.fixture(scope="module")
def judge_id(tmp_path_factory: pytest.TempPathFactory) -> str:
    import timm
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("judge")
    image, text = folder / "image", folder / "text"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=5)
        bert = BertModel(
            BertConfig(
                vocab_size=20,
                hidden_size=24,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=32,
            )
        )
    image.mkdir()
    save_file(model.state_dict(), image / "model.safetensors")
    config = {"architecture": "test_resnet", "num_classes": 5, "pretrained_cfg": model.default_cfg}
    (image / "config.json").write_text(json.dumps(config))
    words = ["<pad>", "<unk>", "a", "red", "green", "circle", "square", "line", "one", "the"]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>").save_pretrained(text)
    bert.save_pretrained(text)
    return f"timm:local-dir:{image}+text:{text}"


def test_each_model_gives_its_own_embeddings(judge_id: str) -> None:
    judge = load_encoder(judge_id, device="cpu")
    assert judge.id == "timm:local-dir:image+text:text"
    assert not judge.shared_space
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    images = judge.encode_images([Image.fromarray(noise), Image.new("RGB", (30, 50), "red")])
    texts = judge.encode_texts(["a red circle", "a"])
    assert images.shape == texts.shape == (2, judge.dim)
    torch.testing.assert_close(images.norm(dim=1), torch.ones(2))
    alone = judge.encode_texts(["a"])
    torch.testing.assert_close(texts[1:], alone)  # what fills up a text changes nothing


def test_the_judge_scores_all_but_the_cross_modal_score(
    judge_id: str, clip_folder: Path, imagefolder: Path, tmp_path: Path
) -> None:
    pairs = open_pairs(str(imagefolder))
    encoder = load_encoder(f"local-dir:{clip_folder}", device="cpu")
    store = extract(pairs, encoder, tmp_path / "store", workers=0, progress=False)
    judge = load_encoder(judge_id, device="cpu")
    judged = extract(pairs, judge, tmp_path / "judge", workers=0, progress=False)
    assert not ActivationStore.open(judged.path).config.shared_space
    dictionary = axes(encoder.fingerprint)
    space = score(store, dictionary, judged, progress=False, min_pairs=2)
    assert space.config.judge == judge.id and space.config.judge_independent
    assert np.isfinite(space.features["ms_image"].to_numpy()).any()
    assert np.isfinite(space.features["ms_text"].to_numpy()).any()
    assert np.isnan(space.features["ms_cross"].to_numpy()).all()
    assert space.config.floors["ms_cross"] is None


def test_an_image_model_alone_is_refused() -> None:
    with pytest.raises(UserError, match="name a text model too"):
        load_encoder("timm:resnet18")


@pytest.mark.parametrize("end", ["+text:/nowhere", ""])
def test_a_model_that_cannot_be_loaded_is_named(judge_id: str, end: str) -> None:
    image, _, text = judge_id.partition("+text:")
    wrong = image + end if end else f"timm:local-dir:/nowhere+text:{text}"
    with pytest.raises(UserError, match="nowhere: cannot be loaded"):
        load_encoder(wrong, device="cpu")


def test_stores_made_before_judges_are_of_one_space(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    record = json.loads((store.path / "config.json").read_text())
    del record["shared_space"]
    (store.path / "config.json").write_text(json.dumps(record))
    assert ActivationStore.open(store.path).config.shared_space
