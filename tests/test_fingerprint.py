"""Equal fingerprints mean equal embeddings, wherever and however they are made."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import nn
from torchvision import transforms as T

from features.encoders.encoder import Encoder
from features.encoders.fingerprint import SEPARATOR, encoder_fingerprint, same_encoder
from features.encoders.load import load_encoder
from features.errors import UserError
from features.pairs.open import open_pairs
from features.space.space import FeatureSpace
from features.store.extract import extract

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "layers": 1, "width": 64, "head_width": 32},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def changed_config(folder: Path, change: Callable[[dict], None]) -> None:
    config = json.loads((folder / "open_clip_config.json").read_text())
    change(config)
    (folder / "open_clip_config.json").write_text(json.dumps(config))


def changed_tokenizer(folder: Path, change: Callable[[dict], None]) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))


def swap_words(content: dict) -> None:
    words = content["model"]["vocab"]
    words["line"], words["of"] = words["of"], words["line"]


FOLDERS: dict[str, Callable[[Path], None]] = {
    "mean": lambda f: changed_config(f, lambda c: c["preprocess_cfg"].update(mean=[0.4, 0.5, 0.5])),
    "std": lambda f: changed_config(f, lambda c: c["preprocess_cfg"].update(std=[0.27, 0.26, 0.3])),
    "interpolation": lambda f: changed_config(
        f, lambda c: c["preprocess_cfg"].update(interpolation="bilinear")
    ),
    "resize mode": lambda f: changed_config(
        f, lambda c: c["preprocess_cfg"].update(resize_mode="squash")
    ),
    "QuickGELU": lambda f: changed_config(f, lambda c: c["model_cfg"].update(quick_gelu=True)),
    "heads": lambda f: changed_config(f, lambda c: c["model_cfg"]["text_cfg"].update(heads=4)),
    "causal": lambda f: changed_config(
        f, lambda c: c["model_cfg"]["text_cfg"].update(no_causal_mask=True)
    ),
    "pooling": lambda f: changed_config(
        f, lambda c: c["model_cfg"]["text_cfg"].update(pool_type="last")
    ),
    "cleaning": lambda f: changed_config(
        f, lambda c: c["model_cfg"]["text_cfg"].update(tokenizer_kwargs={"clean": "lower"})
    ),
    "vocabulary": lambda f: changed_tokenizer(f, swap_words),
    "capitals": lambda f: changed_tokenizer(
        f, lambda c: c.update(normalizer={"type": "Lowercase"})
    ),
    "accents": lambda f: changed_tokenizer(
        f, lambda c: c.update(normalizer={"type": "StripAccents"})
    ),
    "word ends": lambda f: changed_tokenizer(
        f, lambda c: c.update(pre_tokenizer={"type": "WhitespaceSplit"})
    ),
    "end token": lambda f: changed_tokenizer(
        f, lambda c: c["post_processor"].update(single=[{"Sequence": {"id": "A", "type_id": 0}}])
    ),
}


@pytest.mark.parametrize("what", FOLDERS)
def test_same_weights_are_not_the_same_encoder(clip_folder: Path, tmp_path: Path, what) -> None:
    shutil.copytree(clip_folder, tmp_path / "other")
    FOLDERS[what](tmp_path / "other")
    one = load_encoder(f"local-dir:{clip_folder}", "cpu").fingerprint
    other = load_encoder(f"local-dir:{tmp_path}/other", "cpu").fingerprint
    assert one != other and not same_encoder(one, other)
    assert one.split(SEPARATOR)[0] == other.split(SEPARATOR)[0]


def test_where_it_lies_changes_nothing(clip_folder: Path, tmp_path: Path) -> None:
    """Another folder, another process with other hashes, in another working directory."""
    here = load_encoder(f"local-dir:{clip_folder}", "cpu")
    here.encode_texts(["a red circle"])
    shutil.copytree(clip_folder, tmp_path / "a copy")
    program = "import sys; from features.encoders.load import load_encoder; "
    program += "print(load_encoder(sys.argv[1], 'cpu').fingerprint)"
    found = subprocess.run(
        [sys.executable, "-c", program, f"local-dir:{tmp_path}/a copy"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == here.fingerprint


@pytest.fixture(scope="module")
def parts() -> tuple[nn.Module, Callable, SimpleTokenizer]:
    torch.manual_seed(0)
    transform = image_transform_v2(PreprocessCfg(size=32), False)
    return CLIP(**CONFIG).eval(), transform, SimpleTokenizer(context_length=8)


def test_every_part_of_an_encoder_counts(parts) -> None:
    model, transform, tokenizer = parts
    quick = copy.deepcopy(CONFIG) | {"quick_gelu": True}
    heads = copy.deepcopy(CONFIG)
    heads["vision_cfg"]["head_width"] = 16
    eps = copy.deepcopy(model)
    eps.ln_final.eps = 1e-3
    models = [CLIP(**quick), CLIP(**heads), eps]
    for each in models:
        each.load_state_dict(model.state_dict())
    merges = SimpleTokenizer(context_length=8)
    merges.bpe_ranks = {pair: -rank for pair, rank in reversed(merges.bpe_ranks.items())}
    crop = [T.CenterCrop(32), T.ToTensor()]
    others = [
        *((each, transform, tokenizer) for each in models),
        (model, T.Compose([T.Resize(32), *crop]), tokenizer),
        (model, T.Compose([T.Resize(40), *crop]), tokenizer),
        (model, T.Compose([T.Resize(32, T.InterpolationMode.NEAREST), *crop]), tokenizer),
        (model, T.Compose([T.Resize(32), *crop, T.Lambda(lambda x: x.flip(2))]), tokenizer),
        (model, T.Compose([T.Resize(32), *crop, T.Lambda(lambda x: x.flip(1))]), tokenizer),
        (model, lambda image: transform(image).flip(0), tokenizer),
        (model, lambda image: transform(image.rotate(90)), tokenizer),
        (model, transform, SimpleTokenizer(context_length=9)),
        (model, transform, SimpleTokenizer(context_length=8, clean="canonicalize")),
        (model, transform, merges),
        (model, transform, lambda texts: tokenizer([text[::-1] for text in texts])),
    ]
    prints = [encoder_fingerprint(*each) for each in (parts, *others)]
    assert len(set(prints)) == len(prints)


def test_modes_do_not_count(parts) -> None:
    model, transform, tokenizer = parts
    one = encoder_fingerprint(model, transform, tokenizer)
    again = copy.deepcopy(model).train().requires_grad_(True)
    again.transformer.grad_checkpointing = True
    again.some_new_switch = None
    assert encoder_fingerprint(again, transform, SimpleTokenizer(context_length=8)) == one


def test_a_store_of_other_preprocessing_is_not_gone_on_with(
    imagefolder: Path, clip_folder: Path, tmp_path: Path
) -> None:
    source = open_pairs(str(imagefolder))
    one = load_encoder(f"local-dir:{clip_folder}", "cpu")
    extract(source, one, tmp_path / "s", workers=0, progress=False)
    dark = T.Compose([*one.preprocessing.transform.transforms[:-1], T.Normalize(0.9, 0.1)])
    other = Encoder(one.id, one.model, dark, one.tokenizer)
    image = [Image.new("RGB", (32, 32), "red")]
    assert not torch.allclose(one.encode_images(image), other.encode_images(image), atol=1e-3)
    with pytest.raises(UserError, match="another encoder"):
        extract(source, other, tmp_path / "s", workers=0, progress=False)


def test_what_an_earlier_version_made_is_taken_with_a_warning(parts) -> None:
    new = encoder_fingerprint(*parts)
    old = new.split(SEPARATOR)[0]
    with pytest.warns(UserWarning, match="version 0.1.0"):
        assert same_encoder(new, old)
    with pytest.warns(UserWarning, match="make it again"):
        assert same_encoder(old, new)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same_encoder(new, new) and same_encoder(old, old)
        assert not same_encoder(new, "0" * 64)
        assert not same_encoder(new, old + SEPARATOR + "0" * 64)
        assert not same_encoder(new, "") and not same_encoder("", old)
        assert not same_encoder("mine", "mine-2")  # somebody's own names


@pytest.mark.parametrize("name", ["embedded", "embedded-ssl"])
def test_the_shipped_spaces_know_their_encoders(name: str) -> None:
    space = FeatureSpace.load(name, device="cpu")
    assert space.encoder.fingerprint == space.config.encoder_fingerprint
    assert space.dictionary.config.encoder_fingerprint == space.config.encoder_fingerprint
    judge = load_encoder(space.config.judge, "cpu")
    assert judge.fingerprint == space.config.judge_fingerprint
