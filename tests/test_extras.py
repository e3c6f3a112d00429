"""The core works without what the applications need, and says what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from features.errors import UserError
from features.extras import PACKAGES, require
from features.space.space import FeatureSpace

ROOT = Path(__file__).parents[1]
WITHOUT = f"""
import sys

for name in {sorted(PACKAGES.values())!r}:
    sys.modules[name] = None  # an import raises ModuleNotFoundError, as where it is not installed
"""


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def names(requirements: list[str]) -> set[str]:
    return {Requirement(written).name for written in requirements}


def run(code: str, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Python without the extras' packages."""
    command = [sys.executable, "-c", WITHOUT + code, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


MMS = "from mms_apps.cli import main; main()"


def test_the_core_asks_for_none_of_them() -> None:
    asked = project()
    extras = asked["optional-dependencies"]
    for extra, package in PACKAGES.items():
        assert package not in names(asked["dependencies"])
        assert package in names(extras[extra])
    whole = next(Requirement(written) for written in extras["all"])
    assert whole.name == "mms-apps" and whole.extras == set(PACKAGES)
    assert any(Requirement(written).extras == {"all"} for written in extras["test"])


def test_the_whole_run_needs_none_of_them(tmp_path: Path) -> None:
    """From pairs to the report, and what reads a FeatureSpace."""
    options = ("--pairs", "embedded:heldout", "--dictionary", "topk", "--steps", "20")
    done = run(MMS, "run", *options, "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(FeatureSpace.load(tmp_path / "run" / "space", device="cpu")) > 0
    predict = "attributes predict --pairs embedded:heldout --attribute gender --method zero_shot"
    others = [
        ("report", "embedded", "--out", tmp_path / "report.html"),
        ("compare", "embedded", tmp_path / "run" / "space", "--out", tmp_path / "compared"),
        (*predict.split(), "--value", "man", "--value", "woman", "--out", tmp_path / "p"),
    ]
    for arguments in others:
        done = run(MMS, *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("extra", "arguments"),
    [
        ("robustness", "robustness --space embedded --label gender"),
        ("steering", "steer --prompt woman --wish more"),
        ("steering", "train-generator"),
        ("attributes", "attributes audit --pairs embedded --attribute gender --group skin_tone"),
        (
            "attributes",
            "attributes debias --train a --pairs b --attribute c --factor d --unrelated e",
        ),
    ],
)
def test_a_missing_extra_is_named(tmp_path: Path, extra: str, arguments: str) -> None:
    done = run(MMS, *arguments.split(), "--out", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert lines == [
        f"Error: {PACKAGES[extra]} is not installed; run: pip install 'mms-apps[{extra}]'"
    ]
    assert not (tmp_path / "out").exists()


def test_the_demos_name_their_extra(tmp_path: Path) -> None:
    code = "import runpy; sys.argv = ['demos']; runpy.run_module('demos', run_name='__main__')"
    done = run(code, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "Error: gradio is not installed; run: pip install 'mms-apps[demos]'"
    )


@pytest.mark.parametrize("extra", PACKAGES)
def test_require(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    require(extra)
    monkeypatch.setitem(sys.modules, PACKAGES[extra], None)
    with pytest.raises(UserError, match=rf"pip install 'mms-apps\[{extra}\]'"):
        require(extra)
