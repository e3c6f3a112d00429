"""Files that lie at a path, or behind an http, https or s3 URL."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from features.errors import UserError, first_line

SCHEMES = ("http", "https", "s3")
HEAD_BYTES = 65_536
TIMEOUT = 60
"""Seconds without a byte after which a connection is given up."""
PAUSES = (1, 2, 4)
"""Seconds before each further try."""
NOT_RETRIED = frozenset(range(400, 500)) - {408, 425, 429}
"""Status codes that another try does not mend."""
LONGEST_PAUSE = 600
"""Seconds that a server may ask for before the next try (Retry-After)."""

Got = TypeVar("Got")


def is_url(where: str) -> bool:
    try:
        return urlsplit(where).scheme in SCHEMES
    except ValueError:  # brackets that hold no address
        return False


def path_of(where: str) -> PurePosixPath:
    """Host (or bucket) and path of a URL, without its query; the absolute path of a file."""
    if not is_url(where):
        return PurePosixPath(Path(where).absolute().as_posix())
    url = urlsplit(where)
    return PurePosixPath(f"{url.hostname}{url.path}")


def shown(url: str) -> str:
    """A URL as messages show it: without name and password, and without a query, which may be a
    signature."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def require_no_password(url: str) -> None:
    """Raise a UserError for a URL with a name or password, which is not read."""
    if "@" in urlsplit(url).netloc:
        raise UserError(
            f"{shown(url)}: names and passwords in URLs are not taken; download the file, or give "
            "a URL that needs none"
        )


def version(url: str) -> bytes:
    """What tells one version of a file from another without reading it whole: its size, its first
    64 KiB, and the server's own mark of the version (ETag, or else when it was modified).

    Raises:
        UserError: the URL cannot be read.
    """
    size, mark, head = _tried(url, _s3_head if url.startswith("s3:") else _http_head)
    return f"{size}/{mark}/".encode() + head


@contextmanager
def local_file(where: str) -> Iterator[Path]:
    """The file itself, or a copy of what the URL holds, which is removed afterwards.

    Raises:
        UserError: the URL cannot be read.
    """
    if not is_url(where):
        yield Path(where)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / path_of(where).name
        download = _s3_download if where.startswith("s3:") else _http_download
        _tried(where, lambda url: download(url, path))
        yield path


def _tried(url: str, get: Callable[[str], Got]) -> Got:
    """What `get` returns, tried again after connections that failed.

    Raises:
        UserError: it fails for good.
    """
    for pause in (*PAUSES, None):
        try:
            return get(url)
        except (OSError, HTTPException) as error:
            final = isinstance(error, HTTPError) and error.code in NOT_RETRIED
            asked = _asked_pause(error)
            if pause is None or final or asked > LONGEST_PAUSE:
                raise UserError(
                    f"{shown(url)}: cannot be read ({first_line(error)}); check the address and "
                    "the network, then run the same command again to go on"
                ) from None
            time.sleep(max(pause, asked))
    raise AssertionError("the last try returns or raises")


def _asked_pause(error: Exception) -> float:
    """Seconds that a server asks to wait for before the next try; 0 where it says nothing."""
    asked = error.headers.get("Retry-After", "") if isinstance(error, HTTPError) else ""
    if asked.strip().isdigit():
        return float(asked)
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0


def _http_head(url: str) -> tuple[int, str, bytes]:
    request = Request(url, headers={"Range": f"bytes=0-{HEAD_BYTES - 1}"})
    with urlopen(request, timeout=TIMEOUT) as answer:
        whole = answer.headers.get("Content-Range", "").rpartition("/")[2]
        mark = answer.headers["ETag"] or answer.headers["Last-Modified"] or ""
        return int(whole or answer.headers["Content-Length"] or -1), mark, answer.read(HEAD_BYTES)


def _http_download(url: str, path: Path) -> None:
    with urlopen(url, timeout=TIMEOUT) as answer, path.open("wb") as file:
        shutil.copyfileobj(answer, file, length=1 << 20)
        expected = answer.headers["Content-Length"]
        if expected is not None and file.tell() != int(expected):
            raise OSError(f"{file.tell()} of {expected} bytes came")


def _s3_head(url: str) -> tuple[int, str, bytes]:
    with _s3_errors():
        answer = _s3().get_object(**_s3_place(url), Range=f"bytes=0-{HEAD_BYTES - 1}")
        size = int(answer["ContentRange"].rpartition("/")[2])
        return size, answer.get("ETag", ""), answer["Body"].read()


def _s3_download(url: str, path: Path) -> None:
    with _s3_errors():
        _s3().download_file(*_s3_place(url).values(), str(path))


def _s3_place(url: str) -> dict[str, str]:
    parts = urlsplit(url)
    return {"Bucket": parts.netloc, "Key": parts.path.lstrip("/")}


def _s3() -> Any:
    """A client with the credentials that boto3 finds, or without any for public buckets.

    Raises:
        UserError: boto3 is not installed.
    """
    try:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config
    except ImportError:
        raise UserError("s3 URLs need boto3; pip install 'mms-apps[s3]'") from None
    session = boto3.Session()
    unsigned = session.get_credentials() is None
    return session.client("s3", config=Config(signature_version=UNSIGNED) if unsigned else None)


@contextmanager
def _s3_errors() -> Iterator[None]:
    """Turns boto3's errors, which have tried again already, into what a user can read."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # boto3, botocore and s3transfer each raise their own
        raise UserError(
            f"s3: {first_line(error)}; check the bucket, the key and the credentials"
        ) from None
