"""The `mms` command as a whole: its help, its start, an interruption."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from features.dictionary import trained_kinds
from mms_apps.cli.options import KINDS
from tests.conftest import Mms


def test_an_interruption_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, mms: Mms) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("features.pairs.open.open_pairs", interrupt)
    code, _, err = mms("run", "--pairs", "embedded", "--out", "unused")
    assert code == 130
    assert "run the same command again" in err


def test_help_needs_no_heavy_library() -> None:
    check = "import sys, mms_apps.cli; print({'torch', 'open_clip', 'pyarrow'} & set(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "set()"


def test_the_installed_command_lists_its_steps() -> None:
    mms_command = shutil.which("mms", path=str(Path(sys.executable).parent))
    assert mms_command is not None
    shown = subprocess.run([mms_command, "--help"], capture_output=True, text=True, check=True)
    for step in ("run", "extract", "fit", "score", "report", "train-encoder"):
        assert step in shown.stdout


def test_the_help_names_every_kind_of_dictionary() -> None:
    assert set(KINDS) == set(trained_kinds())
