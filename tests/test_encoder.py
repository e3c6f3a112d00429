import io
import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms import Compose, PILToTensor

from features.distributed import resolve_device
from features.encoders.encoder import Encoder, Preprocessing, pictures_of
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


@pytest.fixture(scope="module")
def encoder(clip_folder: Path) -> Encoder:
    return load_encoder(f"local-dir:{clip_folder}", "cpu")


ARRAY = np.zeros((8, 9, 3), np.uint8)


@pytest.mark.parametrize(
    "one",
    [
        ARRAY,
        ARRAY[:, :, 0],
        ARRAY / 255,
        torch.zeros(3, 8, 9),
        torch.zeros(8, 9),
        Image.new("RGB", (9, 8)),
        "a.png",
        Path("a.png"),
        io.BytesIO(),
        b"",
        None,
        3,
    ],
)
def test_one_picture_alone_is_one(one: Any) -> None:
    [found] = pictures_of(one)
    assert found is one


@pytest.mark.parametrize(
    "several",
    [
        np.stack([ARRAY] * 2),
        torch.zeros(2, 3, 8, 9),
        [ARRAY, ARRAY],
        (torch.zeros(3, 8, 9), Path("a.png")),
        np.array(["a.png", "b.png"]),
        np.array([Path("a.png"), "b.png"], dtype=object),
        (name for name in ("a.png", "b.png")),
    ],
)
def test_several_pictures_are_several(several: Any) -> None:
    assert len(pictures_of(several)) == 2


def test_one_array_or_tensor_is_one_picture(encoder: Encoder) -> None:
    array = np.asarray(noise(40, 20))
    expected = encoder.encode_images([array])
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    for one in (array, tensor, array[:, ::-1][:, ::-1], noise(40, 20)):
        torch.testing.assert_close(encoder.encode_images(one), expected)
    for several in (np.stack([array] * 3), torch.stack([tensor] * 3), [array, tensor, array]):
        found = encoder.encode_images(several)
        torch.testing.assert_close(found, expected.expand(3, -1), atol=1e-5, rtol=0)


def test_open_files_are_pictures(encoder: Encoder) -> None:
    file = io.BytesIO()
    noise(40, 20).save(file, "PNG")
    expected = encoder.encode_images([noise(40, 20)])
    for form in (file, [file]):
        file.seek(0)
        torch.testing.assert_close(encoder.encode_images(form), expected)
    with pytest.raises(UserError, match="unreadable image"):
        encoder.encode_images([io.BytesIO(b"no picture")])


def test_of_nothing_there_are_no_embeddings(encoder: Encoder) -> None:
    for found in (encoder.encode_texts([]), encoder.encode_images([])):
        assert found.shape == (0, encoder.dim) and found.dtype == torch.float32


@pytest.mark.parametrize("text", [None, float("nan"), 3, b"a", ["a"], {"text": "a"}])
def test_what_is_no_text_is_said_with_its_place(encoder: Encoder, text: Any) -> None:
    with pytest.raises(UserError, match=r"text 2 is .*; give strings"):
        encoder.encode_texts(["a", "b", text])
    if not isinstance(text, list):
        with pytest.raises(UserError, match="text 0 is"):
            encoder.encode_texts(text)


def test_texts_in_any_sequence_are_taken(encoder: Encoder) -> None:
    texts = ["a red circle", "a line"]
    expected = encoder.encode_texts(texts)
    for form in (tuple(texts), np.array(texts), np.array(texts, dtype=object), iter(texts)):
        torch.testing.assert_close(encoder.encode_texts(form), expected)


def test_batch_norm_uses_and_keeps_its_statistics(clip_folder: Path) -> None:
    encoder = load_encoder(f"local-dir:{clip_folder}", "cpu")
    before = encoder.fingerprint
    alone = encoder.encode_images([noise(32, 32)])
    beside = encoder.encode_images([noise(32, 32), noise(40, 32)])
    assert torch.allclose(alone[0], beside[0], atol=1e-5)
    assert load_encoder(f"local-dir:{clip_folder}", "cpu").fingerprint == before
    del encoder.__dict__["fingerprint"]
    assert encoder.fingerprint == before


def test_a_model_stays_on_its_device(encoder: Encoder) -> None:
    parts = encoder.preprocessing.transform, encoder.tokenizer
    elsewhere = deepcopy(encoder.model).to("meta")
    assert Encoder("own", elsewhere, *parts).device.type == "meta"
    assert Encoder("own", encoder.model, *parts, "auto").device == resolve_device("auto")
    with pytest.raises(UserError, match="device cuda:99"):
        Encoder("own", encoder.model, *parts, "cuda:99")


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
    for folder in (f"local-dir:{clip_folder}", clip_folder):
        assert load_encoder(folder, "cpu").id == "local-dir:tiny"
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
    for wrong in ([1], {"model_cfg": None}, {"model_cfg": {"embed_dim": 16}}):
        (folder / "open_clip_config.json").write_text(json.dumps(wrong))
        refused("no model_cfg")
    config["model_cfg"]["embed_dim"] = 8
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    refused("belong together")
    (folder / "open_clip_model.safetensors").unlink()
    refused("no weights")


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize("values", [[0.5, 0.5], [0.5] * 4])
def test_a_normalisation_of_other_channels_is_refused(
    clip_folder: Path, tmp_path: Path, name: str, values: list[float]
) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "copy")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"][name] = values
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"by {len(values)} numbers.*preprocess_cfg"):
        load_encoder(f"local-dir:{folder}", "cpu")


def test_a_model_that_embeds_nothing_is_refused_as_it_is_loaded(
    clip_folder: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    for name, message in (("nan", "embeddings of texts are not finite"), ("context", "embed")):
        folder = shutil.copytree(clip_folder, tmp_path / name)
        if name == "nan":
            weights = load_file(folder / "open_clip_model.safetensors")
            weights["text_projection"][0, 0] = float("nan")
            save_file(weights, folder / "open_clip_model.safetensors")
        else:  # a tokenizer with words beyond the model's
            tokenizer = json.loads((folder / "tokenizer.json").read_text())
            tokenizer["model"]["vocab"]["a"] = 999
            (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        with pytest.raises(UserError, match=message):
            load_encoder(f"local-dir:{folder}", "cpu")


def test_the_folder_of_a_model_is_found(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(clip_folder, tmp_path / "clip")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_encoder("local-dir:~/clip", "cpu").dim == 16
    for name in ("~/clip", str(tmp_path / "clip"), "transformers:~/clip"):
        with pytest.raises(UserError, match=f"give local-dir:{tmp_path}/clip"):
            load_encoder(name, "cpu")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=f"give transformers:{tmp_path}/other"):
        load_encoder("local-dir:~/other", "cpu")


@pytest.fixture(scope="module")
def small_architecture(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a small architecture that open_clip knows from here on."""
    folder = tmp_path_factory.mktemp("architectures")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8},
        "text_cfg": {
            "context_length": 8,
            "vocab_size": 49408,
            "width": 16,
            "heads": 2,
            "layers": 1,
        },
    }
    (folder / "small-B-32.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    return "small-B-32"


def plain(state: dict) -> dict:
    return state


def as_the_trainer_writes(state: dict) -> dict:
    wrapped = {f"module.{key}": value for key, value in state.items()}
    return {"epoch": 1, "name": "run", "state_dict": wrapped, "optimizer": {"state": {}}}


@pytest.mark.parametrize("form", [plain, as_the_trainer_writes])
@pytest.mark.parametrize("written", ["small-B-32", "small-B/32"])
def test_an_architecture_with_a_checkpoint(
    small_architecture: str, tmp_path: Path, monkeypatch, form, written: str
) -> None:
    torch.manual_seed(0)
    model = open_clip.create_model(small_architecture)
    (tmp_path / "runs").mkdir()
    torch.save(form(model.state_dict()), tmp_path / "runs" / "epoch_1.pt")
    encoder = load_encoder(f"{written}/{tmp_path}/runs/epoch_1.pt", "cpu")
    assert encoder.id == "small-B-32/epoch_1.pt"
    tokens = encoder.tokenize(["a red circle"])
    with torch.no_grad():
        expected = model.eval().encode_text(tokens, normalize=True)
    assert torch.allclose(encoder.encode_token_tensors(tokens), expected, atol=1e-6)
    monkeypatch.chdir(tmp_path)
    relative = load_encoder(f"{written}/runs/epoch_1.pt", "cpu")
    assert relative.id == "small-B-32/runs/epoch_1.pt"
    assert relative.fingerprint == encoder.fingerprint


def test_a_checkpoint_that_is_no_checkpoint(small_architecture: str, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "touched",)

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("no weights")
    for name in ("evil", "other", "text"):
        with pytest.raises(UserError, match=r"cannot be loaded.*weights of a small-B-32"):
            load_encoder(f"{small_architecture}/{tmp_path}/{name}.pt", "cpu")
    assert not (tmp_path / "touched").exists()
    with pytest.raises(UserError, match="no file"):
        load_encoder(f"{small_architecture}/{tmp_path}/nowhere.pt", "cpu")
    with pytest.raises(UserError, match=r"no architecture.*ViT-B-32"):
        load_encoder("ViT-B32/other.pt", "cpu")


def test_a_revision_of_the_hub(clip_folder: Path, monkeypatch) -> None:
    asked = []

    def download(repository: str, *, revision: str, allow_patterns: list[str]) -> str:
        asked.append((repository, revision))
        return str(clip_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    encoder = load_encoder("hf-hub:org/name@abc", "cpu")
    assert encoder.id == "hf-hub:org/name@abc" and asked == [("org/name", "abc")]
    assert encoder.fingerprint == load_encoder(f"local-dir:{clip_folder}", "cpu").fingerprint

    def fail(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(UserError, match=r"org/name@abc.*no route to host.*revision"):
        load_encoder("hf-hub:org/name@abc", "cpu")
