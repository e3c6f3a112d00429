"""The one decoder: whatever picture comes in anywhere leaves as 8-bit RGB."""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from features.errors import UserError
from features.pairs.stand_ins import stand_in

FORMATS = (
    "AVIF",
    "BMP",
    "DIB",
    "GIF",
    "ICO",
    "JPEG",
    "JPEG2000",
    "PCX",
    "PNG",
    "PPM",
    "QOI",
    "SGI",
    "TIFF",
    "WEBP",
)
"""Raster formats that are read. PIL knows more, some of which start other programs (EPS)."""
EXTENSIONS = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jfif",
    ".jpe",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".avif",
    ".jp2",
    ".j2k",
    ".ppm",
    ".pgm",
    ".pnm",
)
"""In small letters, of the files that are taken for pictures in folders and archives."""
HEIC = re.compile(rb".{4}ftyp(hei|hev|mif1|msf1)", re.DOTALL)
"""What files of phones' photographs begin with, unless they are AVIF."""
MAX_ASPECT_RATIO = 100
"""Encoders scale the short side up: one pixel by 20,000 would become gigabytes."""
SPARE = 2
"""How many times the side that is needed a JPEG decoded at a scale keeps, so that what shrinks it
still averages over pixels."""
EIGHT_BIT, SIXTEEN_BIT, THIRTY_TWO_BIT = 255, 65_535, 2**31 - 1
WIDE_RANGES = (EIGHT_BIT, SIXTEEN_BIT, THIRTY_TWO_BIT)
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
"""Bytes of a PNG's texts and colour profile: PIL's own limit, 1 MiB for each, refuses pictures in
which editing programs keep their history."""
TIFF = (b"II*\0", b"MM\0*")
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0
"""TIFF's tag, and its value where zero is white."""


class UnreadableImage(UserError):
    """A picture that cannot be used; the message is the reason, as "kind: detail"."""


def decode_image(content: bytes, short_side: int | None = None) -> Image.Image:
    """Decode an image file: its first frame, as `rgb` makes it.

    Args:
        short_side: pixels to which the picture will be shrunk, whatever its size. A JPEG is then
            decoded at 1/2, 1/4 or 1/8 where `SPARE` times as many remain, which is faster; other
            formats, and None, are decoded at full size.

    Raises:
        UnreadableImage: no raster format, truncated or damaged, too many pixels (PIL's limit), or
            too long and narrow.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's, of metadata that is damaged or of a large picture
        try:
            image = Image.open(io.BytesIO(content), formats=_readable_formats())
        except UnidentifiedImageError:
            if HEIC.match(content):
                raise UnreadableImage("unreadable image: HEIC; convert it to JPEG") from None
            if content.startswith(TIFF):
                raise UnreadableImage(
                    "unreadable image: TIFF that is damaged, or of a kind that is not read, such "
                    "as floats in colour or of 64 bits, or 5 bands; save it as 8-bit RGB"
                ) from None
            if (instead := stand_in(content)) is not None:
                raise UnreadableImage(f"unreadable image: {instead}") from None
            raise UnreadableImage(
                "unreadable image: none of the formats " + ", ".join(FORMATS)
            ) from None
        except Image.DecompressionBombError:
            raise UnreadableImage("image too large: a decompression bomb to PIL") from None
        except Exception as error:
            raise UnreadableImage(f"unreadable image: {error}") from None
        _check_shape(image)
        try:
            whole = image.size
            if short_side is not None:
                image.draft(None, (SPARE * short_side, SPARE * short_side))
            image.load()
            if short_side is None or image.size == whole:
                return rgb(image)
            return rgb(_of_one_shape(image, whole, short_side))
        except UnreadableImage:
            raise
        except Image.DecompressionBombError:
            raise UnreadableImage("image too large: a decompression bomb to PIL") from None
        except Exception as error:  # PIL's plugins raise OSError, SyntaxError, struct.error ...
            raise UnreadableImage(f"truncated image or damaged: {error}") from None


def decoded(
    contents: Iterable[tuple[str, bytes | None]],
) -> Iterator[tuple[str, Image.Image]]:
    """The image files that can be decoded, one at a time, each with what it is called."""
    for name, content in contents:
        if content is not None:
            try:
                yield name, decode_image(content)
            except UnreadableImage:
                continue


def rgb(image: Image.Image | np.ndarray | str | Path | IO[bytes]) -> Image.Image:
    """A picture as 8-bit RGB, upright as its EXIF orientation says, transparency laid on white.

    16-bit samples keep their range, of 0 to 65,535. Integers of 32 bits and floats are taken to
    span the smallest usual range that holds them: 0 to 1 (floats alone), 255, 65,535 or 2^31 - 1;
    where the greatest is beyond the range before and not an eighth of this one, up to the greatest.

    Args:
        image: a PIL image; the path of one, or its open file; or an array `[height, width]` or
            `[height, width, 1, 3 or 4]`, or a tensor with the channels first, of uint8 or of floats
            in 0 to 1.

    Raises:
        UserError: none of these, too long and narrow, no pixels, or a path that holds no picture.
    """
    if isinstance(image, str | Path):
        return read_image(image)
    if hasattr(image, "read"):
        return decode_image(image.read())
    if not isinstance(image, Image.Image):
        image = _of_array(image)
    _check_shape(image)
    white_is_zero = getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _from_wide_samples(image, white_is_zero)
    if image.mode in ("La", "RGBa"):  # alpha multiplied in already
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, (255, 255, 255))
    canvas.paste(layer, mask=layer)
    return canvas


def _of_array(given: Any) -> Image.Image:
    """The picture that an array, or a tensor with the channels first, holds."""
    is_tensor = hasattr(given, "detach")
    if is_tensor and given.is_floating_point():
        given = given.float()
    array = np.asarray(given.detach().cpu()) if is_tensor else given
    if not isinstance(array, np.ndarray) or array.ndim not in (2, 3) or not array.size:
        raise _no_picture(given)
    if is_tensor and array.ndim == 3:
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype.kind == "f" and array.min() >= 0 and array.max() <= 1:
        array = np.rint(array.astype(np.float64) * EIGHT_BIT).astype(np.uint8)
    if array.dtype != np.uint8 or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise _no_picture(given)
    return Image.fromarray(array)


def _no_picture(given: Any) -> UserError:
    kind = type(given).__name__
    shape = f" {list(given.shape)} {given.dtype}" if hasattr(given, "dtype") else ""
    return UserError(
        f"no picture: a {kind}{shape}; give a PIL image, a path, an array [height, width, 3] or a "
        "tensor [3, height, width], of uint8 or of floats in 0 to 1"
    )


def read_image(path: str | Path) -> Image.Image:
    """Decode the image file at a path.

    Raises:
        UserError: there is no regular file that can be read, or no picture in it.
    """
    content = file_content(path)
    if content is None:
        raise UserError(f"{path}: no such image file, or it cannot be read; check the path")
    try:
        return decode_image(content)
    except UnreadableImage as error:
        raise UnreadableImage(f"{path}: {error}; give another picture") from None


def file_content(path: str | Path) -> bytes | None:
    """What a regular file holds; None where there is none, or it cannot be read. Pipes and devices,
    which may never end, are none."""
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            return file.read() if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else None
    except (OSError, ValueError):  # ValueError: a null byte in the name
        return None


def _without_waiting(path: str, flags: int) -> int:
    """Opens a pipe that nobody writes to at once, where a plain open would wait for ever."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@cache
def _readable_formats() -> tuple[str, ...]:
    """Those of FORMATS for which this PIL was built."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _check_shape(image: Image.Image) -> None:
    width, height = image.size
    if not width or not height:
        raise UnreadableImage(f"unreadable image: {width} x {height} pixels")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise UnreadableImage(
            f"image too long and narrow: {width} x {height} pixels; sides may differ "
            f"{MAX_ASPECT_RATIO} times at most"
        )


def _of_one_shape(image: Image.Image, whole: tuple[int, int], short_side: int) -> Image.Image:
    """A picture decoded at a scale, without its last column or row where it is only a part of one
    and the whole picture, shrunk to the short side, would else be a pixel longer or shorter."""

    def long_side(size: tuple[int, int]) -> int:
        return int(short_side * max(size) / min(size))

    scale = round(max(whole) / max(image.size))
    columns, rows = ({side, full // scale} for side, full in zip(image.size, whole, strict=True))
    shapes = sorted(((x, y) for x in columns for y in rows), key=sum, reverse=True)
    fitting = next((shape for shape in shapes if long_side(shape) == long_side(whole)), image.size)
    return image if fitting == image.size else image.crop((0, 0, *fitting))


def _from_wide_samples(image: Image.Image, white_is_zero: bool) -> Image.Image:
    """Grey of 16 or 32 bits or floats, in which a key value may be transparent.

    Args:
        white_is_zero: whether zero is white, which PIL heeds in 8 bits alone.
    """
    samples = np.asarray(image).astype(np.float64)  # [height, width]
    most = np.nanmax(samples, initial=0.0, where=np.isfinite(samples))
    if image.mode.startswith("I;16"):
        full = float(SIXTEEN_BIT)
    else:
        full = _range_of(most, (1, *WIDE_RANGES) if image.mode == "F" else WIDE_RANGES)
    grey = np.nan_to_num(samples / full, nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1)
    if white_is_zero:
        grey = 1 - grey
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey[samples == key] = 1.0
    return Image.fromarray(np.rint(grey * 255).astype(np.uint8), "L").convert("RGB")


def _range_of(most: float, ranges: Sequence[int]) -> float:
    """Where the range ends that samples up to `most` span: at the first end that holds them, or at
    `most` itself where they, beyond the end before, would be almost black."""
    place = next((i for i, end in enumerate(ranges) if most <= end), len(ranges) - 1)
    return most if place and most < ranges[place] / 8 else float(ranges[place])
