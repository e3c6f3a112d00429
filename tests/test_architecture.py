"""Imports go one way: features <- mms_apps <- demos and benchmarks; no app imports another."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "features": ("mms_apps", "demos", "benchmarks"),
    "mms_apps": ("demos", "benchmarks"),
}


def imported(file: Path) -> set[str]:
    """The modules that a file names in its imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_import_against_the_arrows(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        against = {n for n in imported(file) if n.split(".")[0] in FORBIDDEN[package]}
        assert not against, file
