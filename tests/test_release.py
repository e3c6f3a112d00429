"""What is released: the wheel, its version, its licences, the constraints."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGES = ("features", "mms_apps", "demos")
EXTRAS = ("steering", "attributes", "robustness", "demos")


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_changelog_begins_with_this_version(project: dict) -> None:
    headings = re.findall(r"^## (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == project["version"]


def test_constraints_meet_the_requirements(project: dict) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    extras = project["optional-dependencies"]
    asked = [name for extra in EXTRAS for name in extras[extra]]
    for written in [*project["dependencies"], *asked]:
        requirement = Requirement(written)
        if requirement.name == "mms-apps":
            continue
        name = requirement.name.lower().replace("_", "-")
        assert requirement.specifier.contains(pinned[name], prereleases=True), written


def test_the_notice_names_all_data_and_weights_that_ship() -> None:
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    for path in (ROOT / "features" / "embedded").iterdir():
        if path.suffix != ".py" and path.name != "__pycache__":
            assert f"features/embedded/{path.name}" in notice
    for name in re.findall(r"licenses/[\w.-]+\.txt", notice):
        assert (ROOT / name).is_file()


def test_the_wheel_works_from_where_it_is_unpacked(tmp_path: Path) -> None:
    """Built from a copy of the sources; it is typed, has its data, and leaves only what it is asked
    for."""
    source, site, work = tmp_path / "source", tmp_path / "site", tmp_path / "work"
    source.mkdir()
    work.mkdir()
    for name in PACKAGES:
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=skip)
    shutil.copytree(ROOT / "licenses", source / "licenses")
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    [wheel] = (source / "dist").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    for name in PACKAGES:
        assert (site / name / "py.typed").is_file()
    assert len(list(site.glob("*.dist-info/licenses/**/*.txt"))) == 2
    # -P and PYTHONPATH: the packages of the wheel, and not those of this checkout.
    environment = os.environ | {"PYTHONPATH": str(site), "HOME": str(tmp_path / "home")}
    code = "import features, sys; from mms_apps.cli import main; print(features.__file__); main()"
    command = [sys.executable, "-P", "-c", code, "report", "embedded", "--out", "report.html"]
    done = subprocess.run(
        command, cwd=work, env=environment, check=True, capture_output=True, text=True
    )
    assert done.stdout.startswith(str(site))
    assert [path.name for path in work.iterdir()] == ["report.html"]
    assert not (tmp_path / "home").exists()
