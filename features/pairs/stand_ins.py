"""What stands where a file should: git-lfs pointers, pages that servers send, files of formats that
their names don't say."""

from __future__ import annotations

from pathlib import Path

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
PAGE = (b"<!doctype html", b"<html")
SERVERS_ERROR = (b"<?xml", b"<error>")
PARQUET = b"PAR1"
OTHERS = {
    b"PK\x03\x04": "a zip file, as .xlsx are; unpack it, or save the sheet as .csv",
    PARQUET: "a parquet file; let its name end in .parquet",
    b"ARROW1": "an Arrow file; write it as .parquet",
    b"\x89HDF": "an HDF5 file; write it as .parquet",
    b"SQLite format 3": "an SQLite file; write its table as .csv",
    b"\xd0\xcf\x11\xe0": "an .xls file; save the sheet as .csv",
    b"7z\xbc\xaf": "a 7z file; unpack it",
    b"Rar!\x1a": "a rar file; unpack it",
    b"\x28\xb5\x2f\xfd": "packed by zstd; unpack it",
    b"%PDF-": "a PDF; give its pictures and texts as files",
}
"""How files of other formats begin."""
BEGINNING = 512
"""Bytes of a file by which it is told."""


def stand_in(begin: bytes) -> str | None:
    """What a file that begins so is instead of what it is called, and what to do; None where it is
    none of these."""
    if begin.startswith(LFS_POINTER):
        return "a git-lfs pointer; run git lfs pull"
    for mark, format_ in OTHERS.items():
        if begin.startswith(mark):
            return format_
    text = begin[:BEGINNING].removeprefix(b"\xef\xbb\xbf").strip().lower()
    if text.startswith(PAGE):
        return "a page of HTML, as servers send in place of a file; download it again"
    if text.startswith(SERVERS_ERROR) and b"<error>" in text:
        return "a server's error message; download it again"
    return None


def stand_in_at(path: Path) -> str | None:
    """`stand_in` of the file at a path; None where it cannot be read, or is a parquet file that is
    called so."""
    try:
        with path.open("rb") as file:
            begin = file.read(BEGINNING)
    except OSError:
        return None
    if begin.startswith(PARQUET) and path.suffix.lower() == ".parquet":
        return None
    return stand_in(begin)
