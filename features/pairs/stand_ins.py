"""What stands where a file should: git-lfs pointers, and pages that servers send."""

from __future__ import annotations

from pathlib import Path

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
PAGE = (b"<!doctype html", b"<html")
SERVERS_ERROR = (b"<?xml", b"<error>")
BEGINNING = 512
"""Bytes of a file by which it is told."""


def stand_in(begin: bytes) -> str | None:
    """What a file that begins so is instead of what it is called, and what to do; None where it is
    none of these."""
    if begin.startswith(LFS_POINTER):
        return "a git-lfs pointer; run git lfs pull"
    text = begin[:BEGINNING].removeprefix(b"\xef\xbb\xbf").strip().lower()
    if text.startswith(PAGE):
        return "a page of HTML, as servers send in place of a file; download it again"
    if text.startswith(SERVERS_ERROR) and b"<error>" in text:
        return "a server's error message; download it again"
    return None


def stand_in_at(path: Path) -> str | None:
    """`stand_in` of the file at a path; None where it cannot be read."""
    try:
        with path.open("rb") as file:
            return stand_in(file.read(BEGINNING))
    except OSError:
        return None
