"""The one decoder of pictures."""

from __future__ import annotations

import io

from PIL import Image, UnidentifiedImageError


class UnreadableImage(Exception):
    """An image that cannot be decoded; the message is the reason."""


def decode_image(content: bytes) -> Image.Image:
    """Decode an image file completely: RGB, transparency laid on white, the first frame.

    EXIF orientation is left alone, as in the training of CLIP models.

    Raises:
        UnreadableImage: not an image, truncated or damaged, or too many pixels (PIL's limit).
    """
    try:
        image = Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        raise UnreadableImage("unreadable image: not a format that PIL knows") from None
    except Image.DecompressionBombError:
        raise UnreadableImage("image too large: a decompression bomb to PIL") from None
    except Exception as error:
        raise UnreadableImage(f"unreadable image: {error}") from None
    try:
        image.load()
        return _on_white(image)
    except Image.DecompressionBombError:
        raise UnreadableImage("image too large: a decompression bomb to PIL") from None
    except Exception as error:  # PIL's plugins raise OSError, SyntaxError, struct.error and others
        raise UnreadableImage(f"truncated image or damaged: {error}") from None


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255
        return image.point(lambda value: value / 256).convert("L").convert("RGB")
    if image.mode != "RGBA" and not image.has_transparency_data:
        return image.convert("RGB")
    layer = image if image.mode == "RGBA" else image.convert("RGBA")
    canvas = Image.new("RGB", image.size, (255, 255, 255))
    canvas.paste(layer, mask=layer)
    return canvas
