"""Imports go one way: pairs -> ... -> reports within features; features <- mms_apps <- demos and
benchmarks; no app imports another; nothing runs in a circle."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "features": ("mms_apps", "demos", "benchmarks"),
    "mms_apps": ("demos", "benchmarks"),
}
STAGES = (
    "pairs",
    "encoders",
    "store",
    "dictionary",
    "scores",
    "space",
    "evidence",
    "analysis",
    "reports",
)
"""Of features, in the order of the work: one may import those before it."""
APPS = ("attributes", "steering", "robustness")


def modules(package: str) -> dict[str, Path]:
    """A package's modules by their dotted names."""
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    return {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in files
    }


def imported(file: Path, *, at_load: bool = False) -> set[str]:
    """The modules, and what is taken from them, that a file names in its imports.

    Args:
        at_load: only those that run when the file is imported.
    """
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        if at_load and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return
        if at_load and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(file.read_text(encoding="utf-8")))
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_import_against_the_arrows(package: str) -> None:
    for file in modules(package).values():
        against = {n for n in imported(file) if n.split(".")[0] in FORBIDDEN[package]}
        assert not against, file


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_none_that_comes_after_it(stage: str) -> None:
    later = STAGES[STAGES.index(stage) + 1 :]
    for file in modules(f"features/{stage}").values():
        against = {
            name
            for name in imported(file)
            if name.startswith("features.") and name.split(".")[1] in later
        }
        assert not against, file


@pytest.mark.parametrize("app", APPS)
def test_no_app_imports_another(app: str) -> None:
    others = tuple(f"mms_apps.{other}" for other in (*APPS, "cli") if other != app)
    for file in modules(f"mms_apps/{app}").values():
        against = {
            name
            for name in imported(file)
            if any(name == other or name.startswith(f"{other}.") for other in others)
        }
        assert not against, file


def test_no_modules_import_each_other_in_a_circle() -> None:
    known = modules("features") | modules("mms_apps") | modules("demos")
    graph = {
        name: {found for found in imported(file, at_load=True) if found in known} - {name}
        for name, file in known.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("app", APPS)
def test_no_exported_name_is_hidden_by_a_module_of_that_name(app: str) -> None:
    exported = set(getattr(import_module(f"mms_apps.{app}"), "__all__", []))
    folder = ROOT / "mms_apps" / app
    inside = {path.stem for path in folder.iterdir()}
    assert not exported & inside
