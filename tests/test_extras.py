"""The core works without what the applications need, and says what is missing."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from features.errors import UserError
from features.extras import PACKAGES, require
from features.space.space import FeatureSpace

ROOT = Path(__file__).parents[1]
ALWAYS = {"pip", "setuptools"}
HIDING = """
import sys
from importlib.machinery import PathFinder


class Core(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] in {blocked!r}
        return None if hidden else PathFinder.find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Core
"""


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def names(requirements: list[str]) -> set[str]:
    """Of the distributions that requirements name here, without those of extras."""
    found = map(Requirement, requirements)
    return {
        canonicalize_name(one.name)
        for one in found
        if one.marker is None or one.marker.evaluate({"extra": ""})
    }


def closure(wanted: set[str]) -> set[str]:
    """Distributions, with all that they need in turn."""
    found: set[str] = set()
    while wanted:
        name = wanted.pop()
        found.add(name)
        with contextlib.suppress(metadata.PackageNotFoundError):
            wanted |= names(metadata.requires(name) or []) - found
    return found


@pytest.fixture(scope="module")
def without() -> str:
    """Code after which nothing can be imported but what `pip install mms-apps` brings."""
    there = closure(names(project()["dependencies"])) | ALWAYS
    outside = [
        module
        for module, owners in metadata.packages_distributions().items()
        if module.isidentifier() and not there & {canonicalize_name(owner) for owner in owners}
    ]
    own = {"features", "mms_apps", "demos"}
    blocked = sorted({*outside, *PACKAGES.values()} - own)
    assert {"pytest", *PACKAGES.values()} <= set(blocked)
    return HIDING.format(blocked=blocked)


def run(code: str, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


MMS = "from mms_apps.cli import main; main()"
EACH = """
import json
from mms_apps.cli import main

for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit as end:
        assert not end.code, arguments
"""


def test_the_core_asks_for_none_of_them() -> None:
    asked = project()
    extras = asked["optional-dependencies"]
    for extra, package in PACKAGES.items():
        assert package not in names(asked["dependencies"])
        assert package in names(extras[extra])
    whole = next(Requirement(written) for written in extras["all"])
    assert whole.name == "mms-apps" and whole.extras == set(PACKAGES)
    assert any(Requirement(written).extras == {"all"} for written in extras["test"])


def test_the_whole_run_needs_none_of_them(tmp_path: Path, without: str) -> None:
    """From pairs to the report, and what reads a FeatureSpace."""
    space, predictions = tmp_path / "run" / "space", tmp_path / "p"
    training = "run --pairs embedded:heldout --dictionary topk --steps 20"
    predict = "attributes predict --pairs embedded:heldout --attribute gender --method zero_shot"
    commands = [
        [*training.split(), "--out", space.parent],
        ["report", "embedded", "--out", tmp_path / "report.html"],
        ["compare", "embedded", space, "--out", tmp_path / "compared"],
        [*predict.split(), "--value", "man", "--value", "woman", "--out", predictions],
    ]
    written = [[str(word) for word in command] for command in commands]
    done = run(without + EACH, json.dumps(written), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(FeatureSpace.load(space, device="cpu")) > 0
    assert all(Path(command[-1]).exists() for command in written)


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
def test_a_missing_extra_is_named(tmp_path: Path, without: str, extra: str, arguments: str) -> None:
    done = run(without + MMS, *arguments.split(), "--out", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert lines == [
        f"Error: {PACKAGES[extra]} is not installed; run: pip install 'mms-apps[{extra}]'"
    ]
    assert not (tmp_path / "out").exists()


def test_the_demos_name_their_extra(tmp_path: Path, without: str) -> None:
    code = "import runpy, sys; sys.argv = ['demos']; runpy.run_module('demos', run_name='__main__')"
    done = run(without + code, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "Error: gradio is not installed; run: pip install 'mms-apps[demos]'"
    )


def test_explore_names_the_extra_of_the_demos(tmp_path: Path, without: str) -> None:
    done = run(without + MMS, "explore", "embedded", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "Error: gradio is not installed; run: pip install 'mms-apps[demos]'"
    )


@pytest.mark.parametrize("extra", PACKAGES)
def test_require(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    require(extra)
    monkeypatch.setitem(sys.modules, PACKAGES[extra], None)
    with pytest.raises(UserError, match=rf"pip install 'mms-apps\[{extra}\]'"):
        require(extra)
