"""What tells pairs apart: their content, whatever they are called and wherever they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from PIL import Image

KEY_LENGTH = 32


def content_key(image: Image.Image, captions: Sequence[str]) -> str:
    """The key of a pair: 32 hexadecimal digits of a sha256 over its picture's size and pixels and
    its captions.

    Args:
        image: RGB, decoded.
    """
    digest = hashlib.sha256(f"{image.width} {image.height}".encode())
    digest.update(image.tobytes())
    for caption in captions:
        text = caption.encode("utf-8", "surrogatepass")
        digest.update(f" {len(text)} ".encode() + text)
    return digest.hexdigest()[:KEY_LENGTH]
