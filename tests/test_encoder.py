import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms import Compose, PILToTensor

from features.encoders.encoder import Preprocessing
from features.encoders.load import load_encoder
from features.errors import UserError
from tests.conftest import save_tiny_clip


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def test_embeddings_are_those_of_open_clip(clip_folder: Path) -> None:
    encoder = load_encoder(f"local-dir:{clip_folder}", "cpu")
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{clip_folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{clip_folder}")
    model.eval()
    images, texts = [noise(32, 32), noise(50, 40)], ["a red circle", "a blue square " * 9]
    with torch.no_grad():
        image = model.encode_image(torch.stack([transform(i) for i in images]), normalize=True)
        text = model.encode_text(tokenizer(texts), normalize=True)
    assert torch.allclose(encoder.encode_images(images), image, atol=1e-5)
    assert torch.allclose(encoder.encode_texts(texts), text, atol=1e-5)
    assert encoder.dim == 16 == image.shape[1]


def test_batch_norm_uses_and_keeps_its_statistics(clip_folder: Path) -> None:
    encoder = load_encoder(f"local-dir:{clip_folder}", "cpu")
    before = encoder.fingerprint
    alone = encoder.encode_images([noise(32, 32)])
    beside = encoder.encode_images([noise(32, 32), noise(40, 32)])
    assert torch.allclose(alone[0], beside[0], atol=1e-5)
    assert load_encoder(f"local-dir:{clip_folder}", "cpu").fingerprint == before
    del encoder.__dict__["fingerprint"]
    assert encoder.fingerprint == before


def test_fingerprint_follows_the_weights(clip_folder: Path, tmp_path: Path) -> None:
    save_tiny_clip(tmp_path / "other", seed=1)
    one = load_encoder(f"local-dir:{clip_folder}", "cpu")
    other = load_encoder(f"local-dir:{tmp_path}/other", "cpu")
    assert one.fingerprint != other.fingerprint


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [24, (20, 28)])
def test_preprocessing_equals_the_transform(resize_mode: str, size) -> None:
    transform = image_transform_v2(PreprocessCfg(size=size, resize_mode=resize_mode), False)
    preprocessing = Preprocessing.of(transform)
    assert preprocessing.crop is not None
    height, width = (size, size) if isinstance(size, int) else size
    assert preprocessing.untouched in ((width, height), None)
    images = [noise(width, height), noise(60, 40), noise(25, 90), noise(10, 10)]
    pixels = preprocessing.pixels(images)
    assert pixels.dtype == torch.uint8
    expected = torch.stack([transform(image) for image in images])
    assert torch.allclose(preprocessing.normalise(pixels), expected, rtol=0, atol=1e-6)


def test_preprocessing_of_an_unknown_transform_is_left_whole() -> None:
    preprocessing = Preprocessing.of(Compose([PILToTensor()]))
    pixels = preprocessing.pixels([noise(8, 8)])
    assert preprocessing.crop is None
    assert preprocessing.normalise(pixels).shape == (1, 3, 8, 8)


def test_ids_hold_no_absolute_path(clip_folder: Path, monkeypatch) -> None:
    assert load_encoder(f"local-dir:{clip_folder}", "cpu").id == "local-dir:tiny"
    monkeypatch.chdir(clip_folder.parent)
    assert load_encoder("local-dir:./tiny", "cpu").id == "local-dir:tiny"
    monkeypatch.chdir(clip_folder.parent.parent)
    relative = f"{clip_folder.parent.name}/tiny"
    assert load_encoder(f"local-dir:{relative}", "cpu").id == f"local-dir:{relative}"


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(UserError, match="ViT-B-32/laion2b"):
        load_encoder("ViT-B-32/laion2b", "cpu")
    with pytest.raises(UserError, match="ViT-B-32/openai"):
        load_encoder("vit-b-32", "cpu")
    with pytest.raises(UserError, match="embedded-ssl"):
        load_encoder("embeded-ssl", "cpu")


def test_download_failures_are_user_errors(monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("open_clip.factory.download_pretrained_from_hf", fail)
    monkeypatch.setattr("open_clip.factory.download_pretrained", fail)
    for name in ("hf-hub:org/name", "RN50/openai"):
        with pytest.raises(UserError, match=r"no route to host.*network"):
            load_encoder(name, "cpu")


def test_broken_folders_are_user_errors(clip_folder: Path, tmp_path: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match):
            load_encoder(f"local-dir:{folder}", "cpu")

    folder = tmp_path / "copy"
    refused("no open_clip_config.json")
    shutil.copytree(clip_folder, folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    (folder / "open_clip_config.json").write_text(json.dumps(config["model_cfg"]))
    refused("no model_cfg")
    config["model_cfg"]["embed_dim"] = 8
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    refused("belong together")
    (folder / "open_clip_model.safetensors").unlink()
    refused("no weights")
