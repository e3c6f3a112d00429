"""JPEGs that an encoder shrinks are decoded at a scale, and all else is as it was."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageOps

from features.embedded.photos import PhotoPairs
from features.encoders.encoder import Preprocessing
from features.encoders.load import load_encoder
from features.pairs.images import SPARE, UnreadableImage, decode_image
from features.pairs.open import open_pairs
from features.store.content import content_key
from features.store.extract import extract


def photograph(size: tuple[int, int] = (1200, 900), index: int = 3) -> Image.Image:
    photos = PhotoPairs("heldout")
    return photos.image(index).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 90} if kind == "JPEG" else {}) | options)
    return file.getvalue()


def turned(orientation: int, size: tuple[int, int] = (1200, 900)) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encoded(photograph(size), exif=exif.tobytes())


def near(scaled: Image.Image, full: Image.Image) -> bool:
    """Whether both show the same, at the smaller one's size."""
    small = full.resize(scaled.size, Image.Resampling.BOX)
    return float(np.abs(np.asarray(small, float) - np.asarray(scaled, float)).mean()) < 3


@pytest.mark.parametrize(
    ("short_side", "size"),
    [
        (224, (600, 450)),
        (225, (600, 450)),
        (226, (1200, 900)),
        (112, (300, 225)),
        (56, (150, 113)),
        (8, (150, 113)),
        (450, (1200, 900)),
        (2000, (1200, 900)),
        (None, (1200, 900)),
    ],
)
def test_the_scale_keeps_twice_the_side_that_is_needed(short_side, size) -> None:
    content = encoded(photograph())
    image = decode_image(content, short_side)
    assert image.size == size and near(image, decode_image(content))
    assert image.size == (1200, 900) or min(image.size) >= SPARE * short_side


@pytest.mark.parametrize("size", [(2048, 1365), (1365, 2048), (4243, 2828), (1999, 1501)])
def test_the_crop_does_not_move(size: tuple[int, int]) -> None:
    content = encoded(photograph(size))
    scaled = decode_image(content, 224)
    assert scaled.size != size
    long_sides = [int(224 * max(shape) / min(shape)) for shape in (size, scaled.size)]
    assert long_sides[0] == long_sides[1]
    for side, whole in zip(scaled.size, size, strict=True):
        scale = round(whole / side)
        assert abs(scale * side - whole) < scale


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_pictures_stand_upright_at_every_scale(orientation: int) -> None:
    content = turned(orientation)
    full, scaled = decode_image(content), decode_image(content, 224)
    assert full.size == ((1200, 900) if orientation < 5 else (900, 1200))
    assert scaled.size == tuple(side // 2 for side in full.size) and near(scaled, full)


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"progressive": True}),
        ("RGB", {"subsampling": 0}),
        ("L", {}),
        ("L", {"progressive": True}),
        ("CMYK", {}),
    ],
)
def test_every_kind_of_jpeg_is_scaled(mode: str, options: dict) -> None:
    content = encoded(photograph().convert(mode), **options)
    scaled = decode_image(content, 224)
    assert scaled.mode == "RGB" and scaled.size == (600, 450)
    assert near(scaled, decode_image(content))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_other_formats_are_decoded_whole(kind: str) -> None:
    content = encoded(photograph(), kind)
    assert np.array_equal(decode_image(content, 56), decode_image(content))


def test_damaged_jpegs_are_refused_at_every_scale() -> None:
    content = encoded(photograph())
    for end in (len(content) // 2, len(content) - 2000, 40):
        for short_side in (None, 224, 56):
            with pytest.raises(UnreadableImage):
                decode_image(content[:end], short_side)


def test_only_transforms_that_begin_by_resizing_need_fewer_pixels() -> None:
    from open_clip.transform import image_transform
    from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

    end = [ToTensor(), Normalize((0.5,) * 3, (0.5,) * 3)]
    for mode in ("shortest", "longest", "squash"):
        for size in (224, (224, 160)):
            transform = image_transform(size, is_train=False, resize_mode=mode)
            assert Preprocessing.of(transform).short_side == 224
    resized = Preprocessing.of(Compose([Resize(256), CenterCrop(224), *end]))
    cropped = Preprocessing.of(Compose([CenterCrop(224), *end]))
    cropped_first = Preprocessing.of(Compose([CenterCrop(800), Resize(224), *end]))
    assert resized.short_side == 256
    assert cropped.short_side is None and cropped_first.short_side is None
    assert Preprocessing.of(lambda image: torch.zeros(3, 8, 8)).short_side is None


def test_a_jpegs_key_is_that_of_its_coded_picture() -> None:
    image = photograph((300, 200))
    plain = encoded(image)
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "somebody"
    described = encoded(image, exif=exif.tobytes(), comment=b"a holiday", icc_profile=b"x" * 999)
    upright = turned(1, (300, 200))
    keys = {
        name: content_key(decode_image(file), ["a"], file)
        for name, file in {
            "plain": plain,
            "described": described,
            "upright": upright,
            "turned": turned(6, (300, 200)),
            "upside down": turned(3, (300, 200)),
            "coarser": encoded(image, quality=60),
            "other": encoded(photograph((300, 200), index=4)),
        }.items()
    }
    assert plain != described and keys["plain"] == keys["described"] == keys["upright"]
    assert len(set(keys.values())) == 5
    for short_side in (8, 32, None):
        assert content_key(decode_image(plain, short_side), ["a"], plain) == keys["plain"]
    assert content_key(image, ["b"], plain) != keys["plain"]


def test_other_pictures_keys_are_of_pixels() -> None:
    image = photograph((300, 200))
    key = content_key(image, ["a"])
    for kind, options in (("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})):
        file = encoded(image, kind, **options)
        assert content_key(decode_image(file, 8), ["a"], file) == key
    assert content_key(ImageOps.flip(image), ["a"]) != key


def test_extracted_embeddings_are_near_those_of_whole_pictures(
    clip_folder: Path, tmp_path: Path, monkeypatch
) -> None:
    encoder = load_encoder(f"local-dir:{clip_folder}", device="cpu")
    side = encoder.preprocessing.short_side
    assert side is not None
    folder = tmp_path / "pairs"
    folder.mkdir()
    rows = ["file_name,text"]
    for index in range(6):
        size = (8 * side, 6 * side + index)
        (folder / f"{index}.jpg").write_bytes(encoded(photograph(size, index)))
        rows.append(f"{index}.jpg,picture {index}")
    (folder / "metadata.csv").write_text("\n".join(rows), encoding="utf-8")
    sizes = []
    crop = Preprocessing.pixels_of

    def watched(self: Preprocessing, image: Image.Image) -> torch.Tensor:
        sizes.append(image.size)
        return crop(self, image)

    monkeypatch.setattr(Preprocessing, "pixels_of", watched)
    scaled = extract(open_pairs(str(folder)), encoder, tmp_path / "scaled", workers=0)
    monkeypatch.undo()
    assert {width for width, _ in sizes} == {4 * side}
    images = [decode_image((folder / f"{index}.jpg").read_bytes()) for index in range(6)]
    whole = encoder.encode_images(images)
    found = scaled.rows(torch.arange(6))[0].float()
    assert F.cosine_similarity(found, whole).min() > 0.99
    contents = scaled.sample_rows(list(range(6)), ["content"])["content"].to_pylist()
    shutil.rmtree(tmp_path / "scaled")
    object.__setattr__(encoder.preprocessing, "short_side", None)
    full = extract(open_pairs(str(folder)), encoder, tmp_path / "scaled", workers=0)
    assert full.sample_rows(list(range(6)), ["content"])["content"].to_pylist() == contents
    assert F.cosine_similarity(full.rows(torch.arange(6))[0].float(), whole).min() > 0.9999
