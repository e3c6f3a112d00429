"""Encoders of the transformers library: from a folder to scored features, equal to their own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from features.encoders.context import Context
from features.encoders.load import load_encoder
from features.encoders.transformers import WholeTransform, image_transform
from features.errors import UserError
from features.space.space import FeatureSpace
from mms_apps.robustness.models import ZeroShot, pixels_of
from tests.tiny_transformers import CLASSES, save_tiny

LONG = "a blue square of a line drawing of a red circle"
TEXTS = ["a red circle", LONG, "", "line"]


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    shapes = [(32, 32, 3), (50, 40, 3), (20, 90, 3), (200, 120, 3)]
    return [Image.fromarray(rng.integers(0, 256, shape, np.uint8)) for shape in shapes]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("transformers")
    return {name: save_tiny(root / name, name) for name in CLASSES}


def by_hand(folder: Path, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit embeddings of the pictures and texts, as transformers' documentation makes them."""
    from transformers import AutoModel, AutoProcessor

    model, processor = (c.from_pretrained(folder) for c in (AutoModel, AutoProcessor))
    # SigLIP 2's processor takes patches of 16 pixels, whatever was saved.
    images = processor.image_processor if name == "siglip2" else processor
    padding = "max_length" if name.startswith("siglip") else True
    texts = processor(
        text=TEXTS, padding=padding, truncation=True, max_length=8, return_tensors="pt"
    )
    texts.pop("token_type_ids", None)
    with torch.no_grad():
        image = model.get_image_features(**images(images=pictures(), return_tensors="pt"))
        text = model.get_text_features(**texts)
    return F.normalize(image.pooler_output), F.normalize(text.pooler_output)


@pytest.mark.parametrize("name", CLASSES)
def test_embeddings_are_those_of_transformers(folders: dict[str, Path], name: str) -> None:
    encoder = load_encoder(f"transformers:{folders[name]}", "cpu")
    image, text = by_hand(folders[name], name)
    torch.testing.assert_close(encoder.encode_images(pictures()), image, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.encode_texts(TEXTS), text, atol=1e-6, rtol=0)
    for number, words in enumerate(TEXTS):  # whatever stands beside it
        alone = encoder.encode_texts([words])[0]
        torch.testing.assert_close(alone, text[number], atol=1e-6, rtol=0)
    assert (image @ image.T < 0.9999).sum() > 2 and (text @ text.T < 0.9999).sum() > 2
    assert encoder.dim == image.shape[1]
    assert encoder.id == f"transformers:{name}"
    assert (encoder.preprocessing.crop is None) == (name == "siglip2")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", CLASSES)
def test_long_texts_are_counted(folders: dict[str, Path], name: str, side: str) -> None:
    tokens = load_encoder(f"transformers:{folders[name]}", "cpu").tokenizer
    tokens.padding_side = tokens.tokenizer.padding_side = side
    seen, cut = Context(tokens).as_seen(TEXTS, tokens(TEXTS))
    assert seen == ["a red circle", "a blue square of a line", "", "line"] and cut == 1


@pytest.mark.parametrize("name", CLASSES)
def test_from_a_folder_to_a_space(
    folders: dict[str, Path], name: str, imagefolder: Path, tmp_path: Path, mms: Callable
) -> None:
    """With another class as the judge; the space finds its encoder again."""
    judge = "clip" if name != "clip" else "siglip2"
    encoder = f"transformers:{folders[name]}"
    options = ("--dictionary", "identity", "--judge", f"transformers:{folders[judge]}")
    command = ("run", "--pairs", imagefolder, "--encoder", encoder, "--out", tmp_path, *options)
    code, _, err = mms(*command)
    assert code == 0, err
    space = FeatureSpace.load(tmp_path / "space", device="cpu", encoder=encoder)
    assert space.config.encoder == f"transformers:{name}" and space.config.judge_independent
    assert np.isfinite(space.features["mds"].to_numpy()).any()
    assert space.encode_images(pictures()).shape == (4, len(space))
    assert str(folders[name]) not in (tmp_path / "space" / "config.json").read_text()


@pytest.mark.parametrize("name", ["clip", "siglip", "align"])
def test_pixels_have_gradients(folders: dict[str, Path], name: str) -> None:
    encoder = load_encoder(f"transformers:{folders[name]}", "cpu")
    model = ZeroShot(encoder, encoder.encode_texts(["a red circle", "a blue line"]))
    pixels = pixels_of(encoder, pictures()).requires_grad_()
    torch.testing.assert_close(model.plain(pixels).detach(), encoder.encode_images(pictures()))
    [gradient] = torch.autograd.grad(model(pixels)[:, 0].sum(), pixels)
    assert (gradient.flatten(1).abs().sum(1) > 0).all()


def test_images_of_any_shape_cannot_be_attacked(folders: dict[str, Path]) -> None:
    encoder = load_encoder(f"transformers:{folders['siglip2']}", "cpu")
    with pytest.raises(UserError, match="one size"):
        pixels_of(encoder, pictures())


@pytest.mark.parametrize("name", CLASSES)
def test_cosines_are_scaled_as_the_model_does(folders: dict[str, Path], name: str) -> None:
    from transformers import AutoModel

    own = AutoModel.from_pretrained(folders[name])
    expected = 1 / own.temperature if name == "align" else own.logit_scale.exp()
    scale = load_encoder(f"transformers:{folders[name]}", "cpu").model.logit_scale
    assert scale.shape == ()
    assert scale.exp().item() == pytest.approx(expected.item())


def changed(folder: Path, file: str, change: Callable[[Any], None]) -> None:
    record = json.loads((folder / file).read_text())
    change(record)
    (folder / file).write_text(json.dumps(record))


def images_of(record: dict[str, Any]) -> dict[str, Any]:
    return record["image_processor"]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("align", {"do_normalize": False}),
        ("align", {"rescale_offset": True, "rescale_factor": 1 / 127.5}),
        ("align", {"include_top": False}),
        ("clip", {"do_normalize": False}),
        ("siglip", {"do_normalize": False}),
        ("clip", {"do_rescale": False, "do_normalize": False}),
    ],
)
def test_processors_that_rescale_or_normalise_otherwise(
    folders: dict[str, Path], tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    shutil.copytree(folders[name], tmp_path / name)
    changed(tmp_path / name, "processor_config.json", lambda c: images_of(c).update(changes))
    encoder = load_encoder(f"transformers:{tmp_path / name}", "cpu")
    image, _ = by_hand(tmp_path / name, name)
    torch.testing.assert_close(encoder.encode_images(pictures()), image, atol=1e-5, rtol=0)
    assert (encoder.preprocessing.crop is None) == ("do_rescale" in changes)


CHANGES: dict[str, tuple[str, Callable[[Any], None]]] = {
    "resampling": ("processor_config.json", lambda c: images_of(c).update(resample=0)),
    "size": (
        "processor_config.json",
        lambda c: images_of(c).update(size={"shortest_edge": 40}),
    ),
    "mean": ("processor_config.json", lambda c: images_of(c).update(image_mean=[0.4, 0.5, 0.5])),
    "heads": ("config.json", lambda c: c["text_config"].update(num_attention_heads=4)),
    "activation": ("config.json", lambda c: c["vision_config"].update(hidden_act="gelu")),
    "capitals": ("tokenizer.json", lambda c: c.update(normalizer={"type": "Lowercase"})),
    "context": ("tokenizer_config.json", lambda c: c.update(model_max_length=7)),
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_fingerprint_holds_all_of_it(
    folders: dict[str, Path], tmp_path: Path, what: str
) -> None:
    file, change = CHANGES[what]
    shutil.copytree(folders["clip"], tmp_path / "other")
    before = load_encoder(f"transformers:{tmp_path}/other", "cpu").fingerprint
    assert before == load_encoder(f"transformers:{folders['clip']}", "cpu").fingerprint
    changed(tmp_path / "other", file, change)
    after = load_encoder(f"transformers:{tmp_path}/other", "cpu").fingerprint
    assert after != before and after.split("-")[0] == before.split("-")[0]


def test_what_cannot_be_cut_is_left_whole(folders: dict[str, Path]) -> None:
    from transformers import AutoModel, AutoProcessor

    processor = AutoProcessor.from_pretrained(folders["clip"])
    config = AutoModel.from_pretrained(folders["clip"]).config

    class Squared:
        image_processor = processor.image_processor

        def __call__(self, **arguments: Any) -> Any:
            made = processor(**arguments)
            made["pixel_values"] = [pixels**2 for pixels in made["pixel_values"]]
            return made

    assert isinstance(image_transform(Squared(), config), WholeTransform)
    assert not isinstance(image_transform(processor, config), WholeTransform)


def no_processor(folder: Path) -> None:
    (folder / "processor_config.json").unlink()


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def one_tower(folder: Path) -> None:
    from transformers import CLIPVisionModel

    CLIPVisionModel.from_pretrained(folder).save_pretrained(folder)


def another_shape(folder: Path) -> None:
    def widen(config: dict[str, Any]) -> None:
        images_of(config).update(crop_size={"height": 40, "width": 40})

    changed(folder, "processor_config.json", widen)


def a_shape_for_each(folder: Path) -> None:
    changed(folder, "processor_config.json", lambda c: images_of(c).update(do_center_crop=False))


def padding_beyond_the_vocabulary(folder: Path) -> None:
    changed(folder, "tokenizer_config.json", lambda c: c.update(pad_token="unheard of"))


def half_the_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    kept = {key: value for key, value in weights.items() if "text" not in key}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def cut_off(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (shutil.rmtree, "cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be loaded"),
        (lambda folder: (folder / "config.json").unlink(), "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be loaded"),
        (cut_off, "cannot be loaded"),
        (no_processor, "no processor"),
        (no_tokenizer, "the same tokens"),
        (one_tower, "embeds no"),
        (half_the_weights, "no weights for"),
        (another_shape, "cannot embed what its processor makes"),
        (a_shape_for_each, "cannot embed what its processor makes"),
        (padding_beyond_the_vocabulary, "cannot embed what its processor makes"),
    ],
)
def test_broken_folders_are_user_errors(
    folders: dict[str, Path], tmp_path: Path, break_it: Callable[[Path], None], message: str
) -> None:
    shutil.copytree(folders["clip"], tmp_path / "broken")
    break_it(tmp_path / "broken")
    with pytest.raises(UserError, match=message):
        load_encoder(f"transformers:{tmp_path}/broken", "cpu")


def test_pickled_code_is_not_run(folders: dict[str, Path], tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "touched",)

    shutil.copytree(folders["clip"], tmp_path / "evil")
    (tmp_path / "evil" / "model.safetensors").unlink()
    torch.save({"weights": Evil()}, tmp_path / "evil" / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_encoder(f"transformers:{tmp_path}/evil", "cpu")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(("written", "revision"), [("org/name@abc", "abc"), ("org/name", None)])
def test_a_revision_is_asked_for(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, written: str, revision: str | None
) -> None:
    from transformers import AutoModel, AutoProcessor

    asked = []
    for cls in (AutoModel, AutoProcessor):
        original = cls.from_pretrained

        def instead(
            place: str, *, original: Any = original, revision: str | None, **others: Any
        ) -> Any:
            asked.append((place, revision))
            return original(folders["clip"], **others)

        monkeypatch.setattr(cls, "from_pretrained", instead)
    assert load_encoder(f"transformers:{written}", "cpu").id == f"transformers:{written}"
    assert asked == [("org/name", revision)] * 2


@pytest.mark.parametrize(
    ("name", "side"), [("clip", 32), ("siglip", 32), ("align", 36), ("siglip2", None)]
)
def test_how_small_a_picture_may_come_follows_the_processor(folders, name, side) -> None:
    encoder = load_encoder(f"transformers:{folders[name]}", device="cpu")
    assert encoder.preprocessing.short_side == side
