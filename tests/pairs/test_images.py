"""The one decoder, and that every way in for a picture goes through it."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from features.errors import UserError
from features.pairs.images import UnreadableImage, decode_image, file_content, read_image, rgb
from tests.pairs.reading import png


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (np.array([[0, 65_535]], np.uint16), [0, 255]),
        (np.array([[0, 200]], np.uint16), [0, 1]),
        (np.array([[0, 128, 255]], np.int32), [0, 128, 255]),
        (np.array([[0, 65_535]], np.int32), [0, 255]),
        (np.array([[-5, 2**31 - 1]], np.int32), [0, 255]),
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 128.0, 255.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 32_768.0, 65_535.0]], np.float32), [0, 128, 255]),
        (np.array([[np.nan, np.inf, -np.inf, 0.5]], np.float32), [0, 255, 0, 128]),
        (np.array([[0.0, 0.5, 1.0001]], np.float32), [0, 127, 255]),
        (np.array([[0.0, 1.0, 2.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 150.0, 300.0]], np.float32), [0, 128, 255]),
        (np.array([[0, 150, 300]], np.int32), [0, 128, 255]),
        (np.array([[0.0, 4095.0]], np.float32), [0, 255]),
        (np.array([[0, 70_000]], np.int32), [0, 255]),
        (np.array([[0.0, 0.01]], np.float32), [0, 3]),
        (np.array([[0, 9]], np.int32), [0, 9]),
        (np.array([[0.0, 64.0]], np.float32), [0, 64]),
        (np.array([[0.0, 0.0]], np.float32), [0, 0]),
    ],
)
def test_wide_samples_keep_their_range(samples: np.ndarray, expected: list[int]) -> None:
    image = Image.fromarray(samples)
    assert np.asarray(rgb(image))[0, :, 0].tolist() == expected
    if image.mode == "F" or samples.dtype == np.uint16:
        tiff = decode_image(encoded(image, "TIFF"))
        assert np.asarray(tiff)[0, :, 1].tolist() == expected


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
@pytest.mark.parametrize("turned", [1, 3])
def test_zero_is_white_where_tiff_says_so(kind: type, turned: int) -> None:
    most = 65_535 if kind is np.uint16 else 1
    image = Image.fromarray(np.array([[0, most, most]], kind))
    tags = {262: 0, 274: turned}
    grey = np.asarray(decode_image(encoded(image, "TIFF", tiffinfo=tags)))[0, :, 0].tolist()
    assert grey == ([255, 0, 0] if turned == 1 else [0, 0, 255])
    assert np.asarray(decode_image(encoded(image, "TIFF")))[0, 0, 0] == 0


@pytest.mark.parametrize("mode", ["LA", "La", "RGBA", "RGBa", "PA", "P", "1", "L", "RGB", "I;16"])
def test_what_is_transparent_is_white(mode: str) -> None:
    if mode in ("LA", "RGBA"):
        image = Image.new(mode, (4, 4))
    elif mode in ("La", "RGBa"):
        image = Image.new("LA" if mode == "La" else "RGBA", (4, 4)).convert(mode)
    elif mode == "PA":
        image = Image.new("RGBA", (4, 4)).convert("PA")
    else:
        content = encoded(
            Image.new(mode, (4, 4)), "PNG", transparency=(0, 0, 0) if mode == "RGB" else 0
        )
        assert decode_image(content).getpixel((0, 0)) == (255, 255, 255)
        return
    assert rgb(image).getpixel((0, 0)) == (255, 255, 255)


def test_cmyk_ycbcr_lab_and_hsv_are_rgb() -> None:
    red = Image.new("RGB", (8, 8), (200, 30, 40))
    cmyk = decode_image(encoded(red.convert("CMYK"), "JPEG", quality=100))
    for image in (cmyk, rgb(red.convert("YCbCr")), rgb(red.convert("HSV"))):
        assert image.mode == "RGB"
        assert np.abs(np.array(image.getpixel((4, 4))) - (200, 30, 40)).max() < 8


def test_pictures_stand_upright_as_exif_says() -> None:
    image = Image.new("RGB", (20, 10), "white")
    image.paste("red", (0, 0, 5, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        upright = decode_image(encoded(image, kind, exif=exif))
        assert upright.size == (10, 20)
        assert upright.getpixel((5, 2))[1] < 60 and upright.getpixel((5, 18))[1] > 200


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(content).getpixel((0, 0)) == (255, 0, 0)


def test_large_metadata_is_no_matter() -> None:
    image = Image.new("RGB", (8, 8), "red")
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt("XML:com.adobe.xmp", "history " * 400_000, zip=True)
    for content in (
        encoded(image, "PNG", pnginfo=texts),
        encoded(image, "PNG", icc_profile=bytes(3_000_000)),
    ):
        assert decode_image(content).getpixel((0, 0)) == (255, 0, 0)


def tiff(bits: int, bands: int, floats: bool) -> bytes:
    """A TIFF of 1 x 1 pixel, plain, with one strip."""
    kind = 2 if bands > 1 else 1
    tags = [
        (256, 1),
        (257, 1),
        (258, bits),
        (259, 1),
        (262, kind),
        (273, 8),
        (277, bands),
        (278, 1),
    ]
    tags += [(279, bits // 8 * bands), (339, 3 if floats else 1)]
    data = bytes(bits // 8 * bands)
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    return head + data + struct.pack("<H", len(tags)) + directory + bytes(4)


@pytest.mark.parametrize(("bits", "bands"), [(32, 3), (64, 1), (8, 5)])
def test_kinds_of_tiff_that_are_not_read_are_said(bits: int, bands: int) -> None:
    assert decode_image(tiff(8, 3, False)).size == (1, 1)
    with pytest.raises(
        UnreadableImage, match="TIFF that is damaged, or of a kind that is not read"
    ):
        decode_image(tiff(bits, bands, bits > 8))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize("content", [EPS, b"%PDF-1.4\n", b"P7\n", b"", b"\x89PNG", b"RIFF0000WEBP"])
def test_other_formats_never_start_a_program(
    content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.Popen.__init__", started)
    monkeypatch.setattr("os.system", started)
    with pytest.raises(UnreadableImage, match=r"unreadable image|truncated image"):
        decode_image(content)


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (3, 500)])
def test_long_and_narrow_pictures_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(UnreadableImage, match=f"{size[0]} x {size[1]}"):
        decode_image(encoded(Image.new("RGB", size), "PNG"))
    with pytest.raises(UserError):
        rgb(Image.new("RGB", size))
    assert decode_image(encoded(Image.new("RGB", (10, 800)), "PNG")).size == (10, 800)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    assert file_content(tmp_path / "pipe.png") is None
    assert file_content(tmp_path) is None
    assert file_content("/dev/zero") is None
    assert file_content("null\0byte.png") is None
    assert file_content(tmp_path / "link.png") == png()
    with pytest.raises(UserError, match="check the path"):
        read_image(tmp_path / "pipe.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"b\.png: unreadable image"):
        read_image(tmp_path / "b.png")


def test_arrays_tensors_and_paths_are_pictures(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    forms = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        pixels,
        pixels / 255,
        (pixels / 255).astype(np.float32),
        torch.from_numpy(pixels).permute(2, 0, 1),
        torch.from_numpy(pixels).permute(2, 0, 1).float().div(255).requires_grad_(),
        torch.from_numpy(pixels).permute(2, 0, 1).bfloat16().div(255),
    ]
    for form in forms:
        assert np.array_equal(np.asarray(rgb(form)), pixels)
    assert rgb(pixels[:, :, 0]).size == rgb(pixels[:, :, :1]).size == (9, 8)
    clear = np.dstack([pixels, np.zeros((8, 9), np.uint8)])
    assert rgb(clear).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    "given", [None, 3, [[1]], np.zeros((2, 8, 9, 3)), np.zeros((8, 9, 5)), np.full((8, 9, 3), 2.0)]
)
def test_what_is_no_picture_is_said(given: object) -> None:
    with pytest.raises(UserError, match=r"no picture: a .* give a PIL image"):
        rgb(given)


def test_a_path_without_a_picture_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such image file"):
        rgb(tmp_path / "gone.png")
