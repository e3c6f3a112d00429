"""The picture that a text stands for: by a path or a file URL, or written out in base64."""

from __future__ import annotations

import base64
import binascii
import os
import re
import unicodedata
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname

from features.pairs.images import file_content

FILE_URL = "file:"
DATA_URL = "data:"
LONGEST_PATH = 4096
BASE64 = re.compile(r"[A-Za-z0-9+/\s]{64,}={0,2}\s*")
SHOWN = 80
"""Letters of a name that an error shows."""


def named_content(folder: str, name: str) -> bytes | None:
    """The content of the image file; None where there is none."""
    if name.startswith(DATA_URL):
        return _of_data_url(name)
    for path in possible_paths(folder, name) if len(name) <= LONGEST_PATH else ():
        content = file_content(path)
        if content is not None:
            return content
    return _of_base64(name) if is_picture(name) else None


def is_picture(name: str) -> bool:
    """Whether a text is no name but the picture itself, as data URL or base64."""
    return name.startswith(DATA_URL) or BASE64.fullmatch(name) is not None


def path_named(name: str) -> str:
    """The path that a file URL stands for; other names as they are."""
    return url2pathname(urlsplit(name).path) if name.startswith(FILE_URL) else name


def possible_paths(folder: str, name: str) -> Iterator[str]:
    """Where the file of a name may lie, however it was written: with a Windows path's backslashes,
    in another Unicode form (macOS has one of its own), or between blanks."""
    name = path_named(name)
    forms = (
        name,
        name.replace("\\", "/"),
        unicodedata.normalize("NFC", name),
        unicodedata.normalize("NFD", name),
        name.strip(),
    )
    return (os.path.join(folder, form) for form in dict.fromkeys(forms))


def why_missing(name: str) -> str:
    """The reason why a name gave no picture."""
    shown = name if len(name) <= SHOWN else name[:SHOWN] + " ..."
    if urlsplit(name[:SHOWN]).scheme.lower() in ("http", "https", "s3", "gs", "ftp"):
        return f"missing image file: {shown} is a URL; download the pictures (img2dataset does)"
    return f"missing image file: {shown}"


def _of_data_url(name: str) -> bytes | None:
    head, comma, data = name.partition(",")
    if not comma:
        return None
    return _of_base64(data) if head.endswith(";base64") else unquote_to_bytes(data)


def _of_base64(text: str) -> bytes | None:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return None
